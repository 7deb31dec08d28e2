"""Updates of the encoders' weights: who makes them, PyTorch's and apex's, on the host's and on the device's word.

Those of our own kernel are tests/test_update_kernel.py's and tests/interpreted/test_update_in_use.py's.
"""

from __future__ import annotations

import copy
import sys
import types
from dataclasses import replace

import pytest
import torch

import kernels
from fastmc.config import OptimConfig
from fastmc.reference.ema import ema_
from train.engine.optimizer import FollowerUpdate, LearnerUpdate, choose_impl, no_apex_reason

SGD = OptimConfig(lr=0.1, weight_decay=0.01)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))


def give_gradients(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_weights_go_as_by_torchs_plain_optimizer(kind):
    config = replace(SGD, optimizer=kind)
    ours, theirs = net(), net()
    update = LearnerUpdate(config, ours.parameters(), torch.zeros(()))
    plain = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    truth = plain(theirs.parameters(), lr=0.1, weight_decay=0.01, foreach=False, **momentum)
    for i in range(5):
        for module in (ours, theirs):
            give_gradients(module, i)
        truth.param_groups[0]["lr"] = 0.1 / (1 + i)
        update.set_lr(0.1 / (1 + i))
        truth.step()
        update.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_scale_divides_the_gradients_and_a_skip_leaves_everything(kind):
    config, scale, skip = replace(SGD, optimizer=kind), torch.tensor(8.0), torch.zeros(())
    ours, plain = net(), net()
    scaled, unscaled = (
        LearnerUpdate(config, ours.parameters(), skip, scale),
        LearnerUpdate(config, plain.parameters(), skip),
    )
    for i in range(3):
        give_gradients(ours, i)
        give_gradients(plain, i)
        for p in ours.parameters():
            p.grad.mul_(8.0)
        scaled.step()
        unscaled.step()
    assert equal(ours, plain)
    before, state = copy.deepcopy(ours), [t.clone() for t in scaled.tensors()]
    skip.fill_(1)
    give_gradients(ours, 9)
    next(ours.parameters()).grad[0] = torch.nan
    scaled.step()
    assert equal(ours, before)
    assert all(torch.equal(a, b) for a, b in zip(state, scaled.tensors(), strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_loaded_state_goes_on_and_still_reads_the_device(kind):
    config = replace(SGD, optimizer=kind)
    first, second = net(), net()
    a, b = (LearnerUpdate(config, module.parameters(), torch.zeros(())) for module in (first, second))
    give_gradients(first, 0)
    a.step()
    second.load_state_dict(first.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for update, module in ((a, first), (b, second)):
        give_gradients(module, 1)
        update.set_lr(0.03)
        update.step()
    assert equal(first, second)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 0.999, 1.0])
def test_the_key_encoder_follows_by_equation_4(alpha):
    key, query, skip = net(1).requires_grad_(False), net(2), torch.zeros(())
    truth = copy.deepcopy(key).double()
    update = FollowerUpdate(key.parameters(), query.parameters(), alpha, skip)
    for i in range(10):
        with torch.no_grad():
            for p in query.parameters():
                p.add_(0.1 * i)
        update.step()
        ema_(truth, copy.deepcopy(query).double(), alpha=alpha)
    for a, b in zip(key.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
        assert not a.requires_grad
    before = copy.deepcopy(key)
    skip.fill_(1)
    update.step()
    assert equal(key, before)


# Who makes them


def asked(impl: str, **others) -> OptimConfig:
    return replace(SGD, optimizer_impl=impl, **others)


def test_the_kernel_is_taken_where_it_serves(monkeypatch):
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None if device.type == "cuda" else "no GPU here")
    assert choose_impl(SGD, CUDA, scaled=True) == ("triton", "with the key encoder, in one pass")
    assert choose_impl(SGD, CPU, scaled=False) == ("torch", "no GPU here")
    adamw = replace(SGD, optimizer="adamw")
    assert choose_impl(adamw, CUDA, scaled=False) == ("torch", "our kernel is for sgd, not adamw")
    for impl in ("triton", "torch"):
        assert choose_impl(asked(impl), CUDA, scaled=False) == (impl, f"--optimizer-impl {impl}")
    with pytest.raises(ValueError, match=r"'triton' is impossible: no GPU here\. Give --optimizer-impl auto"):
        choose_impl(asked("triton"), CPU, scaled=False)
    with pytest.raises(ValueError, match="'triton' is impossible: our kernel is for sgd, not adamw"):
        choose_impl(asked("triton", optimizer="adamw"), CUDA, scaled=False)


@pytest.mark.usefixtures("apex")
def test_apex_is_for_those_who_ask_for_it(monkeypatch):
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: "no Triton")
    assert choose_impl(SGD, CUDA, scaled=False) == ("torch", "no Triton")
    assert choose_impl(asked("apex"), CUDA, scaled=False) == ("apex", "--optimizer-impl apex")
    with pytest.raises(ValueError, match="'apex' is impossible: apex does not take a gradient scale"):
        choose_impl(asked("apex"), CUDA, scaled=True)
    with pytest.raises(ValueError, match="'apex' is impossible: apex needs a GPU, not cpu"):
        choose_impl(asked("apex"), CPU, scaled=False)


# apex


class FusedSGD(torch.optim.SGD):
    """In place of apex's: the same arithmetic, a rate of the host, and a flag that calls a step off."""

    def __init__(self, params, lr, momentum, weight_decay):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    def step(self, closure=None):
        assert isinstance(self.param_groups[0]["lr"], float)
        if not self._dummy_overflow_buf[0]:
            super().step()


@pytest.fixture
def apex(monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("apex", "apex.optimizers", "amp_C")}
    modules["apex.optimizers"].FusedSGD = FusedSGD
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("apex")
def test_apexs_steps_are_those_of_torch():
    assert no_apex_reason(SGD, CUDA, scaled=False) is None
    assert "needs a GPU" in no_apex_reason(SGD, CPU, scaled=False)
    assert "not adamw" in no_apex_reason(replace(SGD, optimizer="adamw"), CUDA, scaled=False)
    assert "gradient scale" in no_apex_reason(SGD, CUDA, scaled=True)
    assert "warm-up" in no_apex_reason(replace(SGD, warmup_epochs=1.0), CUDA, scaled=False)

    ours, theirs, skip = net(), net(), torch.zeros(())
    update = LearnerUpdate(SGD, ours.parameters(), skip, impl="apex", why="asked for")
    assert update.says == "FusedSGD of apex (asked for)"
    truth = LearnerUpdate(SGD, theirs.parameters(), torch.zeros(()), why="not now")
    assert truth.says == "SGD of torch, fused (not now)"
    for i in range(3):
        give_gradients(ours, i)
        give_gradients(theirs, i)
        update.set_lr(0.1 / (i + 1))
        truth.set_lr(0.1 / (i + 1))
        assert update.baked == (0.1 / (i + 1),) and truth.baked == ()
        update.step()
        truth.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    before = copy.deepcopy(ours)
    skip.fill_(1)
    update.step()
    assert equal(ours, before)


def test_the_apex_of_pypi_is_not_nvidias(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert "NVIDIA's apex is not installed" in no_apex_reason(SGD, CUDA, scaled=False)
