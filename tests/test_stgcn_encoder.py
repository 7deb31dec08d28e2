"""ST-GCN against the numbers of the authors' code (../shared/golden): outputs, gradients, statistics."""

from __future__ import annotations

import pytest
import torch
from golden import fill, golden, near, needs_golden, part_of
from torch.nn import functional as F

from fastmc.encoders.base import ClipShape
from fastmc.encoders.graphs import neighbours
from fastmc.encoders.released_names import released_names
from fastmc.encoders.stgcn import STGCN, STGCNConfig
from fastmc.skeleton import NTU25, SKELETONS

EXACT = 1e-6  # of the README: computed in float64 from float32 values


@needs_golden
def test_graphs_are_those_of_the_released_code():
    found = golden("ST-GCN_adjacency")
    for partition, key in (("released", "A"), ("distance", "A_distance"), ("uniform", "A_uniform")):
        near(neighbours(NTU25.parents, partition).double(), found[key], 1e-7)


@pytest.mark.parametrize("name", SKELETONS)
def test_the_spatial_partition_has_each_bone_once_each_way(name):
    """For every layout: inward in one part, outward in the other."""
    skeleton = SKELETONS[name]
    itself, inward, outward = neighbours(skeleton.parents, "spatial")
    child, parent = map(list, zip(*skeleton.bones, strict=True))
    assert torch.equal(itself > 0, torch.eye(skeleton.num_joints) > 0)
    assert (inward[child, parent] > 0).all() and (outward[parent, child] > 0).all()
    assert int((inward > 0).sum()) == int((outward > 0).sum()) == len(skeleton.bones)
    torch.testing.assert_close((itself + inward + outward).sum(0), torch.ones(skeleton.num_joints))


@needs_golden
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_gradients_and_statistics(mode):
    weights, found = part_of(golden("ST-GCN_weights"), "state:"), golden(f"ST-GCN_{mode}")
    encoder = STGCN(STGCNConfig("4x12", partition="released"), ClipShape(25, 2, 10, NTU25.parents))
    fill(encoder, weights).train(mode == "train")
    x = found["x"].double().requires_grad_()
    h = encoder.body(x, 1)
    near(h, found["representation"], EXACT)
    fc = weights["fc.weight"].double(), weights["fc.bias"].double()
    output = F.linear(h, *fc)
    near(output, found["output"], EXACT)
    (output * found["weight"]).sum().backward()
    near(x.grad, found["grad_x"], EXACT)
    gradients = part_of(found, "grad:")
    checked = 0
    largest = max(float(value.abs().max()) for value in gradients.values())
    for name, parameter in encoder.named_parameters():
        wanted = gradients.get(released_names(encoder, name)[0])
        if wanted is not None and not name.startswith("head."):
            scale = max(float(wanted.abs().max()), 1e-3 * largest)  # a bias before a norm has none but rounding
            assert float((parameter.grad - wanted.double().view_as(parameter)).abs().max()) <= EXACT * scale, name
            checked += 1
    assert checked > (100 if mode == "train" else 20)
    after = part_of(found, "state_after:")
    assert bool(after) == (mode == "train")
    for name, value in encoder.state_dict().items():
        if (wanted := after.get(released_names(encoder, name)[0])) is not None and value.is_floating_point():
            near(value, wanted, EXACT)


@needs_golden
def test_the_right_partition_is_another_function():
    weights, found = part_of(golden("ST-GCN_weights"), "state:"), golden("ST-GCN_eval")
    encoder = STGCN(STGCNConfig("4x12"), ClipShape(25, 2, 10, NTU25.parents))
    h = fill(encoder, weights).eval().body(found["x"].double(), 1)
    with pytest.raises(AssertionError, match="off by"):
        near(h, found["representation"], 1e-2)


def test_parameters_of_the_published_sizes():
    """As counted in the released code, without a head."""
    for size, count in (("16x256", 821_380), ("32x512", 3_217_716), ("64x256", 3_083_412)):
        with torch.device("meta"):
            encoder = STGCN(STGCNConfig(size), ClipShape(25, 2, 50, NTU25.parents))
        assert sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith("head.")) == count


def test_a_layout_without_bones_is_one_message():
    with pytest.raises(ValueError, match="ST-GCN 16x256 computes along bones"):
        STGCN(STGCNConfig(), ClipShape(5, 1))
