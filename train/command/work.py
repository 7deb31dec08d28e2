"""How long runs take, one against the other, so that the longest can begin first."""

from __future__ import annotations

from fastmc.config import Config
from fastmc.encoders.bigru import BiGRUConfig

PASSES = {"b1": 4}
"""A clip's passes through an encoder in a step, a backward pass counted as two: one key and one query of B1."""
OTHERS = 12
"""Of other methods: one key, three queries, and the attack's way there and back. B1 is measured at a third of them."""


def work_of(config: Config, clips: int) -> float:
    """Frames that a run takes through its encoder, times the weights of a GRU's layer. No time, and only to be compared
    with others of the same data layout: evaluation, bank, and the size of an encoder of another kind are left out.

    Args:
        config: settings that are fitted to the set (`fastmc.budget.fitted`).
        clips: that it trains on.
    """
    steps = config.optim.epochs * max(1, clips // config.optim.batch_size)
    layers, hidden = config.encoder.size if isinstance(config.encoder, BiGRUConfig) else (1, 1)
    frames = steps * config.optim.batch_size * config.frames
    return frames * PASSES.get(config.method, OTHERS) * layers * hidden**2
