"""Released checkpoints of graph and image encoders: into run folders and back, against their codes' way to compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.plain_encoders import plain
from fastmc import load as fastmc_load
from fastmc.checkpoint import CheckpointError
from fastmc.encoders.agcn import AGCN, AGCNConfig
from fastmc.encoders.base import ClipShape, Encoder
from fastmc.encoders.hcn import HCN, HCNConfig
from fastmc.encoders.released import encoder_of, read_released
from fastmc.encoders.released_names import released_tensors
from fastmc.encoders.stgcn import STGCN, STGCNConfig
from fastmc.skeleton import NTU25
from train import convert

pytestmark = pytest.mark.slow
DIM, QUEUE = 16, 32
KINDS: dict[str, tuple[type[Encoder], Any]] = {
    "stgcn": (STGCN, STGCNConfig("4x8", partition="released", feature_dim=DIM)),
    "agcn": (AGCN, AGCNConfig("4", feature_dim=DIM)),
    "hcn": (HCN, HCNConfig("2", feature_dim=DIM)),
}


def encoder(kind: str, seed: int) -> Encoder:
    """With statistics and weights that no fresh one has."""
    torch.manual_seed(seed)
    cls, config = KINDS[kind]
    found = cls(config, ClipShape(25, 2, 64, NTU25.parents))
    with torch.no_grad():
        for name, value in found.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else 0.3 * torch.randn_like(value))
    return found


def released(kind: str, path: Path, *, from_one: bool = False, suffix: str = "") -> dict[str, Tensor]:
    """A file of both encoders and a queue, as their codes save it."""
    content = {}
    for seed, name in ((0, "encoder_q"), (1, "encoder_k")):
        one = encoder(kind, seed)
        content |= {f"{name}{suffix}.{key}": value for key, value in released_tensors(one, one.state_dict()).items()}
    if from_one:  # HiCLR
        names = {key: key for key in content}
        for n in range(10):
            names |= {f"{e}.edge_importance.{n}": f"{e}.edge_importance{n + 1}" for e in ("encoder_q", "encoder_k")}
        content = {names[key]: value for key, value in content.items()}
    content |= {f"queue{suffix}": torch.nn.functional.normalize(torch.randn(DIM, QUEUE), dim=0)}
    content |= {f"queue_ptr{suffix}": torch.tensor([5])}
    torch.save({"epoch": 300, "state_dict": content}, path)
    return content


@pytest.mark.parametrize("kind", KINDS)
def test_into_a_run_and_back_without_a_changed_bit(kind, tmp_path):
    content = released(kind, tmp_path / "theirs.pt")
    assert convert.main(["load", "--checkpoint", str(tmp_path / "theirs.pt"), "--out", str(tmp_path / "run")]) == 0
    assert convert.main(["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "back.pt")]) == 0
    back = read_released(tmp_path / "back.pt").tensors
    assert back.keys() == content.keys()
    for name, value in content.items():
        assert back[name].shape == value.shape, name
        if "num_batches" not in name:
            assert torch.equal(back[name], value), name
    found = fastmc_load(tmp_path / "run", device="cpu")
    x = torch.randn(2, 64, 150)
    theirs: nn.Module = encoder(kind, 0).eval()
    torch.testing.assert_close(found.encoder.represent(x), theirs.represent(x))
    if kind != "hcn":
        as_graph = x.unflatten(2, (25, 2, 3)).permute(0, 4, 1, 2, 3)
        torch.testing.assert_close(plain(theirs).eval()(as_graph), found.encoder.represent(x), rtol=1e-3, atol=1e-4)


def test_edges_numbered_from_one_and_a_stream_of_three(tmp_path):
    released("stgcn", tmp_path / "hiclr.pt", from_one=True)
    found = encoder_of(read_released(tmp_path / "hiclr.pt"), "motion")
    want = encoder("stgcn", 0).state_dict()
    assert torch.equal(found.query["blocks.9.edges"], want["blocks.9.edges"])
    released("stgcn", tmp_path / "motion.pt", suffix="_motion")
    file = read_released(tmp_path / "motion.pt")
    assert encoder_of(file, "motion").name == "encoder_q_motion"
    with pytest.raises(CheckpointError, match="has no encoder_q_bone, the bone encoder; it has encoder_q_motion"):
        encoder_of(file, "bone")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder_q.l4.gcn1.bn.running_var", -torch.ones(4), "negative variances: blocks.3.space.norm.running_var"),
        ("encoder_k.l2.tcn1.conv.weight", torch.full((4, 4, 9, 1), torch.nan), "encoder_k is no AGCN 4 .* not finite"),
        ("encoder_q.l9.gcn1.PA", torch.zeros(3, 24, 24), "missing or of another shape: blocks.8.space.learnt"),
        (
            "encoder_q.l1.tcn1.conv.weight",
            torch.zeros(3, 4, 9, 1),
            "is no agcn of a known size: encoder must be",
        ),
    ],
)
def test_what_does_not_fit_is_named(name, value, message, tmp_path):
    content = released("agcn", tmp_path / "theirs.pt")
    torch.save({"state_dict": content | {name: value}}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=message):
        encoder_of(read_released(tmp_path / "theirs.pt"), "joint")
