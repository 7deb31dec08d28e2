"""The sections, in order of worth, and what share of the time each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """Attributes:
    module: its function ``run`` is given a `bench.gpu.section.Bench`.
    share: its part of the time, relative to the others; what one leaves goes to those after it.
    least: seconds below which it is not begun.
    """

    letter: str
    title: str
    module: str
    share: float
    least: float = 10.0


SECTIONS = (
    Section("a", "Versions, and every kernel against float64", "bench.gpu.smoke", 70),
    Section("b", "tests/gpu", "bench.gpu.suite", 160),
    Section("c", "The two ceilings of this card", "bench.gpu.ceilings", 20, least=15),
    Section("d", "Every kernel at the product's size", "bench.gpu.kernel_times", 75),
    Section("e", "Loss and bank step by every provider", "bench.gpu.losses", 50),
    Section("f", "The whole step, and the recurrent calls alone", "bench.gpu.steps", 100),
    Section("g", "Views against numpy workers", "bench.gpu.view_race", 20),
    Section("h", "Training on data of NTU-60's size through the command line", "bench.gpu.training", 130),
    Section("i", "A trace of some steps", "bench.gpu.trace", 40),
)
