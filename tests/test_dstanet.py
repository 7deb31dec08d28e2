"""DSTA-Net against the numbers of the authors' code (../shared/golden): both forms, evaluation and training."""

from __future__ import annotations

import pytest
import torch
from golden import fill, golden, near, needs_golden, part_of
from torch.nn import functional as F

from fastmc.encoders.base import ClipShape
from fastmc.encoders.dstanet import DSTANet, DSTANetConfig, places
from fastmc.skeleton import NTU25

OUTPUT, GRADIENT = 1e-5, 1e-4  # of the README, whose numbers are float32
FORMS = {"dstanet_ntu": "convolution", "dstanet_full": "attention"}


def small(form: str, frames: int = 8) -> DSTANet:
    torch.manual_seed(0)
    return DSTANet(DSTANetConfig("8", (1, 1), over_time=form), ClipShape(25, 2, frames, NTU25.parents))


@needs_golden
@pytest.mark.parametrize("name", FORMS)
def test_outputs_and_gradients(name):
    found = golden(name)
    weights, encoder = part_of(found, "sd_"), small(FORMS[name])
    fill(encoder, weights)
    for mode in ("eval", "train"):
        encoder.train(mode == "train").zero_grad()
        x = found["x"].double().requires_grad_()
        h = encoder.body(x, 1)
        output = F.linear(h, weights["fc.weight"].double(), weights["fc.bias"].double())
        near(output, found[f"out_{mode}"], OUTPUT)
        (output * found["v"]).sum().backward()
        near(x.grad, found[f"grad_x_{mode}"], GRADIENT)
        if mode == "eval":
            near(h, found["feature_eval"], OUTPUT)
        else:
            near(encoder.blocks[0].space.learnt.grad, found["grad_attention0s_0_train"], GRADIENT)
    near(places(25, 8).T.double(), found["position_spatial_layer0"], 1e-6)


def test_parameters_of_the_published_size():
    """As counted in the released code, without a classifier."""
    for form, count in (("convolution", 3_801_968), ("attention", 3_436_744)):
        with torch.device("meta"):
            encoder = DSTANet(DSTANetConfig(over_time=form), ClipShape(25, 2, 128, NTU25.parents))
        assert sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith("head.")) == count


def test_attention_over_time_takes_fewer_frames_and_no_more():
    encoder = small("attention")
    assert encoder.represent(torch.randn(2, 5, 150)).shape == (2, 16)
    with pytest.raises(ValueError, match="x has 9 frames, and the attention over time was made for 8"):
        encoder(torch.randn(2, 9, 150))


def test_the_learnt_map_over_time_starts_as_the_identity():
    encoder = small("learnt-attention")
    assert torch.equal(encoder.blocks[0].time.learnt[0, 0], torch.eye(8))
    assert encoder.represent(torch.randn(2, 8, 150)).shape == (2, 16)


def test_a_width_that_four_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="encoder must be a WIDTH that 4 divides"):
        DSTANetConfig("6")
