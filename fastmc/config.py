"""The settings of a run: typed dataclasses, presets, and config.json, which keeps them in the run folder."""

from __future__ import annotations

import dataclasses
import json
import numbers
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastmc.checks import Count, NotNegative, Positive, Range, Seed, Whole, check_ranges
from fastmc.data.placed.placement import DataConfig
from fastmc.encoders import find_encoder
from fastmc.encoders.base import EncoderConfig
from fastmc.evaluation.config import EvalConfig
from fastmc.files import read_text
from fastmc.methods import find_method
from fastmc.methods.base import Impl, Method, MethodConfig, Precision
from fastmc.reading import reading, shown
from fastmc.registry import NotAllowed
from fastmc.views.clips import Stream, ViewImpl
from fastmc.views.draw import AugmentConfig

Preset = Literal["paper", "small", "tiny"]
Frames = Annotated[int, Range(at_least=2)]
"""A difference of frames takes two."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule of the query encoder."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has momentum 0.9, as in paper section 4.2."""
    optimizer_impl: Literal["auto", "triton", "torch", "apex"] = "auto"
    """Who updates the weights. triton: sgd, the key encoder and both copies in half precision, in one pass over the
    weights. torch: its fused optimizers. apex: FusedSGD of NVIDIA's apex. auto: triton for sgd where Triton can run,
    else torch."""
    lr: Positive = 0.01
    """Initial learning rate."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of the encoder."""
    steps: Whole = 0
    """Steps of pre-training, of presets small and tiny: --epochs follows from the set, and with it, in proportion,
    milestones, warm-up, probes and checkpoints, but for those that are given. 0: what --epochs says, which is so where
    that flag is given, in place of this one."""
    epochs: Count = 750
    """Epochs of pre-training."""
    milestones: tuple[Whole, ...] = (350,)
    """Epochs at which the learning rate drops to a tenth."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the learning rate rises from zero."""
    batch_size: Count = 64
    """B, clips per step, of all ranks together where torchrun starts several."""
    lr_scale: Literal["none", "linear", "sqrt"] = "none"
    """The learning rate times the batch size over that of preset and method (linear: Goyal et al. 2017,
    arXiv:1706.02677, for SGD with a warm-up), or times the root of that (sqrt: Krizhevsky 2014, arXiv:1404.5997). none:
    as --lr says."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def lr_at(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch, before `Config.lr_factor`."""
        warmup = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs > 0 else 1.0
        return self.lr * warmup * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed. What auto has chosen, and why, is in the log."""

    amp: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """Numbers of the recurrent nets and heads. bf16 and fp16: weights and activations in half precision, beside float32
    weights that learn; fp16 with a gradient scale. tf32: float32, multiplied in TF32 on a GPU. fp32: float32. Norm,
    loss, bank and optimizer are float32 in any case. auto: bf16 on a GPU that has it, fp32 elsewhere."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of what surrounds the recurrent calls: input norm, head, verdict on the step. auto: on a GPU."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Launch each step as one CUDA graph, once the bank is full. auto: on a GPU that holds all frames; what cannot be
    captured runs launch by launch, and the log says why."""
    overlap: Literal["auto", "on", "off"] = "auto"
    """The key encoder beside the attack, on a second stream; changes no bit. auto: on a GPU."""
    impl: Impl = "auto"
    """Implementation of loss, bank step and attack. auto: triton on a GPU and C++ (cpp) on a CPU where they can run,
    else torch. With auto and cpp the recurrent nets of a CPU are C++ too; with the others, PyTorch's operators."""
    view_impl: ViewImpl = "auto"
    """Implementation of the views that are trained on. auto: the Triton kernels on a GPU; on a CPU numba where it is
    installed; else PyTorch. Views differ in their last bits between implementations."""
    precision: Precision = "bf16x3"
    """Products of triton's loss and bank step. bf16x3: operands as sums of two bfloat16 numbers, about 16 bits; ieee:
    float32, slower; bf16: rounded to bfloat16, which moves probabilities by percents."""
    check_ranks: Whole = 500
    """Steps between two comparisons of weights and bank over the ranks of torchrun, by a checksum; a difference ends
    the run. 0: none."""
    rank_timeout: Positive = 600.0
    """Seconds that a rank waits for another one before it takes it for gone and ends. Loading the data and writing a
    checkpoint must take less."""
    profile: Whole = 0
    """Record so many steps once the bank is full, and write them to profile/ in the run folder: docs/profiling.md."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class LogConfig:
    """What a run writes, and when."""

    probe_every: Whole = 10
    """Epochs between kNN probes of the query encoder; 0 for none."""
    checkpoint_every: Count = 1
    """Epochs between checkpoints."""
    checkpoint_minutes: NotNegative = 10.0
    """A long epoch is interrupted for a checkpoint after this many minutes."""
    checkpoints_kept: Annotated[int, Range(at_least=2)] = 2
    """How many checkpoints stay on disk, at least two: one may be unreadable after a crash of the machine."""
    keep_best: bool = False
    """Keep the checkpoint of the best probe too: --checkpoint best of train.evaluate and train.embed. The probe takes
    test clips, so that what is reported of it has been chosen on them."""
    wandb: str | None = None
    """Project of Weights & Biases that gets settings and metrics too; pip install wandb."""
    keep_features: bool = True
    """Keep the frozen features of the last evaluation in the run folder, so that train.evaluate, train.figures and
    ensembles need not compute them again: 8 crops of NTU-60 are 3 GB."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Config:
    """Pre-train a skeleton encoder, by default with A²MC, then evaluate it.

    Without data: python -m train.run --dataset synthetic --preset tiny

    NTU-60: python -m train.prepare ntu60 --raw DIR --out data/ntu60

    and then: python -m train.run --dataset ntu60

    The same command resumes an interrupted run; so does: python -m train.run --config DIR/config.json --out DIR

    As a job of Slurm, also on several nodes: docs/scaling.md
    """

    dataset: str = "synthetic"
    """Name of a packed store under --data-root (see python -m train.prepare), or synthetic, which is made on demand."""
    data_root: Path = Path("data")
    """Folder of the packed stores."""
    protocol: str | None = None
    """Training and test split, such as xsub or xview; by default the store's first."""
    preset: Preset = "paper"
    """paper: the settings of section 4.2, for a GPU. small: half an hour on a CPU. tiny: minutes, for a first look.
    A preset sets defaults, every other flag overrides it. By default paper; tiny for the synthetic dataset."""
    method: str = "a2mc"
    """a2mc, or the rows of the paper's table 6 that lead to it. b1: x0, x3, InfoNCE, FIFO bank; b2: + attack and views
    x1, x2; b3: + MC loss; a2mc: + mixing and the learned bank. Or one of its rivals: skeletonclr, ascal, aimclr, hiclr,
    cpm, hico (docs/methods.md). Or a class of your own, MODULE:CLASS. Its settings are flags of their own."""
    backbone: str = "bigru"
    """Kind of the encoder: bigru, agcn, dstanet, hcn, lstm, s2s, stgcn (docs/encoders.md), or a class of your own,
    MODULE:CLASS; by default the method's own. Its settings are flags of their own. --encoder stgcn:16x256 says kind and
    size at once."""
    stream: Stream = "joint"
    """Input stream: joint coordinates, their motion, or bones."""
    frames: Frames = 64
    """T, frames of every view."""
    out: Path | None = None
    """Run folder; by default runs/DATASET-PROTOCOL-METHOD-STREAM-PRESET-seedN, with -BACKBONE after the method where it
    is not bigru."""
    seed: Seed = 0
    """Seed of initial weights, order of the clips, and augmentation."""
    init_from: Path | None = None
    """Start from these weights in place of random ones: of a run folder, of one of its checkpoints
    (DIR/checkpoints/step_000000330), of a file of train.export, of small-v1, or of a file of ISC, CMD, HaLP, PCM3. Bank
    and optimizer begin anew; of an encoder of other joints or another size what fits is taken, and said."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    config: Path | None = None
    """Settings to begin with, which flags override: config.json of a run, or a JSON file of your own with any of what
    --print-config prints."""
    restart: bool = False
    """Start over in a run folder that holds a run, instead of resuming it."""
    print_config: bool = False
    """Print the resolved settings as JSON, fitted to the set where that is there, and stop."""
    given: tuple[str, ...] = ()
    """Dotted names of the settings in epochs that were asked for, and are not fitted to the set (`fastmc.budget`). No
    flag: the command line and --config say it by themselves."""
    unfitted: dict[str, Any] = field(default_factory=dict)
    """By dotted names, settings before they were fitted to the set, and after. No flag either."""
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=lambda: find_encoder("bigru").Config())
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    settings: MethodConfig = field(default_factory=lambda: find_method("a2mc").Config())
    optim: OptimConfig = field(default_factory=OptimConfig)
    step: StepConfig = field(default_factory=StepConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not isinstance(self.given, tuple) or not all(isinstance(name, str) for name in self.given):
            raise ValueError(f"given must be names, got {shown(self.given)}")
        pairs = self.unfitted.values() if isinstance(self.unfitted, dict) else (self.unfitted,)
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"unfitted must be a value before and one after by name, got {shown(self.unfitted)}")

    @property
    def preset_optim(self) -> OptimConfig:
        """What the preset has in the place of ``optim``, with this method and encoder."""
        return _preset_optim(self.preset, self.dataset, self.method, self.backbone)

    @property
    def lr_factor(self) -> float:
        """Of the learning rate, by ``optim.lr_scale``: the batch over that of the preset, which a method may bring."""
        if self.optim.lr_scale == "none":
            return 1.0
        usual = self.preset_optim.batch_size
        return (self.optim.batch_size / usual) ** {"linear": 1.0, "sqrt": 0.5}[self.optim.lr_scale]

    def lr_at(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch."""
        return self.lr_factor * self.optim.lr_at(epoch)


# Said of one call, not of the run.
CALL_SETTINGS = ("out", "config", "print_config", "restart")
STEPS: dict[Preset, int] = {"small": 12000, "tiny": 5000}
"""Of the presets for CPUs: within an hour, and within five minutes, on two cores."""
# Found by trying: at the paper's SGD and full-strength augmentation nothing visible is learnt in a few thousand steps.
CPU_AUGMENT = AugmentConfig(crop_ratio_min=0.5, crop_frames_min=1, shear=0.5, jitter_joints=5)


def preset_config(
    preset: Preset,
    dataset: str = "synthetic",
    method: str = "a2mc",
    backbone: str | None = None,
    allow: Collection[str] = (),
) -> Config:
    """The settings of a preset for a method, with its own encoder unless ``backbone`` names one; PKU-MMD has a longer
    schedule in preset paper (section 4.2). ``allow`` and errors as of `fastmc.registry.find`."""
    kind = find_method(method, allow)
    backbone = backbone or kind.backbone
    chosen: dict[str, Any] = {"preset": preset, "dataset": dataset, "method": method, "backbone": backbone}
    for name, owner in (("encoder", find_encoder(backbone, allow)), ("settings", kind)):
        chosen[name] = owner.Config(**owner.presets.get(preset, {}))
    return _of_method(_of_preset(chosen), kind)


@cache
def _preset_optim(preset: Preset, dataset: str, method: str, backbone: str) -> OptimConfig:
    """As `Config.preset_optim`. A run asks before every step."""
    return preset_config(preset, dataset, method, backbone, (method, backbone)).optim


def _of_method(config: Config, kind: type[Method]) -> Config:
    """The settings with those in their place that a method has for its preset."""
    for group, values in kind.run.get(config.preset, {}).items():
        if group == "root":
            config = replace(config, **values)
        elif group != "encoder" or config.backbone == kind.backbone:
            config = replace(config, **{group: replace(getattr(config, group), **values)})
    return config


def _of_preset(chosen: Mapping[str, Any]) -> Config:
    """These settings, and the preset's of the groups that no method or encoder has."""
    preset: Preset = chosen["preset"]
    if preset == "paper":
        pku = chosen["dataset"].startswith("pku")
        return Config(**chosen, optim=OptimConfig(epochs=1000, milestones=(800,)) if pku else OptimConfig())
    return Config(
        **chosen,
        frames=32,
        augment=CPU_AUGMENT,
        optim=OptimConfig(
            optimizer="adamw",
            lr=1e-3 if preset == "small" else 2e-3,
            batch_size=32,
            steps=STEPS[preset],
            epochs=60,
            milestones=(50,),
            warmup_epochs=2.0,
        ),
        log=LogConfig(probe_every=10, checkpoint_every=5),
    )


class RunFolderError(ValueError):
    """A folder is no run folder, or holds something that this command must not continue or overwrite."""


def load_config(folder: Path, allow: Collection[str] = ()) -> Config:
    """The settings of the run in ``folder``, from its config.json; what is newer than the run has its default.

    Args:
        allow: methods and encoders of the user's own that may be imported, should the run be of one.

    Raises:
        RunFolderError: there is none, or it is damaged, or not of fastmc. ValueError: as of `fastmc.registry.find`.
    """
    path = folder / "config.json"
    if not path.is_file():
        fault = "has no config.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(f"{folder} is no run folder (it {fault}); python -m train.run --out {folder} makes one")
    remedy = "name a folder that python -m train.run made"
    with reading(f"{path} is damaged or not of fastmc", RunFolderError, remedy=remedy, passing=(NotAllowed,)):
        plain = upgraded(json.loads(read_text(path)))
        if not {"optim", "settings"} <= set(plain):
            raise ValueError("settings are missing")
        return config_of(plain, allow)


def read_settings(path: Path) -> dict[str, Any]:
    """Plain settings of a JSON file that a user names: of a run, or some of them, without those of one call.

    Raises:
        ValueError: it cannot be read, or is no JSON object.
    """
    remedy = "name config.json of a run, or a file with what --print-config prints"
    with reading(f"--config {path} cannot be read", ValueError, remedy=remedy):
        plain = json.loads(read_text(path))
        if not isinstance(plain, dict):
            raise ValueError(f"it holds {shown(plain)}, expected a JSON object")
        return {name: value for name, value in upgraded(plain).items() if name not in CALL_SETTINGS}


def upgraded(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings as fastmc 0.1 wrote them, in the places that they have now."""
    plain = dict(plain)
    for group in ("contrast", "attack", "data", "step", "optim"):
        if not isinstance(plain.get(group, {}), Mapping):
            raise ValueError(f"{group} holds {shown(plain[group])}, expected a JSON object")
    if "contrast" in plain:
        contrast = {**plain.pop("contrast"), **plain.pop("attack", {})}
        data, step = dict(plain.get("data", {})), dict(plain.get("step", {}))
        step |= {name: contrast.pop(name) for name in ("impl", "precision") if name in contrast}
        step |= {name: data.pop(name) for name in ("view_impl",) if name in data}
        plain |= {"method": contrast.pop("method", "a2mc"), "settings": contrast, "data": data, "step": step}
    if "epochs" in plain.get("optim", {}):  # what says nothing of steps says epochs
        plain["optim"] = {"steps": 0, **plain["optim"]}
    return plain


def config_of(plain: Mapping[str, Any], allow: Collection[str] = ()) -> Config:
    """The inverse of `to_plain` of a Config. ValueError for a setting that there is not; else as `load_config`."""
    method = find_method(plain.get("method", Config.method), allow)
    encoder = find_encoder(plain.get("backbone", Config.backbone), allow)
    return from_plain(Config, plain, settings=method.Config, encoder=encoder.Config)


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON-able plain types: paths are strings, tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_plain(cls: type, values: Mapping[str, Any], **types: type) -> Any:
    """The inverse of `to_plain`; ValueError for a key that the dataclass does not have. ``types``: of fields whose
    annotation is of a base class."""
    hints = typing.get_type_hints(cls) | types
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(f"{cls.__name__} has no setting named {', '.join(sorted(unknown))}")
    for name, value in values.items():
        if typing.get_origin(hints[name]) is Literal and value not in typing.get_args(hints[name]):
            raise ValueError(f"{name} must be one of {', '.join(typing.get_args(hints[name]))}; got {shown(value)}")
        if not _is_of(hints[name], value):
            raise ValueError(f"{name} cannot be {shown(value)}")
    return cls(**{name: _typed(hints[name], value) for name, value in values.items()})


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a plain value may stand for a setting of this type; which numbers may, its dataclass says."""
    if isinstance(hint, types.UnionType):
        return any(_is_of(part, value) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_is_of(typing.get_args(hint)[0], each) for each in value)
    if typing.get_origin(hint) is dict or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return isinstance(value, Mapping)
    kinds: dict[Any, Any] = {int: numbers.Real, float: numbers.Real, Path: str | Path, str: str, bool: bool}
    kinds[type(None)] = type(None)
    return hint not in kinds or isinstance(value, kinds[hint])


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    if value is not None and (hint is Path or (isinstance(hint, types.UnionType) and Path in typing.get_args(hint))):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names (dotted) of the settings whose plain values differ."""
    found = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}")
    return found
