"""Graph and transformer encoders of a CPU against their released codes' way, and their products alone:
python -m bench.encoders --help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.machine import conditions, provenance
from bench.measure import Timing, Turns, quotient, times
from bench.ntu_like import WITH_TWO
from bench.parity import ParityError
from bench.plain_encoders import plain
from fastmc.checks import check_number
from fastmc.encoders import find_encoder
from fastmc.encoders.base import ClipShape, Encoder
from fastmc.skeleton import NTU25
from train.engine.host_memory import keep_freed_memory

FASTMC, RELEASED, PRODUCTS = "fastmc", "released", "its products"
BUDGET = 1e-8
"""Of the largest number of a result, in float64."""
PRODUCT_OPS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


@dataclass(frozen=True)
class CompareEncoder(Timing):
    """Time an encoder's way forward and back to its weights on a CPU, in turns: fastmc, the released code's way, and
    fastmc's products alone."""

    encoder: str = "stgcn"
    """stgcn, dstanet or agcn, at its published size."""
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
    compare(*(call() for call in ways(replace(settings, batch=4, frames=16), torch.float64).values()))
    turns = Turns(settings)
    calls = ways(settings)
    turns.enter(RELEASED, calls[RELEASED])
    turns.enter(FASTMC, calls[FASTMC])
    with Recorded() as recorded:
        calls[FASTMC]()
    turns.enter(PRODUCTS, lambda: [product() for product in recorded.calls] and None)
    return turns


def ways(settings: CompareEncoder, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], list[Tensor]]]:
    """By name, on the same clips and weights, in training mode."""
    torch.manual_seed(0)
    cls: type[Encoder] = find_encoder(settings.encoder)
    encoder = cls(cls.Config(), ClipShape(NTU25.num_joints, 2, settings.frames, NTU25.parents)).to(dtype).train()
    released, x = plain(encoder).to(dtype).train(), clips(settings.batch, settings.frames).to(dtype)
    return {
        RELEASED: way_and_back(released, released, x),
        FASTMC: way_and_back(encoder, lambda x: encoder.body(x, 1), x),
    }


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
    ratio = quotient(turns.found, RELEASED, FASTMC)
    share = quotient(turns.found, PRODUCTS, FASTMC)
    assert ratio is not None and share is not None
    print(f"released over fastmc: {ratio[0]:.2f}x [{ratio[1]:.2f}-{ratio[2]:.2f}]; products: {share[0]:.0%} of it")
    print("kept for the way back: " + ", ".join(f"{name} {size:.0f} MB" for name, size in kept.items()))
    print(conditions(provenance(settings.device, settings.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
