"""What ranks exchange, counted, against formulas; and the bench of two ranks on this machine."""

from __future__ import annotations

import re

import pytest

from bench.ledger_step import TrainingStep
from bench.providers import Case
from bench.ranks import Exchange, RanksBench, exchanges_of, main, timed

pytestmark = pytest.mark.slow
WIDTH, DIM = 150, 128
"""Numbers of a frame of two bodies of 25 joints, and of a feature."""


@pytest.mark.compiler
@pytest.mark.parametrize(("batch", "ranks", "most"), [(64, 2, 32), (64, 3, 22)])
def test_bytes_of_a_step_are_those_of_norms_features_and_gradients(batch, ranks, most):
    """A view's count, means and squares; four features of a rank's clips; every weight that learns, in float32."""
    key, query, features, gradients = exchanges_of(batch, ranks)
    assert key.bytes == 4 * (2 * WIDTH + 1) and query.bytes == 3 * key.bytes
    assert features.bytes == 4 * 4 * most * DIM
    config = TrainingStep(Case(batch=batch)).network
    layers, hidden = config.size
    gru = sum(2 * 3 * hidden * ((WIDTH if n == 0 else 2 * hidden) + hidden + 2) for n in range(layers))
    head = 2 * hidden * (2 * hidden + 1) + (2 * hidden + 1) * DIM
    assert gradients.bytes == 4 * (gru + head + 2 * WIDTH)


def test_what_a_ring_sends():
    gather, total = Exchange("", "gather", 100), Exchange("", "sum", 100)
    assert [gather.sent(n) for n in (1, 2, 4)] == [0, 100, 300]
    assert [total.sent(n) for n in (1, 2, 4)] == [0, 100, 150]
    assert gather.seconds(1) == 0 and total.seconds(8) > 175 / 450e9


@pytest.mark.program
def test_one_and_two_ranks_are_timed_in_turns():
    said = timed(RanksBench(time=True, preset="tiny", rounds=2, steps=1))
    assert re.match(r"preset tiny, 1 rank \d+ ms a step, 2 ranks \d+ ms, one thread each: [\d.]+ times as fast", said)
    with pytest.raises(SystemExit):
        main(["--ranks", "0"])
