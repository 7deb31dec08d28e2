"""HiCo: its loss and its banks against the numbers of the authors' code, its step, its runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from golden import golden, near, needs_golden
from tape import READS, SHAPED_BY_DATA, Tape, TapeRecorder
from test_backbones import as_on_a_gpu as as_on_a_gpu  # fixtures
from test_backbones import no_onednn as no_onednn
from test_step import batch, same
from test_train import advance, assert_same_state, command, errors, start, state_of
from torch.nn import functional as F

import fastmc
from fastmc import checkpoint
from fastmc.build import build_model
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.methods.base import Batch, Found
from fastmc.methods.fifo import Fifo
from fastmc.methods.hico import Features, HiCo, Projectors, hico_losses
from fastmc.state import RunState
from train import export, run
from train.command.parse import parse
from train.engine.graph import WARM_UP
from train.engine.loop import Pretraining, build_step, graph_step
from train.engine.step import NonFiniteError

OWN = ("--method", "hico", "--backbone", "s2s", "--encoder", "8", "--levels", "2", "--heads", "2", "--head-width", "6")
RULES = pytest.mark.parametrize("restart", [None, "K"], ids=["all", "first"])
slow = pytest.mark.slow


@needs_golden
@pytest.mark.parametrize("impl", ["reference", "torch", "cpp"])
def test_the_loss_its_terms_and_its_gradients(impl):
    found = golden("HiCo_loss")
    raw = {name: found[f"raw_query_{name}"].requires_grad_() for name in Features._fields}
    units = {name: F.normalize(tensor, dim=-1) for name, tensor in raw.items()}
    for tensor in units.values():
        tensor.retain_grad()
    query = Features(**units)._replace(clip=units["clip"][:, 0], part=units["part"][:, 0])
    key = Features(*(F.normalize(found[f"raw_key_{name}"], dim=-1) for name in Features._fields))
    bank = {name: found[f"bank_{name}"] for name in Features._fields}
    losses, gradients = hico_losses(query, key, bank, float(found["temperature"]), impl=impl)
    assert losses.dtype == torch.float64 and losses.shape == (5,)
    near(losses, torch.stack([found[f"loss_{name}"] for name in Features._fields]), 1e-9)
    near(losses.sum(), found["loss"], 1e-9)
    torch.autograd.backward(query, gradients)
    for name in Features._fields:
        near(raw[name].grad, found[f"grad_raw_{name}"], 1e-6)
        near(units[name].grad, found[f"grad_unit_{name}"], 1e-6)


@needs_golden
@RULES
def test_what_the_banks_are_after_a_step(restart):
    """That step ends before K, where both rules are one."""
    found = golden("HiCo_loss")
    size = len(found["bank_temporal"])
    for n, name in enumerate(Features._fields[:2]):
        before = found[f"bank_{name}"]
        bank = Fifo(len(before), before.shape[1], size if restart else None).double()
        bank.entries.copy_(before)
        bank.cursor.fill_(int(found["pointer_before"][n]))
        write(bank, F.normalize(found[f"raw_key_{name}"], dim=-1).flatten(0, 1))
        near(bank.entries, found[f"bank_after_{name}"], 1e-9)
        assert bank.cursor == found["pointer_after"][n]


@needs_golden
@RULES
def test_forty_writes_of_both_rules(restart):
    found = golden("HiCo_bank_pointer")
    entries, size = int(found["bank_entries"]), int(found["K"])
    count = int(found["batch"]) * int(found["granularities"])
    bank = Fifo(entries, 2, size if restart else None)
    before, cursors = bank.entries.clone(), []
    for n in range(int(found["steps"])):
        write(bank, torch.full((count, 2), 10.0 + n))
        cursors.append(int(bank.cursor))
    replaced = (bank.entries != before).any(1)
    if restart:
        assert cursors == found["pointer_of_clip_bank"].tolist()
        assert torch.equal(replaced, found["entry_was_replaced"].bool()) and 0 < replaced.sum() < entries
    else:
        assert cursors == [count * (n + 1) % entries for n in range(len(cursors))] and replaced.all()


def write(bank: Fifo, new: torch.Tensor) -> None:
    for buffer, value in bank.writes(new):
        buffer.copy_(value)


def test_of_more_rows_than_a_bank_has_the_last_stay():
    bank = Fifo(3, 1)
    write(bank, torch.arange(1.0, 3)[:, None])
    write(bank, torch.arange(3.0, 8)[:, None])  # 3 goes to the third row, 4 to the first
    assert bank.entries.flatten().tolist() == [7, 5, 6] and bank.cursor == 1


def test_the_first_level_is_the_same_alone():
    torch.manual_seed(0)
    projectors, h = Projectors(6, 3, 4), torch.randn(5, 2 * 3 * 6)
    whole, first = projectors(h, 3), projectors(h, 1)
    assert whole["clip"].shape == (5, 3, 4) and first["part"].shape == (5, 1, 4)
    assert torch.allclose(whole["clip"][:, :1], first["clip"]) and torch.allclose(whole["part"][:, :1], first["part"])
    assert torch.equal(whole["temporal"], first["temporal"])


def one_step(pretraining: Pretraining, phase: str) -> tuple[torch.Tensor, Found]:
    """Views of twelve clips, and what the method finds in them."""
    model, sample = pretraining.model, torch.arange(12)
    batch = Batch(model.setup, model.views, pretraining.data.select(sample), sample, 3)
    followers = {name: network for name, (network, _) in model.followers().items()}
    return batch.x, model.step(batch, model.learners() | followers, phase)


@slow
def test_a_step_is_that_of_the_equations(data_root, tmp_path):
    """Clip by clip, number by number, from the networks' own parts."""
    pretraining = start(data_root, tmp_path / "run", *OWN)
    model = pretraining.model
    assert isinstance(model, HiCo)
    with torch.no_grad():
        for network, _ in model.followers().values():  # begins as a copy
            for weight in network.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    (of_key, of_query), found = one_step(pretraining, "main")

    def parts(encoder: torch.nn.Module, projectors: Projectors, x: torch.Tensor) -> list[dict]:
        """By clip: the units, of clip and part a list of levels."""
        rows = []
        for h in encoder.represent(x):
            level = [h[8 * n : 8 * n + 8] for n in range(4)]
            rows.append(
                {
                    "clip": [projectors.clip(v) for v in level[:2]],
                    "part": [projectors.part(v) for v in level[2:]],
                    "temporal": [projectors.temporal(h[:16])],
                    "spatial": [projectors.spatial(h[16:])],
                    "instance": [encoder.head(h)],
                }
            )
        return [{k: [(f / f.norm()).tolist() for f in fs] for k, fs in row.items()} for row in rows]

    def dot(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    queries, keys = parts(model.query, model.projectors, of_query), parts(model.key, model.key_projectors, of_key)
    banks = {name: bank.entries.tolist() for name, bank in model.bank.items()}
    pairs = {name: name for name in Features._fields} | {"temporal": "spatial", "spatial": "temporal"}
    wanted = dict.fromkeys(pairs, 0.0)
    for query, key in zip(queries, keys, strict=True):
        for name, other in pairs.items():
            positive = [math.exp(dot(query[name][0], k) / 0.2) for k in key[other]]
            negative = [math.exp(dot(query[name][0], m) / 0.2) for m in banks[other]]
            wanted[name] -= math.log(sum(positive) / (sum(positive) + sum(negative))) / len(queries)
    numbers = model.measure(found.seen)
    assert [metric.name for metric in model.metrics[1:6]] == [f"l_{name}" for name in wanted]
    near(numbers[1:6], torch.tensor(list(wanted.values())), 1e-5)
    near(numbers[0], torch.tensor(sum(wanted.values())), 1e-5)
    assert torch.equal(found.loss, numbers[0])

    after = {id(buffer): value for buffer, value in found.writes}
    for name, bank in model.bank.items():  # rows clip by clip, level by level
        rows = torch.tensor([row for key in keys for row in key[name]])
        near(after[id(bank.entries)][: len(rows)], rows, 1e-5)
        assert torch.equal(after[id(bank.entries)][len(rows) :], bank.entries[len(rows) :])
        assert after[id(bank.cursor)] == len(rows)


@slow
def test_banks_keys_and_projectors_move_and_an_undone_step_moves_nothing(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *OWN, "--lr", "0.01")
    state = pretraining.model.state_dict()

    def clones() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in state.items()}

    fresh = clones()
    assert torch.equal(state["query.head.0.weight"], state["key.head.0.weight"])
    assert {len(state[f"bank.{name}.entries"]) for name in ("clip", "part")} == {32}
    assert {len(state[f"bank.{name}.entries"]) for name in Features._fields[2:]} == {16}
    advance(pretraining, 3)
    before = clones()
    assert all(not torch.equal(before[name], fresh[name]) for name in state if not name.endswith("cursor"))
    assert [int(state[f"bank.{name}.cursor"]) for name in Features._fields] == [16, 16, 8, 8, 8]
    with torch.no_grad():
        for weight in pretraining.model.projectors.parameters():
            weight.mul_(math.nan)
    advance(pretraining, 1)
    with pytest.raises(NonFiniteError, match=r"L clip = nan.*left as before"):
        pretraining.stepper.check()
    assert all(torch.equal(before[name], state[name]) for name in state if not name.startswith("projectors"))


@slow
def test_the_released_rule_leaves_rows_as_they_were_drawn(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *OWN, "--bank-rows-written", "first")
    before = pretraining.model.bank["clip"].entries.clone()
    advance(pretraining, 6)
    changed = (pretraining.model.bank["clip"].entries != before).any(1)
    assert changed[:16].all() and not changed[16:].any()


def replays(data_root: Path, own: tuple[str, ...], phase: str) -> None:
    """A recorded step, replayed with other clips, counter and learning rate, is the step: it reads nothing, and no
    shape is of data."""
    config = parse(command(data_root, Path("nowhere"), *own, "--impl", "torch", "--view-impl", "torch"))
    store = ResidentStore(PackedStore.open(data_root / "small"))
    eager, ours = (build_step(config, build_model(config, store, store.device), "fp32") for _ in range(2))
    recorder = TapeRecorder()
    graph = graph_step(ours, store, recorder, phase)
    for i in range(4):
        with Tape() as tape:
            eager.prepare(batch(i, 8), i, 0.01 / (1 + i))
            eager.advance(store.select(eager.sample), phase=phase)
        assert not {*READS, *SHAPED_BY_DATA} & set(tape.names())
        ours.prepare(batch(i, 8), i, 0.01 / (1 + i))
        graph()
        same(eager, ours)
    assert (graph.captures, recorder.warm_ups) == (1, WARM_UP)


@slow
@pytest.mark.usefixtures("as_on_a_gpu", "no_onednn")
def test_a_replayed_step_is_the_step(data_root):
    replays(data_root, OWN, "main")


def resumes(data_root: Path, tmp_path: Path, settings: tuple[str, ...], steps: int) -> None:
    """A run that went on from a checkpoint after so many steps has the state of one that did not stop."""
    whole, parts = (start(data_root, tmp_path / name, *settings) for name in ("whole", "parts"))
    advance(whole, 9)
    advance(parts, steps)
    path = parts.save()
    torch.manual_seed(12345)  # a new process has other random states
    again = start(data_root, tmp_path / "again", *settings)
    again.load(RunState.of_plain(torch.load(path / checkpoint.STATE, weights_only=True), path), path)
    advance(again, 9 - steps)
    states = [RunState.read(run.save().parent)[1].to_plain() for run in (whole, again)]
    assert_same_state(*states)
    whole.stepper.check()


@slow
@pytest.mark.parametrize(
    ("amp", "optimizer", "more"), [("fp32", "adamw", ()), ("bf16", "sgd", ("--bank-rows-written", "first"))]
)
def test_it_resumes_bit_for_bit(amp, optimizer, more, data_root, tmp_path):
    resumes(data_root, tmp_path, (*OWN, "--amp", amp, "--optimizer", optimizer, *more), 4)


SHORT = ("--epochs", "2", "--milestones", "--warmup-epochs", "0", "--probe-every", "0", "--linear-epochs", "1")


def runs_and_is_exported(words: list[str], out: Path, width: int) -> None:
    """A whole run; its encoder, in a file, gives the features that it gives from the run folder."""
    assert run.main(words) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 6 and 0 <= report["linear_top1"] <= 100
    assert len(state_of(out)["model"]["query.head.0.bias"]) == width
    file = out / "encoder.safetensors"
    assert export.main(["--run", str(out), "--to", "safetensors", "--out", str(file)]) == 0
    ours, theirs = (fastmc.load(path, device="cpu").encoder.state_dict() for path in (out, file))
    assert_same_state(ours, theirs)


@slow
@pytest.mark.quick
def test_a_short_run(data_root, tmp_path):
    out = tmp_path / "run"
    runs_and_is_exported(command(data_root, out, *OWN, *SHORT), out, 6)


@slow
def test_another_encoder_is_refused(data_root, tmp_path, capsys):
    assert run.main(command(data_root, tmp_path / "run", "--method", "hico", "--backbone", "bigru")) == 1
    assert "method hico contrasts levels that BiGRU 1x8 has not; give --encoder s2s" in errors(capsys)
