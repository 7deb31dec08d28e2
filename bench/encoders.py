"""Encoders on a CPU against their released codes' way, compiled, and their products alone:
python -m bench.encoders --help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.machine import conditions, provenance
from bench.measure import Timing, Turns, quotient, times
from bench.ntu_like import WITH_TWO
from bench.parity import ParityError
from bench.plain_encoders import KINDS, plain
from fastmc.checks import check_number
from fastmc.encoders import find_encoder
from fastmc.encoders.base import ClipShape, Encoder
from fastmc.skeleton import NTU25
from train.engine.host_memory import keep_freed_memory

FASTMC, RELEASED, COMPILED, PRODUCTS = "fastmc", "released", "compiled", "its products"
BUDGET = 1e-8
"""Of the largest number of a result, in float64."""
PRODUCT_OPS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
Kind = Literal["stgcn", "dstanet", "agcn", "hcn", "lstm", "s2s"]


@dataclass(frozen=True)
class CompareEncoder(Timing):
    """Time an encoder's way forward and back to its weights on a CPU, in turns: fastmc, the released code's way where
    that is another, and fastmc's products alone."""

    encoder: Kind = "stgcn"
    """Its kind, at its published size. hcn, lstm and s2s are made of the operators of their released codes; of bigru
    see bench.recurrent."""
    compile: bool = False
    """Beside them fastmc compiled by torch.compile, which on a CPU computes every absent body."""
    batch: int = 64
    """B, clips of two bodies, of which the second is there in 11 of 60, as in NTU-60."""
    frames: int = 64
    """T."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "frames"):
            check_number(name, getattr(self, name), at_least=1)


class Recorded(TorchDispatchMode):
    """Notes the products that are made, to make them again: what they cost alone.

    Attributes:
        calls: each with its operands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCT_OPS:
            self.calls.append(partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def clips(batch: int, frames: int) -> Tensor:
    """(B, 3, T, V, 2), with a second body in every 60 / 11-th."""
    x = torch.randn(batch, 3, frames, NTU25.num_joints, 2, generator=torch.Generator().manual_seed(0))
    x[: batch - round(batch * WITH_TWO), ..., 1] = 0
    return x


def way_and_back(network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], list[Tensor]]:
    """Representations and the gradient of the weights, as one call."""
    weights = [p for name, p in network.named_parameters() if not name.startswith("head.")]

    def call() -> list[Tensor]:
        y = forward(x)
        found = torch.autograd.grad(y, weights, torch.ones_like(y))
        return [y.detach(), torch.stack([g.norm() for g in found]).norm()]

    return call


def kept_bytes(call: Callable[[], Any]) -> int:
    """Memory that the way forward keeps for the way back."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


def race(settings: CompareEncoder) -> Turns:
    """All ways, ready to be timed; the released one is the truth.

    Raises:
        ParityError: they differ.
    """
    keep_freed_memory()
    small = [call() for call in ways(replace(settings, batch=4, frames=16), torch.float64).values()]
    if len(small) > 1:
        compare(*small)
    turns = Turns(settings)
    calls = ways(settings)
    for name, call in calls.items():
        turns.enter(name, call)
    if settings.compile:
        turns.enter(COMPILED, compiled(settings), compiles=True)
    with Recorded() as recorded:
        calls[FASTMC]()
    products = recorded.calls or products_of_lstm(settings)
    turns.enter(PRODUCTS, lambda: [product() for product in products] and None)
    return turns


def products_of_lstm(settings: CompareEncoder) -> list[Callable[[], Any]]:
    """Those that one call of nn.LSTM, which is one operator, cannot do without."""
    encoder = new(settings, torch.float32)
    network = next(part for part in encoder.modules() if isinstance(part, nn.LSTM))
    batch, frames, hidden = settings.batch, settings.frames, network.hidden_size
    found: list[Callable[[], Any]] = []
    for weights in network.all_weights:
        of_input, of_state = weights[0].detach(), weights[1].detach()
        x, state = torch.randn(batch * frames, of_input.shape[1]), torch.randn(batch, hidden)
        states, gates = torch.randn(batch * frames, hidden), torch.randn(batch * frames, 4 * hidden)
        found += [partial(torch.mm, x, of_input.T), partial(torch.mm, gates.T, x), partial(torch.mm, gates.T, states)]
        found += [partial(torch.mm, state, of_state.T), partial(torch.mm, gates[:batch], of_state)] * frames
        if of_input.shape[1] != encoder.shape.width:  # of a deeper layer
            found.append(partial(torch.mm, gates, of_input))
    return found


def ways(settings: CompareEncoder, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], list[Tensor]]]:
    """By name, on the same clips and weights, in training mode."""
    encoder, x = new(settings, dtype), clips(settings.batch, settings.frames).to(dtype)
    found = {}
    if type(encoder) in KINDS:
        released = plain(encoder).to(dtype).train()
        found[RELEASED] = way_and_back(released, released, x)
    found[FASTMC] = way_and_back(encoder, encoder.represent, as_views(x))
    return found


def compiled(settings: CompareEncoder) -> Callable[[], list[Tensor]]:
    """fastmc's way as --compile on has it."""
    encoder, x = new(settings, torch.float32), clips(settings.batch, settings.frames)
    encoder.compile_around()
    return way_and_back(encoder, encoder.represent, as_views(x))


def new(settings: CompareEncoder, dtype: torch.dtype) -> Encoder:
    torch.manual_seed(0)
    cls: type[Encoder] = find_encoder(settings.encoder)
    return cls(cls.Config(), ClipShape(NTU25.num_joints, 2, settings.frames, NTU25.parents)).to(dtype).train()


def as_views(x: Tensor) -> Tensor:
    """(B, 3, T, V, M) as views are: (B, T, V * M * 3)."""
    return x.permute(0, 2, 3, 4, 1).flatten(2).contiguous()


def compare(truth: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """ParityError if results in float64 differ: in float32 ten blocks would hide much."""
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True))
    if not worst <= BUDGET:
        raise ParityError(f"the two encoders differ by {worst:.0e} of the largest number, so there are no numbers")


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(CompareEncoder, prog="python -m bench.encoders", args=args)
    kept = {name: kept_bytes(call) / 1e6 for name, call in ways(settings).items()}
    turns = race(settings)
    title = f"{settings.encoder}, B = {settings.batch}, T = {settings.frames}, forward and back"
    turns.run(title, progress=sys.stderr.isatty())
    print(times(title, turns.found, turns.others_busy))
    for other in (RELEASED, COMPILED):
        if ratio := quotient(turns.found, other, FASTMC):
            print(f"{other} over fastmc: {ratio[0]:.2f}x [{ratio[1]:.2f}-{ratio[2]:.2f}]")
    if share := quotient(turns.found, PRODUCTS, FASTMC):
        print(f"products: {share[0]:.0%} of fastmc's time")
    print("kept for the way back: " + ", ".join(f"{name} {size:.0f} MB" for name, size in kept.items()))
    print(conditions(provenance(settings.device, settings.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
