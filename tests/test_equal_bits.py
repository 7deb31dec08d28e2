"""No operator of a training step adds up in an order that a GPU chooses: equal runs give equal bits there too.

On a GPU some operators of PyTorch add by atomics, and give other bits at every call (the list is that of
torch.use_deterministic_algorithms). Which operators a step is made of is seen on a CPU; that the others repeat is for
`tests/gpu`. cuDNN is told to: `train.run.choose_device`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tape import Tape
from torch.nn import functional as F

from fastmc import arguments
from fastmc.build import build_model
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders import ENCODERS, rows, s2s
from fastmc.encoders.hcn import stretched
from fastmc.encoders.s2s import TransformerLayer
from fastmc.methods import METHODS
from fastmc.objective import chunked
from fastmc.skeleton import NTU25
from fastmc.views import clips, draw, torch_views
from fastmc.views.clips import STREAMS
from fastmc.views.layout import to_stream
from train.command.parse import parse
from train.engine.loop import build_step

BY_ATOMICS = re.compile(
    r"index_add|index_put_acc|scatter_add|scatter_reduce|index_reduce|put_|embedding\w*backward|upsample\w*backward"
    r"|_scaled_dot_product_(?!attention_math)\w*backward|grid_sampler\w*backward|cumsum|kthvalue|histc|bincount|median"
    r"|adaptive\w*pool\w*backward|avg_pool3d\w*backward|\w+_pad[123]d_backward|nll_loss2d\w*|_ctc_loss\w*"
)
"""Names of operators, from their beginning on, as `names_of` gives them. A constant pad is none of these."""


def is_by_atomics(name: str) -> bool:
    return re.match(BY_ATOMICS, name) is not None and not name.startswith("constant_pad")


def names_of(tape: Tape) -> set[str]:
    """Of the operators. index_put with accumulation has a name of its own, and so has what adds to distinct places:
    there each sum is of two numbers."""
    found = set()
    for func, args, kwargs, _ in tape.calls:
        name = func.overloadpacket.__name__
        if name.startswith(("index_put", "_index_put")):
            accumulates = kwargs.get("accumulate", args[3] if len(args) > 3 else False)
            name = "index_put_acc" if accumulates else "put"
        elif name == "index_add_" and len(args[2].unique()) == len(args[2]):
            name = "add_"
        found.add(name)
    return found


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """No value decides what to do next, and attention is that of a GPU."""
    for module in (arguments, chunked, clips, draw, torch_views, rows):
        monkeypatch.setattr(module, "may_look", lambda tensor: False)
    monkeypatch.setattr(s2s, "on_gpu", lambda tensor: True)


@pytest.fixture(scope="module")
def store(data_root) -> ResidentStore:
    return ResidentStore(PackedStore.open(data_root / "small"))


def operators(store: ResidentStore, data_root: Any, *words: str) -> set[str]:
    """Of a step in each phase of the method."""
    given = ["--dataset", "small", "--data-root", str(data_root), "--protocol", "xsub", "--preset", "tiny", *words]
    given += ["--device", "cpu", "--batch-size", "8", "--feature-dim", "16", "--bank-size", "16", "--frames", "16"]
    config = parse([*given, "--impl", "torch", "--view-impl", "torch"])
    step = build_step(config, build_model(config, store, store.device))
    found: set[str] = set()
    for number, phase in enumerate({step.model.phase(*at) for at in ((0, 0), (10**9, 0), (10**9, 10**9))}):
        step.prepare(torch.arange(8), number, 0.01)
        with Tape() as tape:
            step.advance(store.select(step.sample), phase=phase)
        found |= names_of(tape)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("backbone", ENCODERS)
def test_every_encoder_and_stream_under_attack(backbone, stream, store, data_root):
    found = operators(store, data_root, "--method", "a2mc", "--backbone", backbone, "--stream", stream)
    assert len(found) > 30 and not {name for name in found if is_by_atomics(name)}


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, store, data_root):
    mined = ["--mined", "4"] if method == "cpm" else []
    found = operators(store, data_root, "--method", method, *mined)
    assert len(found) > 30 and not {name for name in found if is_by_atomics(name)}


def tape_of(function: Any, *inputs: torch.Tensor) -> Tape:
    inputs = tuple(x.requires_grad_() for x in inputs)
    with Tape() as tape:
        function(*inputs).sum().backward()
    return tape


X, PARENTS = torch.zeros(2, 3, 25, 4), torch.tensor(NTU25.parents)
PLAIN = {
    "parents": (lambda x: x.index_select(2, PARENTS), "index_add"),
    "indexing": (lambda x: x[:, :, PARENTS], "index_put_acc"),
    "gather": (lambda x: x.gather(2, PARENTS[:, None].expand(2, 3, 25, 4)), "scatter_add"),
    "interpolation": (lambda x: F.interpolate(x, (9, 9), mode="bilinear"), "upsample_bilinear2d_backward"),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x),
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_adds_by_atomics_is_seen(name):
    """What the code would be without this."""
    function, seen = PLAIN[name]
    assert seen in {found for found in names_of(tape_of(function, X.clone())) if is_by_atomics(found)}


# What stands in its place


def test_bones_have_the_gradient_of_their_operators():
    """Several bones begin at one joint; the gradient of a gradient is there too."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 25 * 2 * 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    plain = x - x.unflatten(2, (25, -1))[:, :, PARENTS].flatten(2)
    ours = to_stream(x, "bone", NTU25)
    assert torch.equal(ours, plain)
    want, found = (torch.autograd.grad((bones * weight).sum(), x)[0] for bones in (plain, ours))
    torch.testing.assert_close(found, want, rtol=1e-14, atol=1e-14)
    small = x[:1, :1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: to_stream(x, "bone", NTU25), small)
    assert torch.autograd.gradgradcheck(lambda x: to_stream(x, "bone", NTU25), small)
    assert not {name for name in names_of(tape_of(lambda x: to_stream(x, "bone", NTU25), small)) if is_by_atomics(name)}


@pytest.mark.parametrize("frames", [2, 3, 16, 64])
def test_frames_are_stretched_as_interpolate_does(frames):
    """Both in float32 within a rounding or two of float64, which both have to a rounding."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, frames - 1, 25, dtype=torch.float64)
    truth = F.interpolate(x, (frames, 25), mode="bilinear")
    torch.testing.assert_close(stretched(x), truth, rtol=1e-13, atol=1e-13)
    plain = (F.interpolate(x.float(), (frames, 25), mode="bilinear").double() - truth).abs()
    ulp = torch.finfo(torch.float32).eps * x.abs().max()
    assert ((stretched(x.float()).double() - truth).abs() <= 2 * plain.max() + 2 * ulp).all()
    gradients = [
        torch.autograd.grad(f.square().sum(), y)[0] for y, f in map(_stretch, (stretched, F.interpolate), [x] * 2)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def _stretch(function: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    size = {} if function is stretched else {"size": (x.shape[2] + 1, x.shape[3]), "mode": "bilinear"}
    return x, function(x, **size)


def test_attention_of_a_gpu_is_that_of_a_cpu_and_fused_where_no_gradient_is_wanted(monkeypatch):
    torch.manual_seed(0)
    layer, x = TransformerLayer(16, 2, 0.0).double(), torch.randn(3, 7, 16, dtype=torch.float64)
    want = torch.autograd.grad(layer(y := x.clone().requires_grad_()).square().sum(), y)[0]
    with torch.no_grad():
        truth = layer(x)
    monkeypatch.setattr(s2s, "on_gpu", lambda tensor: True)
    found = torch.autograd.grad(layer(y := x.clone().requires_grad_()).square().sum(), y)[0]
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x), truth, rtol=1e-12, atol=1e-12)
    with torch.no_grad(), Tape() as tape:
        layer(x)
    assert any(name.startswith("_scaled_dot_product_flash") for name in names_of(tape))
