"""What can be said on the command line of train.evaluate, a dataclass for each protocol."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from fastmc.checks import Count, NotNegative, Positive, Share, Whole, check_ranges
from fastmc.config import load_config
from fastmc.data.placed.placement import Placement
from fastmc.evaluation import EvalConfig, FinetuneConfig, check_weights

DEFAULTS, TUNING = EvalConfig(), FinetuneConfig()


@dataclass(frozen=True)
class Evaluation:
    run: Path
    """Run folder, as made by python -m train.run. The results go to its folder evaluate, a file for each protocol and
    settings."""
    protocol: str | None = None
    """Split to evaluate on, such as xview; by default the run's own."""
    checkpoint: str = "last"
    """last, a step, or best: of the kNN probe, where the run had --keep-best. The probe takes test clips, so that what
    is best by it has been chosen on them."""
    data_root: Path | None = None
    """Folder of the packed stores; by default the run's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    placement: Placement = "auto"
    """Where the frames are kept: device, pinned, mapped, or auto; see python -m train.run --help."""
    allow: tuple[str, ...] = ()
    """Methods and encoders outside of fastmc, MODULE:CLASS, that may be imported if the run is of one."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Knn(Evaluation):
    """Nearest-neighbour classification of the frozen representations, by cosine similarity.

    Example: python -m train.evaluate knn --run runs/demo
    """

    knn_k: Count = DEFAULTS.knn_k
    """Neighbours."""
    test_crop: Share = DEFAULTS.test_crop
    """Centre crop of every clip, as a share of it."""
    cache: bool = True
    """Keep the features in the run folder, and take those that are kept there."""


@dataclass(frozen=True)
class Linear(Evaluation):
    """A linear classifier on the frozen representations: 80 epochs, 0.1, then 0.01 at 50 and 0.001 at 70.

    Example: python -m train.evaluate linear --run runs/demo --train-crops 16

    It is kept in the run folder: as classifier.pt, which python -m train.embed reads, with the run's own protocol and
    settings, else under a name that says those.
    """

    linear_epochs: Count = DEFAULTS.linear_epochs
    """Epochs of the classifier."""
    linear_lr: Positive = DEFAULTS.linear_lr
    """Its initial learning rate."""
    linear_milestones: tuple[Whole, ...] = DEFAULTS.linear_milestones
    """Epochs at which that drops to a tenth."""
    linear_batch_size: Count = DEFAULTS.linear_batch_size
    """Clips per step."""
    train_crops: Count = DEFAULTS.train_crops
    """Random temporal crops of each training clip to draw from, one per epoch."""
    train_crop_min: Share = DEFAULTS.train_crop_min
    """Shortest of these crops, as a share of the clip."""
    test_crop: Share = DEFAULTS.test_crop
    """Centre crop of a test clip, as a share of it."""
    cache: bool = True
    """Keep the features in the run folder, and take those that are kept there: 8 crops of NTU-60 are 3 GB."""


@dataclass(frozen=True)
class Finetuning(Evaluation):
    epochs: Count = TUNING.epochs
    """Epochs of fine-tuning."""
    lr: Positive = TUNING.lr
    """Initial learning rate of encoder and classifier."""
    milestones: tuple[Whole, ...] = TUNING.milestones
    """Epochs at which it drops to a tenth."""
    batch_size: Count = TUNING.batch_size
    """Most clips per step; the batches of an epoch are of equal size."""
    weight_decay: NotNegative = TUNING.weight_decay
    """Weight decay of encoder and classifier."""
    train_crop_min: Share = TUNING.train_crop_min
    """Shortest random temporal crop of a training clip, as a share of it."""
    test_crop: Share = TUNING.test_crop
    """Centre crop of a test clip, as a share of it."""

    @property
    def tuning(self) -> FinetuneConfig:
        return FinetuneConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FinetuneConfig)})


@dataclass(frozen=True)
class Finetune(Finetuning):
    """Encoder and linear classifier, fine-tuned on all training clips: 80 epochs, 0.01, times 0.1 at 50 and 70.

    Example: python -m train.evaluate finetune --run runs/demo
    """


@dataclass(frozen=True)
class Semi(Finetuning):
    """The same on a share of the labels: as many clips of each class, drawn anew for each of several trials.

    Example: python -m train.evaluate semi --run runs/demo --share 0.01 0.1 --draws 5

    Mean and standard deviation of the trials are shown and written. The encoder was pre-trained on all clips.
    """

    share: tuple[Share, ...] = (0.01, 0.1)
    """Shares of the training clips whose labels are used."""
    draws: Count = 5
    """Trials of each share."""


@dataclass(frozen=True)
class Transfer(Finetuning):
    """The run's encoder, fine-tuned with a linear classifier on the training clips of another data set.

    Example: python -m train.evaluate transfer --run runs/ntu60 --dataset pku2

    It is tested on that set's test clips. (The paper names PKU-MMD's testing set as the target; as everywhere else,
    its training part is learnt from here and its test part tested on.) The clips must have the joints of the run's.
    """

    dataset: str = ""
    """The data set to fine-tune on, a packed store under --data-root. --protocol is by default its first."""


@dataclass(frozen=True)
class Ensemble:
    """Several streams together: the class probabilities of their linear classifiers, summed.

    Example: python -m train.evaluate ensemble --run runs/joint runs/motion runs/bone

    A run whose linear classifier was not trained yet gets one first. The results go to the first run's folder.
    """

    run: tuple[Path, ...]
    """Run folders: of one data set and protocol, each of another stream."""
    weights: tuple[NotNegative, ...] = ()
    """Weight of each run, in their order; by default all 1. AimCLR: 0.6 for joint and bone, 0.4 for motion."""
    protocol: str | None = None
    """Split to evaluate on; by default the runs' own."""
    checkpoint: str = "last"
    """Of each run: last, best, or a step; see python -m train.evaluate knn --help."""
    data_root: Path | None = None
    """Folder of the packed stores; by default each run's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    placement: Placement = "auto"
    """Where the frames are kept; see python -m train.run --help."""
    cache: bool = True
    """Keep the features in the run folders, and take those that are kept there."""
    allow: tuple[str, ...] = ()
    """Methods and encoders outside of fastmc, MODULE:CLASS, that may be imported if the run is of one."""

    def __post_init__(self) -> None:
        check_ranges(self)


Settings = Knn | Linear | Finetune | Semi | Transfer | Ensemble


def check_semi(settings: Semi) -> None:
    if not settings.share:
        raise ValueError("share names none; give one or more, such as --share 0.01 0.1")


def check_ensemble(settings: Ensemble) -> None:
    """ValueError if the runs are fewer than two, or not of one data set and protocol, or of one stream."""
    if len(settings.run) < 2:
        raise ValueError("an ensemble needs two or more runs: --run A B C")
    if settings.weights:
        check_weights(settings.weights, len(settings.run))
    configs = [load_config(folder, settings.allow) for folder in settings.run]
    for what in ("dataset", "protocol"):
        values = {getattr(config, what) for config in configs}
        if len(values) > 1:
            raise ValueError(
                f"the runs are of different {what}s ({', '.join(sorted(map(str, values)))}); name runs of one"
            )
    streams = [config.stream for config in configs]
    if len(set(streams)) < len(streams):
        raise ValueError(f"the runs are of the streams {', '.join(streams)}; name one run of each stream")
