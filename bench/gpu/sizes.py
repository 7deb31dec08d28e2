"""How large everything is: as in section 4.2 of the paper, or as small as a rehearsal on a CPU has to be."""

from __future__ import annotations

from dataclasses import dataclass

from bench.providers import Case, Mix


@dataclass(frozen=True)
class Sizes:
    """By default the product's.

    Attributes:
        batch, bank, dim, frames, bodies, encoder: B, K, D, T, M and layers x hidden units.
        banks: K of the loss and bank step by every provider; the product's first.
        clips: of the data that steps and views are timed on.
        training_clips, test_clips: of the training run; NTU-60 xsub has 40,091 and 16,487 of them.
        test_clips: few, since the run is stopped before it is evaluated.
        copied: bytes of the array whose copy is the ceiling of memory; product: rows and columns of the matrices.
        input_sets: how many copies of a step's inputs are gone through so that each is cold.
        profiled: steps of the trace.
        training_flags: of the training run, beside those that name its data and its folder.
    """

    batch: int = 64
    bank: int = 16384
    dim: int = 128
    frames: int = 64
    bodies: int = 2
    encoder: str = "3x1024"
    banks: tuple[int, ...] = (16384, 65536, 4096)
    clips: int = 512
    training_clips: int = 40_091
    test_clips: int = 64
    copied: int = 2**31
    product: int = 8192
    input_sets: int = 8
    recurrent_batches: tuple[int, ...] = (64, 192)
    profiled: int = 3
    training_flags: tuple[str, ...] = ("--preset", "paper")

    def case(self, mix: Mix = "own", bank: int | None = None) -> Case:
        """Loss and bank step."""
        return Case("step", mix, self.batch, bank or self.bank, self.dim)


PRODUCT = Sizes()
REHEARSAL = Sizes(
    batch=2,
    bank=40,
    dim=16,
    frames=4,
    encoder="2x8",
    banks=(40, 70),
    clips=24,
    training_clips=60,
    test_clips=6,
    copied=2**20,
    product=64,
    input_sets=2,
    recurrent_batches=(2,),
    profiled=1,
    training_flags=(
        *("--preset", "tiny", "--device", "cpu", "--encoder", "1x8", "--bank-size", "32", "--batch-size", "8"),
        *("--frames", "8", "--epochs", "1000000", "--checkpoint-every", "1"),
    ),
)
