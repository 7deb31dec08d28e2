"""The GRU of a CPU against nn.GRU and its own matrix products, on what a training step asks of it:
python -m bench.recurrent --help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from torch import Tensor, nn

from bench.machine import conditions, provenance
from bench.measure import Timing, Turns, quotient, times
from bench.parity import ParityError
from bench.products import Backwards, of_recurrent_net
from fastmc.checks import check_number
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.encoders.recurrent import SequenceGRU
from kernels import cpu

FASTMC, PYTORCH, PRODUCTS = "fastmc", "nn.GRU", "its products"
BACKWARDS: dict[str, Backwards] = {"query": "to weights", "key": "not", "attack": "to inputs"}
PASSES = {"query": "3B clips and back", "key": "B clips", "attack": "B clips and back to them"}
ROUNDINGS = 64
"""Roundings that a result may be off by, in the scale of its largest number: one a frame, for T = 64."""


@dataclass(frozen=True)
class CompareGRU(Timing):
    """Time the recurrent net's passes of a training step on a CPU, in turns: fastmc, nn.GRU, and the products alone."""

    encoder: str = "1x128"
    """Layers x hidden units; the default, with the next two, is preset tiny."""
    batch: int = 32
    """B, clips."""
    frames: int = 32
    """T."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "frames"):
            check_number(name, getattr(self, name), at_least=1)
        _ = BiGRUConfig(self.encoder).size


class PlainGRU(nn.GRU):
    """The same by PyTorch alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        final = super().forward(x)[1]
        return torch.cat((final[-2], final[-1]), dim=-1)


def passes(net: nn.Module, x: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    """By ``PASSES``, on 3B clips (3B, T, F): final states, and gradients of the weights or of the clips."""
    batch = len(x) // 3
    upstream = x.new_ones(len(x), 1)
    weights = list(net.parameters())

    def query() -> list[Tensor]:
        y = net(x)
        return [y.detach(), *torch.autograd.grad(y, weights, upstream.expand_as(y))]

    def key() -> list[Tensor]:
        with torch.no_grad():
            return [net(x[:batch])]

    def attack() -> list[Tensor]:
        net.requires_grad_(False)
        clips = x[:batch].clone().requires_grad_()
        y = net(clips)
        found = [y.detach(), *torch.autograd.grad(y, clips, upstream[:batch].expand_as(y))]
        net.requires_grad_()
        return found

    return {"query": query, "key": key, "attack": attack}


def race(settings: CompareGRU, inputs: int = 150) -> Turns:
    """All passes by both, ready to be timed; those of nn.GRU are the truth.

    Raises:
        ParityError: they differ.
    """
    turns = Turns(settings)
    layers, hidden = BiGRUConfig(settings.encoder).size
    torch.manual_seed(0)
    plain = PlainGRU(inputs, hidden, layers, batch_first=True, bidirectional=True)
    ours = SequenceGRU(inputs, hidden, layers)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3 * settings.batch, settings.frames, inputs)
    theirs = passes(plain, x)
    for name, call in passes(ours, x).items():
        as_in_a_step = cpu.one_thread_for_operators()(call)
        turns.enter(f"{name}, {PYTORCH}", theirs[name])
        turns.enter(f"{name}, {FASTMC}", as_in_a_step, check=partial(compare, theirs[name]()))
        clips = settings.batch * (3 if name == "query" else 1)
        alone = of_recurrent_net(clips, settings.frames, inputs, hidden, layers, BACKWARDS[name])
        turns.enter(f"{name}, {PRODUCTS}", alone)
    return turns


def compare(truth: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest share of the budget that a result uses; ParityError if it is more than all."""
    eps = ROUNDINGS * torch.finfo(torch.float32).eps
    worst = max(float((a - b).abs().max() / (eps * b.abs().max())) for a, b in zip(found, truth, strict=True))
    if not worst <= 1:
        raise ParityError(f"the two GRUs differ by {worst:.1f} times the budget, so there are no numbers")
    return worst


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(CompareGRU, prog="python -m bench.recurrent", args=args)
    turns = race(settings)
    title = f"BiGRU {settings.encoder}, B = {settings.batch}, T = {settings.frames}"
    turns.run(title, progress=sys.stderr.isatty())
    print(times(title, turns.found, turns.others_busy))
    for name, says in PASSES.items():
        ratio = quotient(turns.found, f"{name}, {PYTORCH}", f"{name}, {FASTMC}")
        assert ratio is not None
        print(f"{name} ({says}): {ratio[0]:.2f}x [{ratio[1]:.2f}-{ratio[2]:.2f}]")
    sides = (PYTORCH, FASTMC, PRODUCTS)
    plain, ours, alone = (sum(turns.found[f"{name}, {one}"].median for name in PASSES) for one in sides)
    print(f"all three: {plain / ours:.2f}x; {ours / alone:.2f} times the time of their products")
    print(conditions(provenance(settings.device, settings.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
