"""The ledger's piece "step": a whole pre-training step by its parts, counted, and a model of its time on an H100.

Counted are the Triton launches (`bench.ledger_data`, `bench.ledger_mc`), PyTorch's operators and their bytes outside of
the recurrent net, and the operations of all matrix products. Modelled is only the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args
from unittest import mock

import torch
from torch import Tensor

from bench.aot import compile_launches
from bench.counting import REST, PartWork, RecurrentCall, count_parts
from bench.ledger_data import JOINTS, THINGS, DataStep, ntu_like_clips
from bench.ledger_mc import McStep
from bench.ledger_rows import H100, MB, count_rows, table
from bench.providers import Case
from fastmc.arguments import check_choice
from fastmc.config import OptimConfig
from fastmc.encoders.amp import AMP
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.encoders.recurrent import flatten_
from fastmc.methods import build_method
from fastmc.methods.a2mc import A2MC, OF_ATTACKED, OF_CLIPS, A2MCConfig
from fastmc.methods.base import Setup
from fastmc.reference import step as reference
from fastmc.skeleton import NTU25
from fastmc.views.draw import AugmentConfig, draw_params
from kernels.ranges import PARTS, part
from kernels.update import UpdateGroup
from train.engine.optimizer import WholeUpdate
from train.engine.step import PretrainStep
from train.engine.world import World

Amp = Literal["bf16", "fp16", "tf32", "fp32"]
MADE_IN = dict(zip(THINGS, ("augment", "augment", "attack", "attack", "attack", "augment", "augment"), strict=True))
OF_BANK = ("_bank_kernel", "_enqueue_kernel")
"""Kernels of the part bank, which runs within the part mc."""

# --- The machine of the model

PEAK = {"bf16": 989e12, "fp16": 989e12, "tf32": 494.7e12, "fp32": 67e12}
"""Operations a second of an H100 SXM's matrix products, dense, from its data sheet."""
L2 = 5120 * 1.755e9
"""Bytes a second that its L2 can give: 5120 a clock, NVIDIA's figure for the A100, since none is published for the
H100."""
L2_SIZE = 50e6
LAUNCH = 1.5e-6
"""Seconds from the end of a kernel's work to the start of the next one's, if that needs its result. ASSUMED, neither
measured here nor published: the ledger shows how much depends on it."""
LAUNCHES_PER_FRAME = 2
"""Kernels of the recurrent net that follow one another in a frame: the product with the state, then the gates, ASSUMED
of cuDNN's standard algorithm. It is that one which PyTorch asks for: the persistent ones are for one layer, one
direction and no GRU, or for at most ``SMALL`` hidden units (get_algo in ATen/native/cudnn/RNN.cpp), of which this model
says nothing. Both directions are assumed to run side by side, on two streams."""
SMALL = 192
SAVED_GATES = 4
"""Numbers that a cell keeps for the backward pass, per hidden unit: reset, update, candidate, and the candidate's share
of the state. ASSUMED: cuDNN does not document what its reserve holds."""


@dataclass(frozen=True)
class TrainingStep:
    """A step of A²MC with a full bank; by default the paper's, section 4.2.

    Attributes:
        case: B, K, D and the mixing.
        precision: products of the loss's kernels.
        frames, bodies: T and M of a view.
        encoder: layers x hidden units per direction.
        amp: what the recurrent nets and heads compute in.
    """

    case: Case = field(default_factory=Case)
    precision: str = "bf16x3"
    frames: int = 64
    bodies: int = 2
    encoder: str = "3x1024"
    amp: Amp = "bf16"

    def __post_init__(self) -> None:
        check_choice("amp", self.amp, get_args(Amp))
        _ = self.network, self.data

    def __str__(self) -> str:
        sizes = f"B = {self.case.batch}, K = {self.case.bank:,}, D = {self.case.dim}, T = {self.frames}, V = {JOINTS}"
        return (
            f"pre-training step, {self.case.mix} mixing, BiGRU {self.encoder}, {sizes}, M = {self.bodies}; {self.amp}"
        )

    @property
    def network(self) -> BiGRUConfig:
        return BiGRUConfig(self.encoder, feature_dim=self.case.dim)

    @property
    def data(self) -> DataStep:
        return DataStep(self.case.batch, self.frames, self.bodies, "float32", "joint")

    # --- Counts

    def count(self, target: str) -> dict[str, PartWork]:
        """The step of `train.engine.step.PretrainStep` as it runs on a GPU without torch.compile."""
        clips = ntu_like_clips(self.case.batch, self.bodies, "meta")
        with as_on_a_gpu(), compile_launches(target) as launches:
            step = self.stepper()
            return count_parts(lambda: step.advance(clips), launches)

    def stepper(self, world: World | None = None) -> PretrainStep:
        """The step on tensors without memory; to be made and advanced `as_on_a_gpu`. ``world``: who share it."""
        c = self.case
        setup = Setup(
            NTU25,
            self.bodies,
            BiGRU,
            self.network,
            frames=self.frames,
            impl="triton",
            precision=self.precision,  # type: ignore[arg-type]
            view_impl="triton",
        )
        model = build_method(A2MC, A2MCConfig(bank_size=c.bank, mix=c.mix), setup).to("meta")
        for module in model.modules():
            if isinstance(module, torch.nn.GRU):
                flatten_(module)  # as nn.GRU does when it is moved to a GPU
        return PretrainStep(model, OptimConfig(), c.batch, amp=self.amp, world=world)

    def count_plain(self) -> dict[str, PartWork]:
        """The step of `fastmc.reference.step`, in float32."""
        c, (layers, hidden) = self.case, self.network.size
        packed = ntu_like_clips(c.batch, self.bodies, "cpu")
        clips = [torch.empty(int(frames), self.bodies, JOINTS, 3, device="meta") for frames in packed.num_frames]
        choices = self.choices(packed.num_frames)
        with torch.device("meta"):
            query, key = (reference.Encoder(self.data.width, hidden, layers, c.dim) for _ in range(2))
            fc = torch.nn.Linear(2 * hidden, A2MCConfig.attack_classes)
            bank, momentum, mixing = torch.empty(c.bank, c.dim), torch.empty(c.bank, c.dim), torch.empty(c.bank)
        key.requires_grad_(False)
        fc.requires_grad_(False)
        settings: dict[str, Any] = {"size": self.frames, "mirror": NTU25.mirror, "mix": c.mix}
        with as_on_a_gpu(), reference_in_parts(query, key):
            optimizer = torch.optim.SGD(query.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
            for weight in query.parameters():  # as after a first step
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            return count_parts(
                lambda: reference.pretrain_step(
                    query, key, fc, optimizer, bank, momentum, clips, choices, mixing, **settings
                )
            )

    def choices(self, num_frames: Tensor) -> list[list[dict[str, Any]]]:
        """For the plain step: choices of views 0..3 for each of the clips."""
        key: dict[str, Any] = {"seed": 0, "step": 1, "sample": torch.arange(len(num_frames)), "impl": "torch"}
        noise = torch.empty(self.frames, self.bodies, JOINTS, 3, device="meta")
        found: dict[int, list[dict[str, Any]]] = {}
        for views, resized_to in ((OF_CLIPS, None), (OF_ATTACKED, self.frames)):
            params = draw_params(AugmentConfig(), num_frames, JOINTS, views=views, resized_to=resized_to, **key)
            for w, view in enumerate(views):
                found[view] = [
                    {name: params.column(name)[w, n] for name in CHOICES} | {"noise": noise}
                    for n in range(len(num_frames))
                ]
        return [found[view] for view in sorted(found)]

    def triton_rows(self) -> dict[str, list[dict[str, Any]]]:
        """Counts of the Triton launches by part."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for made, row in zip(THINGS, count_rows(self.data), strict=True):
            rows.setdefault(MADE_IN[made], []).append(row)
        for row in count_rows(McStep(self.case, self.precision), self.precision):
            rows.setdefault("bank" if row["kernel"] in OF_BANK else "mc", []).append(row)
        rows["optimizer"] = self.update_rows()
        return rows

    def update_rows(self) -> list[dict[str, Any]]:
        """Of `kernels.update`, if it is what updates the encoders."""
        with as_on_a_gpu():
            update = self.stepper().update
        if not isinstance(update, WholeUpdate):
            return []
        return [update_row(group, scaled=update.scale is not None) for group in update.groups]

    def measure(self, target: str, plain: bool) -> dict[str, Any]:
        """Counts by part, of the plain form too, and the model of either."""
        rows, works = self.triton_rows(), self.count(target)
        for name, work in works.items():
            counted = [row["kernel"] for row in rows.get(name, ())]
            if work.kernels != counted:
                raise RuntimeError(f"the part {name} launches {work.kernels}, of which {counted} were counted")
        found: dict[str, Any] = {"case": str(self), "amp": self.amp, "target": target, "ceiling": H100.name}
        found["parts"] = {name: summary(works[name], rows.get(name, []), self.amp) for name in ordered(works)}
        found["plain"] = {}
        if plain:
            works = self.count_plain()
            found["plain"] = {name: summary(works[name], [], "fp32") for name in ordered(works)}
        return found


CHOICES = (
    "crop_start",
    "crop_length",
    "shift",
    "reverse",
    "centre",
    "pose",
    "jitter",
    "jittered",
    "flip",
    "noise_std",
    "filter_sigma",
    "filter_gain",
    "axis_scale",
)


def update_row(group: UpdateGroup, *, scaled: bool) -> dict[str, Any]:
    """Counts of a launch of `kernels.update`: the interpreter would take hours over the paper's encoder. Of smaller
    ones it counts the same (tests/test_update_kernel.py)."""
    numbers, half = sum(group.counts), group.gradient_dtype.itemsize
    copies = 2 if group.gradient_dtype != torch.float32 else 0
    table, settings = 8 * (4 + copies) * group.programs, 4 * (2 + scaled)
    load, store = numbers * (3 * 4 + half), numbers * (3 * 4 + copies * half)
    first_touch = load + store + table + settings
    return {
        "kernel": "_update_kernel",
        "programs": group.programs,
        "load_bytes": load + table + settings * group.programs,
        "store_bytes": store,
        "first_touch_bytes": first_touch,
        "flops": 0,
        "exponentials": 0,
        "seconds_at_least": first_touch / H100.memory,
    }


def ordered(works: Mapping[str, Any]) -> list[str]:
    return [name for name in (REST, *PARTS) if name in works]


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within, tensors without memory are taken by Triton and by PyTorch's fused and multi-tensor code."""
    with (
        mock.patch("kernels.unavailable_reason", return_value=None),
        mock.patch("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", return_value=["cuda", "meta"]),
    ):
        yield


@contextmanager
def reference_in_parts(query: reference.Encoder, key: reference.Encoder) -> Iterator[None]:
    """Within, the functions of the plain step run as parts; by itself it names none."""
    functions = {
        "make_view": "augment",
        "attacked": "attack",
        "mc_loss_parts": "mc",
        "metrics": "mc",
        "descend": "backward",
        "ema_": "ema",
        "bank_step": "bank",
    }
    with ExitStack() as patches:
        for name, runs_as in functions.items():
            patches.enter_context(mock.patch.object(reference, name, _as_part(runs_as, getattr(reference, name))))
        for encoder, runs_as in ((query, "query"), (key, "key")):
            patches.enter_context(mock.patch.object(encoder, "forward", _as_part(runs_as, encoder.forward)))
        update = torch.optim.SGD.step
        patches.enter_context(mock.patch.object(torch.optim.SGD, "step", _as_part("optimizer", update)))
        yield


def _as_part(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def within(*args: Any, **kwargs: Any) -> Any:
        with part(name):
            return function(*args, **kwargs)

    return within


def summary(work: PartWork, rows: Sequence[Mapping[str, Any]], amp: str) -> dict[str, Any]:
    """A part's counts, and its modelled seconds."""
    return {
        "triton_launches": len(rows),
        "operators": sum(work.operators.values()),
        "by_operator": dict(work.operators),
        "load_bytes": work.load_bytes + sum(row["load_bytes"] for row in rows),
        "store_bytes": work.store_bytes + sum(row["store_bytes"] for row in rows),
        "flops": work.flops + sum(row["flops"] for row in rows),
        "recurrent": [asdict(call) for call in work.recurrent],
        "recurrent_flops": sum(call.flops for call in work.recurrent),
        "model": model(work, rows, amp),
    }


# --- The model

KINDS = ("launches", "memory", "products", "frames: launches", "frames: products", "frames: weights")
"""What a modelled time is the sum of.

launches: outside of the recurrent net, `LAUNCH` each.
memory, products: all work that is not done frame by frame, by what takes longer, its bytes or its operations.
frames: launches: in the recurrent net, `LAUNCHES_PER_FRAME` times `LAUNCH` for each frame of each layer.
frames: products, weights: of each such frame the product with the state, or reading the weights again, if that takes
longer.
"""


def model(work: PartWork, rows: Sequence[Mapping[str, Any]], amp: str) -> dict[str, float]:
    """Seconds by ``KINDS``, on an H100 that does one thing after the other."""
    seconds = dict.fromkeys(KINDS, 0.0)
    seconds["launches"] = LAUNCH * (len(rows) + sum(work.operators.values()))
    _add_longer(seconds, (work.load_bytes + work.store_bytes) / H100.memory, work.flops / PEAK[amp])
    for row in rows:
        _add_longer(seconds, row["first_touch_bytes"] / H100.memory, row["seconds_at_least"])
    for call in work.recurrent:
        for kind, value in recurrent_seconds(call, amp).items():
            seconds[kind] += value
    return seconds


def _add_longer(seconds: dict[str, float], memory: float, products: float) -> None:
    seconds["memory" if memory >= products else "products"] += max(memory, products)


def recurrent_seconds(call: RecurrentCall, amp: str) -> dict[str, float]:
    """Of one pass, by ``KINDS``: layer after layer, and in each frame after frame, both directions side by side. What
    is done for all frames of a layer at once are products with its inputs, or with all gradients."""
    seconds = dict.fromkeys(KINDS, 0.0)
    frames, of_frame = call.layers * call.frames, frame_seconds(call, amp)
    seconds["frames: launches"] = frames * LAUNCHES_PER_FRAME * LAUNCH
    weights = max(of_frame["weights from L2"], of_frame["weights from memory"])
    kind = "frames: products" if of_frame["products"] >= weights else "frames: weights"
    seconds[kind] = frames * max(of_frame["products"], weights)
    at_once = call.flops - frames * frame_flops(call)
    _add_longer(seconds, kept_bytes(call, amp) / H100.memory, at_once / PEAK[amp])
    return seconds


def frame_seconds(call: RecurrentCall, amp: str) -> dict[str, float]:
    """Of one frame of one layer."""
    weights = frame_weights(call, amp)
    return {
        "products": frame_flops(call) / PEAK[amp],
        "weights from L2": weights / L2 if weights <= L2_SIZE else 0.0,
        "weights from memory": weights / H100.memory if weights > L2_SIZE else 0.0,
    }


def frame_flops(call: RecurrentCall) -> int:
    """The state, or its gradient, times the recurrent weights: both directions of one layer."""
    return call.directions * 2 * call.clips * 3 * call.hidden * call.hidden


def frame_weights(call: RecurrentCall, amp: str) -> int:
    """Bytes of the recurrent weights of one layer, which every frame reads again."""
    return call.directions * 3 * call.hidden * call.hidden * AMP[amp].dtype.itemsize


def kept_bytes(call: RecurrentCall, amp: str) -> int:
    """Bytes of a pass that do not stay on the chip: weights, inputs and outputs of the layers and what the backward
    pass wants of them, each moved once."""
    rows, wide = call.clips * call.frames, call.directions * call.hidden
    numbers = 0
    for layer in range(call.layers):
        inputs = call.inputs if layer == 0 else wide
        weights = call.directions * 3 * call.hidden * (inputs + call.hidden)
        gates = SAVED_GATES * rows * wide if call.keeps or call.backward else 0
        numbers += weights + rows * (inputs + wide) + gates
        if call.backward:  # the gradients of inputs and outputs beside them, and of the weights
            numbers += rows * (inputs + wide) + weights * call.weights
    return numbers * AMP[amp].dtype.itemsize


def whole(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by ``KINDS`` of all parts, one after the other."""
    return {kind: sum(found["model"][kind] for found in parts.values()) for kind in KINDS}


def bound(seconds: Mapping[str, float]) -> str:
    return max(seconds, key=lambda kind: seconds[kind])


# --- Tables


def render(found: dict[str, Any]) -> str:
    """As markdown."""
    parts, plain = found["parts"], found["plain"]
    seconds = whole(parts)
    lines = [
        f"{found['case']}; compiled for {found['target']}.",
        "",
        table(_count_rows(parts)),
        "",
        f"{_sum(parts, 'triton_launches')} Triton launches and {_sum(parts, 'operators')} kernels of PyTorch outside "
        "of the recurrent net, without torch.compile: one an operator, and of an operator on lists of tensors as many "
        "as PyTorch's multi-tensor code launches (65,536 numbers a block, 320 blocks a launch). Operators by part:",
        "",
        *(f"- {name}: {_listed(of['by_operator'])}" for name, of in parts.items() if of["by_operator"]),
        "",
    ]
    if plain:
        lines += ["The plain reference, `fastmc.reference.step`, in float32:", "", table(_count_rows(plain)), ""]
    lines += [
        f"A MODEL, not a measurement, of an {found['ceiling']}, {found['amp']}: {_verdict(seconds)}.",
        "",
        table(_model_rows(parts)),
        "",
        *_arithmetic(found),
    ]
    if plain:
        lines += ["", f"By the same arithmetic the plain reference in fp32: {_verdict(whole(plain))}."]
    return "\n".join(lines)


def _count_rows(parts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    numbers = ("triton_launches", "operators", "load_bytes", "store_bytes", "flops", "recurrent_flops")
    total = {name: sum(of[name] for of in parts.values()) for name in numbers}
    total["recurrent"] = [call for of in parts.values() for call in of["recurrent"]]
    return [_count_row(name, of) for name, of in (*parts.items(), ("all", total))]


def _count_row(name: str, of: Mapping[str, Any]) -> dict[str, str]:
    return {
        "part": name,
        "Triton launches": str(of["triton_launches"]),
        "PyTorch kernels": f"{of['operators']:,}",
        "MB loaded": f"{of['load_bytes'] / MB:,.1f}",
        "MB stored": f"{of['store_bytes'] / MB:,.1f}",
        "GFLOP": f"{of['flops'] / 1e9:.2f}",
        "passes through the recurrent net": str(len(of["recurrent"])),
        "their GFLOP": f"{of['recurrent_flops'] / 1e9:,.1f}",
    }


def _model_rows(parts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for name, seconds in (*((name, of["model"]) for name, of in parts.items()), ("all", whole(parts))):
        rows.append(
            {"part": name, "us": _us(sum(seconds.values()))}
            | {kind: _us(seconds[kind]) for kind in KINDS}
            | {"bounded by": bound(seconds)}
        )
    return rows


def _arithmetic(found: Mapping[str, Any]) -> list[str]:
    parts, amp = found["parts"], found["amp"]
    calls = [RecurrentCall(**call) for of in parts.values() for call in of["recurrent"]]
    chain, seconds = sum(call.layers * call.frames for call in calls), whole(parts)
    flops = _sum(parts, "flops") + _sum(parts, "recurrent_flops")
    dependent = _sum(parts, "triton_launches") + _sum(parts, "operators") + LAUNCHES_PER_FRAME * chain
    others = sum(seconds.values()) - dependent * LAUNCH
    small = any(call.hidden <= SMALL for call in calls)
    by_launch = ", ".join(f"{_us(others + each * dependent)} us at {each * 1e6:g} us" for each in LAUNCHES)
    return [
        f"The arithmetic. {len(calls)} passes through the recurrent net, {chain:,} frames of a layer one after the "
        f"other, each with {LAUNCHES_PER_FRAME} dependent launches of {LAUNCH * 1e6:g} us (assumed). In a frame, both "
        "directions:",
        "",
        *(_pass(call, amp) for call in calls),
        "",
        f"All products, {flops / 1e12:.2f} TFLOP, at peak alone: {_us(flops / PEAK[amp])} us. The step, by what a "
        f"dependent launch is assumed to take: {by_launch}. Bytes of operators are taken from memory, as if nothing "
        "stayed in L2; nothing overlaps but the two directions."
        + f" cuDNN has other kernels for {SMALL} hidden units and less: this model is wrong for them."
        * small,
    ]


def _pass(call: RecurrentCall, amp: str) -> str:
    seconds = {name: value for name, value in frame_seconds(call, amp).items() if value}
    flops, weights = frame_flops(call), frame_weights(call, amp)
    at_once = (call.flops - call.layers * call.frames * flops) / 1e9
    terms = ", ".join(f"{name} {value * 1e6:.2f} us" for name, value in seconds.items())
    return (
        f"- {call.part}{', backward' * call.backward}, {call.clips} clips: {flops / 1e9:.2f} GFLOP and "
        f"{weights / MB:.1f} MB of weights, so {terms}; bounded by {bound(seconds)}. All frames at once "
        f"{at_once:,.1f} GFLOP and {kept_bytes(call, amp) / MB:,.0f} MB"
    )


LAUNCHES = (0.0, 1e-6, 1.5e-6, 3e-6)


def _sum(parts: Mapping[str, Mapping[str, Any]], what: str) -> int:
    return sum(of[what] for of in parts.values())


def _verdict(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    shares = ", ".join(f"{kind} {100 * value / total:.0f} %" for kind, value in seconds.items())
    return f"{_us(total)} us, bounded by {bound(seconds)} ({shares})"


def _listed(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(operators.items(), key=lambda item: -item[1]))


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-5 else f"{seconds * 1e6:.1f}"
