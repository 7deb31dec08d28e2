"""One run on several ranks: what N compute, against what one computes, and how such a run ends.

The ranks are processes of `many_ranks.py`, over gloo. Budgets come from one rank whose weights and gradients are moved
by one unit in the last place in each step: N ranks may be off by twice as much as the worst of some such runs, and by
four roundings of the largest number, as `kernel_budget.py` has it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from many_ranks import CASES, CLIPS, COMPILED, MUTANTS, by_an_ulp, trained
from once import made_once
from test_train import assert_same_state, command, losses, state_of

from fastmc.checkpoint import complete
from fastmc.config import load_config
from train import evaluate, run
from train.engine.record import read_metrics
from train.engine.world import World
from train.runs.evaluations import Frozen
from train.runs.load import load_run

pytestmark = [pytest.mark.slow, pytest.mark.program]
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "many_ranks.py"
SEVERAL = (2, 3)
RUNS = {"dstanet": 12}
"""Runs that are moved by an ulp, where they are not three: a unit of this net stands so near to where its rectifier
bends that of twelve such runs three pass it and nine do not, and what comes after differs a hundredfold."""
LONG = ("--epochs", "100000", "--probe-every", "0", "--checkpoint-every", "1")
GONE = "another rank of this run is gone"


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **more}


class Started:
    """Ranks that are at work; ``out`` has what each says, in saidN.txt."""

    def __init__(self, size: int, out: Path, words: Callable[[int], Sequence[str]]) -> None:
        # Held as long as this object is there: who asks for any free port meanwhile is given another one, and rank 0
        # may listen there, since this socket does not.
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        port = str(self.held.getsockname()[1])
        self.out = out
        self.processes = []
        for rank in range(size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            # Here rank 0 holds the store by which ranks meet, and torch warns of it once it is gone; torchrun keeps it.
            place |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}
            with open(out / f"said{rank}.txt", "w") as said:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(SCRIPT), *words(rank)],
                        stdout=said,
                        stderr=subprocess.STDOUT,
                        cwd=out,
                        env=environment(**place),
                    )
                )

    def said(self, rank: int) -> str:
        return (self.out / f"said{rank}.txt").read_text()

    def codes(self, patience: float = 300) -> list[int]:
        """Of all, once they have ended; an error if one hangs."""
        try:
            return [process.wait(timeout=patience) for process in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()

    def until_it_trains(self, run_folder: Path) -> None:
        until_a_checkpoint(run_folder, lambda: all(process.poll() is None for process in self.processes))


def until_a_checkpoint(run_folder: Path, goes_on: Callable[[], bool]) -> None:
    """Wait until an epoch is over and kept: a run that fails before removes all that it has written, its log too."""
    while not complete(run_folder / "checkpoints"):
        assert goes_on()
        time.sleep(0.1)


def started_run(
    size: int, out: Path, words: Sequence[str], more: Callable[[int], Sequence[str]] = lambda _: ()
) -> Started:
    out.mkdir(exist_ok=True)
    return Started(size, out, lambda rank: ["run", str(out), *words, *more(rank)])


def ran(size: int, out: Path, words: Sequence[str]) -> Started:
    """A run of train.run on so many ranks, that has ended well."""
    ranks = started_run(size, out, words)
    assert ranks.codes() == [0] * size, ranks.said(0) + ranks.said(size - 1)
    return ranks


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root that processes share."""
    return made_once(tmp_path_factory, "ranks-data", lambda folder: write_small_store(folder / "small"))


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> dict:
    """By case: one rank's run, and those that are moved by an ulp."""

    def make(folder: Path) -> None:
        found = {}
        for case in CASES:
            moves = () if case in HALF else [by_an_ulp(seed) for seed in range(1, 1 + RUNS.get(case, 3))]
            found[case] = [trained(case, root, World(), move) for move in (None, *moves)]
        torch.save(found, folder / "all.pt")

    return torch.load(made_once(tmp_path_factory, "ranks-1", make) / "all.pt")


@pytest.fixture(scope="module")
def several(root, tmp_path_factory) -> dict[int, list[dict]]:
    """By number of ranks: what each of them found."""
    found = {}
    for size in SEVERAL:

        def make(folder: Path, size: int = size) -> None:
            ranks = Started(size, folder, lambda _: ["cases", str(root), str(folder)])
            assert ranks.codes() == [0] * size, ranks.said(0)

        folder = made_once(tmp_path_factory, f"ranks-{size}", make)
        found[size] = [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]
    return found


def apart(found: dict, one: dict) -> dict[str, float]:
    """The largest differences of two runs: of a loss, a weight, and an entry of bank or queue."""
    state, want = found["state"], one["state"]
    in_bank = {name for name in want if name.startswith(("bank.", "queue"))}

    def largest(names: set[str]) -> float:
        kept = [name for name in names if want[name].is_floating_point()]
        return max(float((state[name].double() - want[name].double()).abs().max()) for name in kept)

    loss = float((found["numbers"] - one["numbers"])[:, 0].abs().max())
    return {"loss": loss, "weights": largest(set(want) - in_bank), "bank": largest(in_bank)}


def budget(runs: list[dict]) -> dict[str, float]:
    one, *moved = runs
    each = [apart(run, one) for run in moved]
    nothing = {name: torch.zeros_like(value) for name, value in one["state"].items()}
    largest = apart(one, {"state": nothing, "numbers": torch.zeros_like(one["numbers"])})
    roundings = 4 * torch.finfo(torch.float32).eps
    return {name: 2 * max(of[name] for of in each) + roundings * largest[name] for name in largest}


HALF = tuple(case for case in CASES if "--amp" in CASES[case])


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("case", [case for case in CASES if case not in HALF])
def test_n_ranks_compute_what_one_computes(case, size, alone, several):
    """Forty steps, or ten, on a full bank, of batches that N does not divide."""
    allowed = budget(alone[case])
    found = apart(several[size][0]["cases"][case], alone[case][0])
    print(f"{case}, {size} ranks:", *(f"{name} {found[name]:.2g} of {allowed[name]:.2g}" for name in found))
    assert all(found[name] <= allowed[name] for name in found), (found, allowed)
    states = [rank["cases"][case]["state"] for rank in several[size]]
    assert all(
        torch.equal(alone[case][0]["state"][name], value)
        for name, value in states[0].items()
        if not value.is_floating_point()
    )
    assert_same_state(states[0], states[-1])


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("case", HALF)
def test_half_precision_keeps_the_budget_that_it_has_on_one_rank(case, size, alone, several):
    """Of docs/step.md: losses within 2 x 2^-8, features at a cosine above 0.999. Each rank rounds its own gradient."""
    one, many = alone[case][0], several[size][0]["cases"][case]
    want, found = one["numbers"][:, 0], many["numbers"][:, 0]
    largest = float(((found - want) / want).abs().max())
    cosine = float(torch.nn.functional.cosine_similarity(many["features"], one["features"]).min())
    print(f"{case}, {size} ranks: loss {largest:.2g} of {2 * 2.0**-8:.2g}, cosine {cosine:.5f}")
    assert largest <= 2 * 2.0**-8 and cosine > 0.999


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_is_seen_in_these_numbers(mistake, size, alone, several):
    found, allowed = apart(several[size][0]["cases"][mistake], alone["b3"][0]), budget(alone["b3"])
    assert found["loss"] > 10 * allowed["loss"] and found["weights"] > 10 * allowed["weights"]


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("case", CASES)
def test_random_choices_have_the_same_bits(case, size, alone, several):
    """The order of the clips, and the views that are made of them."""
    one, ranks = alone[case][0], [rank["cases"][case] for rank in several[size]]
    counts = [rank["ids"].shape[1] for rank in ranks]
    assert sum(counts) == CLIPS and max(counts) - min(counts) == 1
    assert torch.equal(torch.cat([rank["ids"] for rank in ranks], dim=1), one["ids"])
    assert torch.equal(torch.cat([rank["views"] for rank in ranks], dim=2), one["views"])


@pytest.mark.parametrize("size", SEVERAL)
def test_frozen_features_have_the_bits_of_one_rank(size, several):
    for rank in several[size]:
        for batches in (5, 48):
            by_all, by_one = rank["together"][f"features in batches of {batches}"]
            assert torch.equal(by_all, by_one)


@pytest.mark.parametrize("size", SEVERAL)
def test_ranks_decide_together_and_find_out_who_differs(size, several):
    last = size - 1
    for rank in several[size]:
        found = rank["together"]
        assert found["agreed"] == (1, 3 * last, 0)
        assert found["same facts"] == found["equal"] == "nothing"
        assert f"rank {last} has settings.seed = 1, rank 0 has 0" in found["facts"]
        assert f"rank {last} has code.commit = def, rank 0 has abc" in found["facts"]
        assert f"rank {last} has other bits than rank 0: bank.entries. A device" in found["unequal"]
        assert (
            "ToyMethod cannot be trained on several ranks: its step never calls Batch.gather"
            in found["who gathers nothing"]
        )
    first = [bool(rank["together"]["first"]) for rank in several[size]]
    assert first == [False] + [True] * last, "rank 0 finds nothing, the others what it made"


@pytest.mark.parametrize("size", SEVERAL)
def test_compiled_steps_leave_out_what_exchanges_statistics(size, several):
    """torch.compile cannot follow an exchange; what has none is compiled all the same."""
    of_graphs, left = ["body"], {"b3": ["before", "standardised"], "lstm": [], "hcn": []}
    for rank in several[size]:
        found = rank["together"]["compiled"]
        assert {case: names for case, (names, _) in found.items()} == {
            **dict.fromkeys(COMPILED, of_graphs),
            **left,
        }
        assert all(same for _, same in found.values())


@pytest.mark.parametrize("size", SEVERAL)
def test_a_fault_of_one_rank_stops_all_at_the_same_step(size, several):
    for rank in several[size]:
        said, step, kept = rank["together"]["a fault"]
        assert said.startswith("NonFiniteError: step 8: loss = nan") and step == 9 and kept
        assert rank["together"]["an overflow"] == [256.0, 128.0, 128.0, 128.0]


# The command


@pytest.fixture(scope="module")
def pair(root, tmp_path_factory) -> Path:
    """A finished run of two ranks, out/run, with all checkpoints, and what each rank wrote."""

    def make(folder: Path) -> None:
        words = command(
            root, folder / "run", "--batch-size", str(CLIPS), "--checkpoints-kept", "9", "--check-ranks", "1"
        )
        ran(2, folder, words)

    return made_once(tmp_path_factory, "ranks-run", make)


@pytest.fixture(scope="module")
def single(root, tmp_path_factory) -> Path:
    """The same of one process."""

    def make(folder: Path) -> None:
        assert run.main(command(root, folder / "run", "--batch-size", str(CLIPS), "--checkpoints-kept", "9")) == 0

    return made_once(tmp_path_factory, "ranks-run-1", make)


def interrupted(pair: Path, tmp_path: Path) -> Path:
    """The run as it was after its second epoch."""
    out = tmp_path / "run"
    shutil.copytree(pair / "run", out)
    for step in (9, 12):
        shutil.rmtree(out / "checkpoints" / f"step_{step:09d}")
    for name in ("report.json", "curves.png", "classifier.pt"):
        (out / name).unlink()
    return out


def settings_of(root: Path, out: Path) -> list[str]:
    return command(root, out, "--batch-size", str(CLIPS), "--checkpoints-kept", "9")


def test_only_rank_0_writes_and_speaks(pair):
    assert "open" in (pair / "rank0.txt").read_text()
    assert not (pair / "rank1.txt").read_text()
    assert "2 ranks by torchrun, exchanges by gloo" in (pair / "said0.txt").read_text()
    assert not (pair / "said1.txt").read_text()


def test_the_whole_run_of_two_is_that_of_one(pair, single):
    ours, theirs = (read_metrics(folder / "run" / "metrics.csv") for folder in (pair, single))
    largest = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference of an epoch's loss: {largest:.2g}")
    assert largest < 1e-3
    assert [row.get("knn_top1") for row in ours] == [row.get("knn_top1") for row in theirs]


def test_features_that_two_ranks_kept_are_those_of_one(pair):
    loaded = load_run(pair / "run", torch.device("cpu"))
    frozen = Frozen.of(loaded.model, loaded.store, loaded.placed, loaded.config, cache_in=pair / "run")
    assert frozen.cache is not None
    entry = frozen.cache.entry
    assert np.array_equal(np.load(entry / "test.npy"), frozen.source.test().numpy())
    assert np.array_equal(np.load(entry / "train.npy"), frozen.source.train().numpy())
    assert np.array_equal(np.load(entry / "crops.npy")[1], frozen.source.crop(1).numpy())


def test_two_ranks_resume_bit_for_bit(pair, root, tmp_path):
    out = interrupted(pair, tmp_path)
    ran(2, tmp_path, [*settings_of(root, out), "--check-ranks", "1"])
    assert_same_state(state_of(out), state_of(pair / "run"))
    assert losses(out) == losses(pair / "run")


def test_two_ranks_with_dropout_resume_bit_for_bit(root, tmp_path):
    """Each drops something else, and a process that goes on has drawn nothing before."""
    more = ("--method", "skeletonclr", "--backbone", "stgcn", "--encoder", "4x8", "--blocks", "1", "1", "1", "1")
    more += ("--dropout", "0.5", "--probe-every", "0", "--linear-epochs", "1", "--linear-milestones")
    whole = tmp_path / "whole"
    whole.mkdir()
    ran(2, whole, [*settings_of(root, whole / "run"), *more])
    out = interrupted(whole, tmp_path)
    ran(2, tmp_path, [*settings_of(root, out), *more])
    assert_same_state(state_of(out), state_of(whole / "run"))


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_of_two_goes_on_with_fewer_or_more(size, pair, root, tmp_path):
    out = interrupted(pair, tmp_path)
    ran(size, tmp_path, settings_of(root, out))
    said = (tmp_path / "said0.txt").read_text()
    assert f"the checkpoint is of 2 rank(s) and goes on with {size}: the same run within rounding" in said
    largest = max(abs(a - b) for a, b in zip(losses(out), losses(pair / "run"), strict=True))
    print(f"2 ranks on {size}: largest difference of an epoch's loss {largest:.2g}")
    assert 0 < largest < 1e-3


def torchrun(out: Path, words: Sequence[str], *more: str) -> subprocess.Popen:
    """Two ranks of it at work, which say what they say to one pipe."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *more]
    return subprocess.Popen(
        [*launcher, str(SCRIPT), "run", str(out), *words],
        cwd=out,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_rank_that_is_killed_ends_the_others_with_one_line(root, tmp_path):
    words = [*command(root, tmp_path / "run", *LONG), "--rank-timeout", "60"]
    ranks = started_run(3, tmp_path, words)
    ranks.until_it_trains(tmp_path / "run")
    ranks.processes[1].kill()
    assert ranks.codes() == [1, -signal.SIGKILL, 1]
    said = "".join(ranks.said(rank) for rank in range(3))
    assert said.count(GONE) == 1 and "Traceback" not in said, said
    assert GONE in (tmp_path / "run" / "run.log").read_text(), "rank 0 has the log"


@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_is_killed_under_torchrun_is_told_in_one_line(dies, root, tmp_path):
    """Also by others than rank 0, if that is the one."""
    ranks = torchrun(tmp_path, command(root, tmp_path / "run", *LONG))
    until_a_checkpoint(tmp_path / "run", lambda: ranks.poll() is None)
    os.kill(int((tmp_path / f"rank{dies}.pid").read_text()), signal.SIGKILL)
    said, _ = ranks.communicate(timeout=300)
    assert ranks.returncode and said.count(f"error: {GONE}") == 1, said


def test_a_rank_that_hangs_is_waited_for_so_long_and_no_longer(root, tmp_path):
    words = [*command(root, tmp_path / "run", *LONG), "--rank-timeout", "20"]
    ranks = started_run(2, tmp_path, words)
    ranks.until_it_trains(tmp_path / "run")
    ranks.processes[1].send_signal(signal.SIGSTOP)
    assert ranks.processes[0].wait(timeout=120) == 1
    assert f"error: {GONE}, or did not answer for 20 s" in ranks.said(0)
    ranks.processes[1].kill()


def test_a_rank_that_is_asked_to_stop_stops_all_with_a_checkpoint(root, tmp_path):
    ranks = started_run(2, tmp_path, command(root, tmp_path / "run", *LONG))
    ranks.until_it_trains(tmp_path / "run")
    ranks.processes[1].send_signal(signal.SIGTERM)
    assert ranks.codes() == [143, 143]
    assert "the same command resumes from" in ranks.said(0) and not ranks.said(1)
    assert state_of(tmp_path / "run")["ranks"] == 2


def test_torchrun_starts_killed_ranks_again_and_they_go_on(pair, root, tmp_path):
    (tmp_path / "dies").touch()
    ranks = torchrun(tmp_path, [*settings_of(root, tmp_path / "run"), "--check-ranks", "1"], "--max-restarts", "1")
    said, _ = ranks.communicate(timeout=300)
    assert ranks.returncode == 0, said
    assert not (tmp_path / "dies").exists()
    assert said.count(f"error: {GONE}") == 1
    assert re.search(r"resuming from .*step_000000006", said)
    ours, theirs = (state_of(folder) for folder in (tmp_path / "run", pair / "run"))
    assert_same_state(ours, theirs)


def test_a_rank_with_another_seed_is_named_and_nothing_is_written(root, tmp_path):
    words = command(root, tmp_path / "run")
    ranks = started_run(2, tmp_path, words, lambda rank: ("--seed", "1") if rank else ())
    assert ranks.codes() == [1, 1]
    assert "rank 1 has settings.seed = 1, rank 0 has 0" in ranks.said(0) and not ranks.said(1)
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_is_said_once(root, tmp_path):
    """Of the command line, of the settings, of one rank alone."""
    for wrong, says in ((("--no-such", "1"), "no-such"), (("--batch-size", "1"), "one clip for each of 2 ranks")):
        ranks = started_run(2, tmp_path, command(root, tmp_path / "run", *wrong))
        assert all(ranks.codes())
        assert says in ranks.said(0) and not ranks.said(1)
    words = command(root, tmp_path / "run")
    ranks = started_run(2, tmp_path, words, lambda rank: ("--data-root", "elsewhere") if rank else ())
    assert ranks.codes() == [1, 1]
    assert "error: rank 1: there is no dataset 'small'" in ranks.said(0) and not ranks.said(1)
    assert not (tmp_path / "run").exists()


def test_other_commands_are_for_one_process(pair, monkeypatch, capsys):
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "h"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert evaluate.main(["knn", "--run", str(pair / "run")]) == 1
    assert "torchrun is for train.run" in capsys.readouterr().err


def test_a_run_says_how_many_ranks_it_had(pair):
    assert state_of(pair / "run")["ranks"] == 2
    assert '"ranks": 2' in (pair / "run" / "environment.json").read_text()
    assert load_config(pair / "run").step.check_ranks == 1
