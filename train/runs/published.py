"""The paper's tables 1 to 6: what was published, and which of our runs stand beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmc.views.clips import Stream

Measure = Literal["linear", "knn", "semi1", "semi10", "transfer"]

DATASETS = {"ntu60": "NTU-60", "ntu120": "NTU-120", "pku2": "PKU-II"}
PROTOCOLS = {"xsub": "x-sub", "xview": "x-view", "xset": "x-set"}
MEASURES = {
    "linear": "linear top-1",
    "knn": "kNN top-1",
    "semi1": "1 % labels, top-1",
    "semi10": "10 % labels, top-1",
    "transfer": "fine-tuned, top-1",
}


@dataclass(frozen=True)
class Column:
    """One column: ``dataset`` and ``protocol`` are those of pre-training."""

    dataset: str
    protocol: str
    measure: Measure

    @property
    def title(self) -> str:
        name = f"{DATASETS.get(self.dataset, self.dataset)} {PROTOCOLS.get(self.protocol, self.protocol)}"
        share = {"semi1": ", 1 %", "semi10": ", 10 %"}.get(self.measure, "")
        return name + share


@dataclass(frozen=True)
class Variant:
    """What of ours is in a row: a method on some streams; several are fused (the 3-stream row).

    ``backbone``: kind of the encoder, where it is not that of the run's flags; such a row is trained if asked for, and
    so is one of a method that is not of table 6.
    """

    method: str = "a2mc"
    streams: tuple[Stream, ...] = ("joint",)
    backbone: str | None = None

    @property
    def is_rival(self) -> bool:
        """Whether its method is none of table 6."""
        return self.method not in ("a2mc", "b1", "b2", "b3")


@dataclass(frozen=True)
class Row:
    """A published row: what is said of the method, and percent by column, None where nothing was published."""

    label: str
    info: tuple[str, ...]
    values: tuple[float | None, ...]
    variant: Variant | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper. ``fine_print`` is the protocol as published."""

    number: int
    title: str
    info: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    fine_print: str


OURS = Variant()
THREE: tuple[Stream, ...] = ("joint", "motion", "bone")
LINEAR = (
    "A linear classifier on the frozen query encoder, 80 epochs, learning rate 0.1, times 0.1 at epochs 50 and 70 "
    "(section 4.2)."
)
PRETRAINING = (
    "Pre-training: BiGRU, 64 frames, SGD 0.01 with momentum 0.9 and weight decay 1e-4, batches of 64, K = 16,384, "
    "tau = 0.07, 750 epochs, times 0.1 at 350 (PKU-II: 1,000 and 800)."
)
FINETUNING = (
    "Fine-tuned with a linear classifier, 80 epochs, learning rate 0.01, times 0.1 at epochs 50 and 70 (section 4.2)."
)
NEAREST = (
    "A test clip takes the class of its K nearest training clips in the query encoder's representation (section 4.2, "
    "which does not say K)."
)


def _columns(measure: Measure, *names: str) -> tuple[Column, ...]:
    pairs = [name.split() for name in names]
    return tuple(Column(dataset, protocol, measure) for dataset, protocol in pairs)


NTU = ("ntu60 xsub", "ntu60 xview", "ntu120 xsub", "ntu120 xset")
CONTRAST, DECODER = "contrastive learning", "encoder-decoder"

# fmt: off
TABLES = {table.number: table for table in (
    Table(1, "Linear evaluation", ("type", "encoder", "parameters"), _columns("linear", *NTU, "pku2 xsub"), (
        Row("MS²L", ("hybrid", "GRU", "2.28M"), (52.6, None, None, None, 27.6)),
        Row("PCRP", ("hybrid", "GRU", ""), (54.9, 63.4, 43.0, 44.6, None)),
        Row("LongT GAN", (DECODER, "GRU", "40.2M"), (39.1, 48.1, None, None, 26.0)),
        Row("EnGAN", (DECODER, "LSTM", ""), (68.6, 77.8, None, None, None)),
        Row("P&C", (DECODER, "GRU", ""), (50.7, 76.3, 42.7, 41.7, 25.5)),
        Row("SeBiReNet", (DECODER, "GRU", "0.27M"), (None, 79.7, None, None, None)),
        Row("TS Colorization", (DECODER, "GCN", ""), (71.6, 79.9, None, None, None)),
        Row("H-Transformer", (DECODER, "Transformer", ">100M"), (69.3, 72.8, None, None, None)),
        Row("GL-Transformer", (DECODER, "Transformer", "214M"), (76.3, 83.8, 66.0, 68.7, None)),
        Row("AS-CAL", (CONTRAST, "LSTM", "0.43M"), (58.5, 64.8, 48.6, 49.2, None), Variant("ascal")),
        Row("ISC", (CONTRAST, "GRU&CNN&GCN", "10.0M"), (76.3, 85.2, 67.1, 67.9, 36.0)),
        Row("CrosSCLR", (CONTRAST, "GCN", "0.85M"), (72.9, 79.9, None, None, None)),
        Row("CrosSCLR-B", (CONTRAST, "BiGRU", "10.0M"), (77.3, 85.1, 67.1, 68.6, 41.9)),
        Row("CRRL", (CONTRAST, "LSTM", ""), (67.6, 73.8, 56.2, 57.0, None)),
        Row("AimCLR", (CONTRAST, "GCN", "0.85M"), (74.3, 79.7, None, None, None), Variant("aimclr")),
        Row("CPM", (CONTRAST, "GCN", "3.4M"), (78.7, 84.9, 68.7, 69.6, 48.3), Variant("cpm")),
        Row("CMD", (CONTRAST, "BiGRU", "10.0M"), (79.8, 86.9, 70.3, 71.5, 43.0)),
        Row("A²MC", (CONTRAST, "BiGRU", "10.0M"), (80.0, 87.9, 71.4, 73.2, 48.4), OURS),
        Row("A²MC, ST-GCN", (CONTRAST, "GCN", ""), (None,) * 5, Variant(backbone="stgcn")),
        Row("A²MC, DSTA-Net", (CONTRAST, "Transformer", ""), (None,) * 5, Variant(backbone="dstanet")),
        Row("SkeletonCLR", (CONTRAST, "GCN", "0.85M"), (None,) * 5, Variant("skeletonclr")),
        Row("HiCLR", (CONTRAST, "GCN", "0.85M"), (None,) * 5, Variant("hiclr")),
        Row("HiCo", (CONTRAST, "S2S", "3.9M"), (None,) * 5, Variant("hico")),
    ), LINEAR + " With ST-GCN and DSTA-Net the paper gives words and no figures (section 4.3), and of the last three "
        "methods none in this table. CMD and both CrosSCLR "
        "pre-train on several modalities, the others on one."),
    Table(2, "Linear evaluation of streams and their fusion", ("modality",), _columns("linear", "ntu60 xsub"), (
        Row("A²MC", ("joint",), (80.0,), OURS),
        Row("A²MC", ("motion",), (77.1,), Variant(streams=("motion",))),
        Row("A²MC", ("bone",), (78.3,), Variant(streams=("bone",))),
        Row("3s-CrosSCLR", ("joint + motion + bone",), (77.8,)),
        Row("3s-AimCLR", ("joint + motion + bone",), (78.9,), Variant("aimclr", THREE)),
        Row("3s-HiCLR", ("joint + motion + bone",), (80.4,), Variant("hiclr", THREE)),
        Row("3s-CrosSCLR-B", ("joint + motion + bone",), (82.1,)),
        Row("3s-CPM", ("joint + motion + bone",), (83.2,), Variant("cpm", THREE)),
        Row("3s-HiCo", ("joint + motion + bone",), (83.8,), Variant("hico", THREE)),
        Row("3s-CMD", ("joint + motion + bone",), (84.1,)),
        Row("3s-A²MC", ("joint + motion + bone",), (84.6,), Variant(streams=THREE)),
    ), LINEAR + " 3s: one encoder and classifier per stream, their scores summed."),
    Table(3, "kNN evaluation", (), _columns("knn", *NTU), (
        Row("LongT GAN", (), (39.1, 48.1, 31.5, 35.5)),
        Row("P&C", (), (50.7, 76.3, 39.5, 41.8)),
        Row("ISC", (), (62.5, 82.6, 50.6, 52.3)),
        Row("CrosSCLR-B", (), (66.1, 81.3, 52.5, 54.9)),
        Row("HiCLR", (), (67.3, 75.3, None, None), Variant("hiclr")),
        Row("HiCo", (), (68.3, 84.8, 56.6, 59.1), Variant("hico")),
        Row("CMD", (), (70.6, 85.4, 58.3, 60.9)),
        Row("A²MC", (), (70.8, 85.4, 59.1, 62.6), OURS),
    ), NEAREST),
    Table(4, "Semi-supervised evaluation", (), tuple(
        Column("ntu60", protocol, measure) for protocol in ("xsub", "xview") for measure in ("semi1", "semi10")
    ), (
        Row("LongT GAN", (), (35.2, 62.0, None, None)),
        Row("MS²L", (), (33.1, 65.2, None, None)),
        Row("ASSL", (), (None, 64.3, None, 69.8)),
        Row("ISC", (), (35.7, 65.9, 38.1, 72.5)),
        Row("CrosSCLR-B", (), (48.6, 72.4, 49.8, 77.0)),
        Row("CMD", (), (50.6, 75.4, 53.0, 80.2)),
        Row("A²MC", (), (52.0, 76.4, 53.5, 81.5), OURS),
    ), "Encoder and classifier on a random share of the labels. " + FINETUNING),
    Table(5, "Transfer learning", (), _columns("transfer", "ntu60 xsub", "ntu120 xsub"), (
        Row("LongT GAN", (), (44.8, None)),
        Row("MS²L", (), (45.8, None)),
        Row("ISC", (), (51.1, 52.3)),
        Row("CrosSCLR-B", (), (54.0, 52.8)),
        Row("CMD", (), (56.0, 57.0)),
        Row("A²MC", (), (58.1, 58.9), OURS),
    ), "Pre-trained on the column's set; the target is \"the testing set from PKU-II\". " + FINETUNING),
    Table(6, "Ablation, linear evaluation", ("Att-Aug", "PNM", "MC"), _columns("linear", "ntu60 xsub", "ntu60 xview"), (
        Row("B1", ("", "", ""), (75.6, 82.8), Variant("b1")),
        Row("B2", ("✓", "", ""), (78.5, 85.6), Variant("b2")),
        Row("B3", ("✓", "", "✓"), (79.0, 86.7), Variant("b3")),
        Row("A²MC", ("✓", "✓", "✓"), (80.0, 87.9), OURS),
    ), LINEAR),
)}
# fmt: on


def published_accuracies(dataset: str, protocol: str, variant: Variant) -> dict[Measure, tuple[float, int]]:
    """What the paper has for a variant of ours on this set: percent, and the number of the table, by measure."""
    found: dict[Measure, tuple[float, int]] = {}
    for table in TABLES.values():
        for row in (row for row in table.rows if row.variant == variant):
            for column, value in zip(table.columns, row.values, strict=True):
                if (column.dataset, column.protocol) == (dataset, protocol) and value is not None:
                    found.setdefault(column.measure, (value, table.number))
    return found
