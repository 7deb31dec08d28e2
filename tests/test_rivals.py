"""SkeletonCLR, AimCLR, HiCLR and AS-CAL against the numbers of the authors' codes; their steps and runs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from golden import fill, golden, near, needs_golden, part_of
from test_backbones import as_on_a_gpu as as_on_a_gpu  # fixtures
from test_backbones import no_onednn as no_onednn
from test_cpm import OWN as OF_CPM
from test_hico import OWN as OF_HICO
from test_hico import SHORT, one_step, replays, resumes, runs_and_is_exported
from test_train import advance, assert_same_state, command, start
from torch.nn import functional as F

from fastmc.contrast_table import AIMCLR, B1, HICLR
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders.base import ClipShape
from fastmc.encoders.stgcn import STGCN, STGCNConfig, attention_drop
from fastmc.evaluation.features import represent
from fastmc.methods.aimclr import AimCLRConfig
from fastmc.methods.ascal import ANY_LENGTH
from fastmc.methods.hiclr import JointMask, masked_joints
from fastmc.objective.contrast_step import contrast_step_
from fastmc.skeleton import NTU25
from fastmc.views.clips import PackedClips
from train.command.parse import parse

slow = pytest.mark.slow
SMALL_STGCN = ("--backbone", "stgcn", "--encoder", "4x8", "--blocks", "1", "1", "1", "1")
OWN = {
    "skeletonclr": ("--method", "skeletonclr", *SMALL_STGCN),
    "aimclr": ("--method", "aimclr", *SMALL_STGCN, "--mining-from", "2"),
    "aimclr without drop": ("--method", "aimclr", "--backbone", "bigru", "--encoder", "1x8", "--mining-from", "2"),
    "hiclr": ("--method", "hiclr", *SMALL_STGCN, "--mining-from", "2"),
    "ascal": ("--method", "ascal", "--backbone", "lstm", "--encoder", "1x8", "--first-epoch", "fills"),
}
each = pytest.mark.parametrize("own", OWN.values(), ids=OWN)


# --- Losses


@needs_golden
@pytest.mark.parametrize("impl", ["reference", "torch", "cpp"])
@pytest.mark.parametrize(
    ("name", "table"), [("SkeletonCLR_loss", B1), ("AimCLR_loss_d3m", AIMCLR), ("HiCLR_loss_stage1", HICLR)]
)
def test_losses_gradients_and_bank(name, table, impl):
    """Mined neighbours: tests/test_mining.py."""
    found = golden(name)
    raw = [found[f"raw_f{i}"].requires_grad_() for i in range(1, table.queries + 1)]
    units = [F.normalize(f, dim=1) for f in raw]
    bank, cursor = found["bank"].clone(), torch.tensor(int(found.get("pointer_before", torch.tensor(0))))
    tau = float(found["temperature"])
    f0 = F.normalize(found["raw_f0"], dim=1) if "raw_f0" in found else found["unit_f0"]
    queries = [f.detach() for f in units]
    settings = {"temperature": tau, "bank_temperature": tau, "cursor": cursor, "impl": impl}
    step = contrast_step_(bank, torch.zeros_like(bank), f0, queries, table, **settings)
    near(step.loss, found["loss"], 1e-9)
    torch.autograd.backward(units, step.gradients)
    for i, (leaf, gradient) in enumerate(zip(raw, step.gradients, strict=True), start=1):
        near(gradient, found[f"grad_unit_f{i}"], 1e-6)
        near(leaf.grad, found[f"grad_raw_f{i}"], 1e-6)
    if "bank_after" in found:
        near(bank, found["bank_after"], 1e-9)
        assert int(cursor) % len(bank) == int(found["pointer_after"])


@needs_golden
@pytest.mark.parametrize("impl", ["reference", "torch", "cpp"])
def test_loss_of_features_of_any_length(impl):
    found = golden("AS-CAL_loss")
    bank, cursor = found["bank"].clone(), torch.tensor(int(found["index_before"]))
    tau = float(found["temperature"])
    settings = {"temperature": tau, "bank_temperature": tau, "cursor": cursor, "impl": impl}
    step = contrast_step_(bank, torch.zeros_like(bank), found["f0"], [found["f1"]], ANY_LENGTH, **settings)
    near(step.loss, found["loss"], 1e-9)
    near(step.gradients[0], found["grad_f1"], 1e-6)
    near(bank, found["bank_after"], 1e-9)
    assert int(cursor) % len(bank) == int(found["index_after"])


# --- Attention drop and joint mask


@needs_golden
@pytest.mark.parametrize("keep", ["0.7", "0.64"])
def test_attention_drop(keep):
    found = golden("AimCLR_attention_drop")
    x = found["x"].requires_grad_()
    y = attention_drop(x.permute(0, 2, 3, 1), keep=float(keep)).permute(0, 3, 1, 2)
    near(y, found[f"keep_{keep}:y"], 1e-6)
    (y * found["weight"]).sum().backward()
    near(x.grad, found[f"keep_{keep}:grad_x"], 1e-6)
    assert found[f"keep_{keep}:kept_joint"].sum() > 0 and (y == 0).any()


@needs_golden
def test_a_network_with_attention_drop():
    weights, found = part_of(golden("ST-GCN_weights"), "state:"), golden("ST-GCN_train_drop")
    config = STGCNConfig(encoder="4x12", partition="released", feature_dim=6)
    encoder = STGCN(config, ClipShape(25, 2, 10, NTU25.parents))
    fill(encoder, weights).train()
    fc = weights["fc.weight"].double(), weights["fc.bias"].double()
    x = found["x"].double().requires_grad_()
    whole, dropped = (F.linear(h, *fc) for h in encoder.represent_and_drop(x.permute(0, 2, 3, 4, 1).flatten(2)))
    near(whole, found["output"], 1e-5)
    near(dropped, found["output_dropped"], 1e-5)
    scalar = (whole * found["weight"]).sum() + (dropped * found["weight_dropped"]).sum()
    near(scalar, found["scalar"], 1e-5)
    scalar.backward()
    near(x.grad, found["grad_x"], 1e-4)


@needs_golden
def test_a_joint_mask():
    found = golden("HiCLR_loss_stage1")
    mask, x = JointMask(), found["x4"].permute(0, 2, 3, 4, 1).flatten(2)
    with torch.no_grad():
        mask.value.fill_(float(found["mask_value"]))
    masked = mask(x, found["mask"] == 0)
    assert torch.equal(masked, found["x4_masked"].permute(0, 2, 3, 4, 1).flatten(2))
    masked.sum().backward()
    assert mask.value.grad == (found["mask"] == 0).sum() * len(x) * 2 * 3


def test_masks_are_of_two_joints_a_frame_and_of_their_step():
    masks = [masked_joints(50, 25, 2, 7, step, torch.device("cpu")) for step in (0, 1, torch.tensor(1))]
    assert all((mask.sum(1) == 2).all() for mask in masks)
    assert torch.equal(masks[1], masks[2]) and not torch.equal(masks[0], masks[1])
    counts = torch.stack([masked_joints(50, 25, 2, 7, step, torch.device("cpu")) for step in range(100)]).sum((0, 1))
    assert counts.min() > 320 and counts.max() < 480, "each of 25 joints 400 times, give or take 19"


# --- Steps


@slow
@each
def test_a_step_moves_all_and_an_undone_one_nothing(own, data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *own, "--lr", "0.01")
    state = pretraining.model.state_dict()
    fresh = {name: tensor.clone() for name, tensor in state.items()}
    advance(pretraining, 5)  # three steps are an epoch, which only fills the bank of AS-CAL; two make it full
    unused = ("bank.momentum", *(("query.head", "key.head") if "ascal" in own else ()))
    still = [name for name in state if torch.equal(state[name], fresh[name]) and not name.startswith(unused)]
    assert not still
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for weight in pretraining.model.query.parameters():
            weight.mul_(torch.nan)
    advance(pretraining, 1)
    assert all(torch.equal(before[name], state[name]) for name in state if not name.startswith("query."))


@slow
def test_a_first_epoch_that_fills_trains_nothing(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *OWN["ascal"])
    before = {name: tensor.clone() for name, tensor in pretraining.model.state_dict().items()}
    advance(pretraining, 3)
    after = pretraining.model.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"bank.entries", "bank.cursor"}
    advance(pretraining, 1)
    assert any(not torch.equal(before[name], after[name]) for name in after if name.startswith("query"))


@slow
@pytest.mark.usefixtures("as_on_a_gpu", "no_onednn")
@pytest.mark.parametrize(("name", "phase"), [(name, "mined" if "clr" in name[2:] else "main") for name in OWN])
def test_a_replayed_step_is_the_step(name, phase, data_root):
    replays(data_root, OWN[name], "main" if name == "skeletonclr" else phase)


@slow
@pytest.mark.parametrize(("amp", "optimizer"), [("fp32", "adamw"), ("bf16", "sgd")])
@each
def test_it_resumes_bit_for_bit(own, amp, optimizer, data_root, tmp_path):
    """Before mining begins, and it does so in the seventh step."""
    resumes(data_root, tmp_path, (*own, "--amp", amp, "--optimizer", optimizer), 4)


@slow
@each
def test_a_short_run(own, data_root, tmp_path):
    out = tmp_path / "run"
    runs_and_is_exported(command(data_root, out, *own, "--head-width", "6", *SHORT), out, 6)


@slow
def test_the_views_of_a_chain_of_augmentations(data_root, tmp_path):
    """Key and query alike in kind; the extreme ones stronger; a mask in the last."""
    pretraining = start(data_root, tmp_path / "run", *OWN["hiclr"], "--masked-share", "0.5")
    x, _ = one_step(pretraining, "main")
    flat = [(view.unflatten(2, (-1, 3)) == 0).all(dim=(1, 2)).any(1) for view in x]  # an axis that is masked
    assert not flat[0].any() and not flat[1].any() and (flat[2] | flat[3]).any()
    copied = start(data_root, tmp_path / "copied", *OWN["hiclr"]).model
    assert_same_state(copied.key.state_dict(), copied.query.state_dict())
    independent = start(data_root, tmp_path / "other", *OWN["hiclr"], "--key-init", "independent").model
    assert not torch.equal(independent.key.head[0].weight, independent.query.head[0].weight)


# --- Settings


def test_settings_of_presets_are_the_methods_own():
    paper = parse(["--dataset", "ntu60", "--method", "aimclr"])
    assert (paper.backbone, paper.frames, paper.encoder.encoder) == ("stgcn", 50, "16x256")
    assert (paper.encoder.dropout, paper.optim.lr, paper.optim.milestones) == (0.5, 0.1, (250,))
    assert (paper.augment.crop_ratio_min, paper.augment.jitter_probability, paper.augment.shear) == (1.0, 0.0, 0.5)
    assert paper.settings.bank_size == 32768 and paper.settings.mining_from == 150
    tiny = parse(["--preset", "tiny", "--method", "hiclr", "--backbone", "bigru", "--shear", "0.2"])
    assert (tiny.backbone, tiny.frames, tiny.augment.shear, tiny.augment.crop_padding) == ("bigru", 32, 0.2, 1 / 6)
    assert parse(["--method", "ascal"]).augment.centre_joint == 1
    assert parse(["--method", "hico"]).backbone == "s2s" and parse([]).backbone == "bigru"


def test_more_neighbours_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"mined = 5 is more than the 4 rows of the bank; give a smaller --mined"):
        AimCLRConfig(bank_size=4, mined=5)


def test_mining_begins_at_its_share_of_a_budget_in_steps():
    from fastmc.budget import fitted

    config = fitted(parse(["--preset", "tiny", "--method", "aimclr"]), 431)
    assert (config.optim.epochs, config.settings.mining_from) == (385, 192)
    assert fitted(config, 431) == config
    assert fitted(parse(["--preset", "tiny", "--method", "cpm"]), 40091).settings.mining_from == 2


@slow
def test_evaluation_subtracts_the_joint_too(data_root, tmp_path):
    """The features of clips that stand elsewhere are the same."""
    encoder = start(data_root, tmp_path / "run", *OWN["ascal"]).model.query
    store = ResidentStore(PackedStore.open(data_root / "small"))
    ids, whole = torch.arange(6), {"ratio": torch.ones(6), "position": torch.full((6,), 0.5), "frames": 8}
    h = represent(encoder, store, ids, "joint", **whole)
    select = store.select

    def elsewhere(ids: torch.Tensor) -> PackedClips:
        clips = select(ids)
        absent = (clips.frames == 0).all(dim=(1, 2), keepdim=True)
        return replace(clips, frames=torch.where(absent, 0, clips.frames + 3))

    store.select = elsewhere
    moved = represent(encoder, store, ids, "joint", **whole)
    assert encoder.shape.centre_joint == 1
    near(moved, h, 1e-4)


@slow
@pytest.mark.program
def test_steps_of_methods_are_timed_in_turns(capsys):
    """Each in its last phase; a time of no use is not asserted on."""
    from bench.methods import CompareMethods, main, race

    turns = race(CompareMethods(rounds=3, methods=("skeletonclr", "cpm"), encoder_of_all="bigru"))
    assert list(turns.found) == ["b1", "skeletonclr", "cpm"]
    assert main(["--rounds", "3", "--methods", "skeletonclr", "--encoder-of-all", "bigru"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"skeletonclr over b1: [\d.]+x \[[\d.]+-[\d.]+\]", said) and "step of preset tiny" in said


@slow
@pytest.mark.parametrize("stream", ["motion", "bone"])
@pytest.mark.parametrize("name", [*OWN, "cpm", "hico"])
def test_streams(name, stream, data_root, tmp_path):
    """A step of each is finite, and of other numbers than that of the joints."""
    own = OWN.get(name) or (OF_CPM if name == "cpm" else OF_HICO)
    losses = []
    for each_stream in ("joint", stream):
        pretraining = start(data_root, tmp_path / each_stream, *own, "--stream", each_stream)
        advance(pretraining, 3)
        pretraining.stepper.check()
        losses.append(float(pretraining.stepper.metrics[0]))
    assert losses[0] != losses[1]
