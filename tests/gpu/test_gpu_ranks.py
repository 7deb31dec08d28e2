"""Ranks on GPUs: NCCL where each has a device of its own, gloo by way of the host where they share one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from many_ranks import OF_GPUS
from on_gpu import needs_gpu
from once import made_once
from test_ranks import LONG, Started, ran, settings_of, started_run, state_of
from test_train import assert_same_state

pytestmark = [needs_gpu, pytest.mark.gpu, pytest.mark.slow, pytest.mark.program]
needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL refuses two ranks on one device"
)
LIMIT = {"a2mc": 1e-2, "toy method": 1e-4}
"""Of a loss, relatively; of half precision 2 x 2^-8, as on one rank."""


def on_gpus(size: int, root: Path, factory: pytest.TempPathFactory) -> list[dict]:
    def make(folder: Path) -> None:
        ranks = Started(size, folder, lambda _: ["gpu", str(root), str(folder)])
        assert ranks.codes() == [0] * size, ranks.said(0)

    folder = made_once(factory, f"gpu-ranks-{size}", make)
    return [torch.load(folder / f"rank{rank}.pt", map_location="cpu") for rank in range(size)]


@pytest.mark.parametrize("case", OF_GPUS)
def test_two_ranks_compute_what_one_computes(case, data_root, tmp_path_factory):
    """On two GPUs over NCCL; on one, which both share, over gloo."""
    (one,), two = on_gpus(1, data_root, tmp_path_factory), on_gpus(2, data_root, tmp_path_factory)
    assert ("NCCL" if torch.cuda.device_count() > 1 else "gloo") in two[0]["says"]
    want, found = one["cases"][case]["numbers"][:, 0], two[0]["cases"][case]["numbers"][:, 0]
    largest = float(((found - want) / want).abs().max())
    print(f"{case}: {largest:.2g}")
    assert largest <= LIMIT.get(case, 2 * 2.0**-8)
    assert_same_state(two[0]["cases"][case]["state"], two[1]["cases"][case]["state"])


def test_ranks_that_share_a_gpu_say_why_no_graph_is_captured(data_root, tmp_path_factory):
    two = on_gpus(2, data_root, tmp_path_factory)
    if torch.cuda.device_count() > 1:
        assert two[0]["graph"][0] == "on"
    else:
        assert two[0]["graph"] == ("off", "gloo carries the exchanges of these ranks by way of the host")


@needs_two
def test_a_captured_step_with_its_exchanges_is_the_step_launch_by_launch(data_root, tmp_path):
    """Whole runs of two ranks, bit for bit; the log says that the step was captured."""
    for name, graph in (("captured", "on"), ("launched", "off")):
        (tmp_path / name).mkdir()
        words = settings_of(data_root, tmp_path / name / "run")
        words[words.index("cpu")] = "cuda"
        ran(2, tmp_path / name, [*words, "--cuda-graph", graph, "--check-ranks", "1"])
    said = (tmp_path / "captured" / "said0.txt").read_text()
    assert "CUDA graph on (the whole step)" in said and "cannot be captured" not in said
    ours, theirs = ({**state_of(tmp_path / name / "run"), "config": None} for name in ("captured", "launched"))
    assert_same_state(ours, theirs)


@needs_two
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ranks_that_are_asked_to_stop_end_within_seconds(number, data_root, tmp_path):
    """NCCL's communicator waits for ever at its end for a graph that holds its exchanges."""
    words = settings_of(data_root, tmp_path / "run")
    words[words.index("cpu")] = "cuda"
    ranks = started_run(2, tmp_path, [*words, *LONG, "--cuda-graph", "on"])
    ranks.until_it_trains(tmp_path / "run")
    os.kill(ranks.processes[0].pid, number)
    assert ranks.codes(30) == [128 + number] * 2, ranks.said(0)
    assert "cannot be captured" not in ranks.said(0)


@needs_two
def test_a_rank_that_is_killed_ends_the_other_while_its_graph_waits(data_root, tmp_path):
    """The other one's device is in the middle of a captured exchange then."""
    words = settings_of(data_root, tmp_path / "run")
    words[words.index("cpu")] = "cuda"
    ranks = started_run(2, tmp_path, [*words, *LONG, "--cuda-graph", "on", "--rank-timeout", "20"])
    ranks.until_it_trains(tmp_path / "run")
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    assert ranks.codes(90) == [1, -signal.SIGKILL], ranks.said(0)
