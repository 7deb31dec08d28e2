"""The update of both encoders, interpreted, in the trainer's step: a dozen steps, checkpoints, who is told what.

Replays, faults and scales are those of tests/test_step.py, which runs again with it (tests/test_interpreted.py).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from gpu_less import kernels_on_cpu
from test_step import advance, make, run_state, same, settings

from fastmc.config import Config
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from train.engine.optimizer import WholeUpdate
from train.engine.step import PretrainStep


@pytest.fixture(scope="module")
def store(data_root) -> ResidentStore:
    return ResidentStore(PackedStore.open(data_root / "small"))


def config_of(impl: str, **others) -> Config:
    """Without the input norm, whose 150 weights do not fill PyTorch's vectors: it rounds the last ones otherwise."""
    config = settings(encoder="2x16", **others)
    return replace(
        config,
        encoder=replace(config.encoder, input_norm=False),
        optim=replace(config.optim, optimizer_impl=impl),
    )


def a_dozen(impl: str, amp: str, store: ResidentStore) -> tuple[list[list[float]], PretrainStep]:
    step = make(config_of(impl), store, amp)
    if step.scaling is not None:
        step.scaling.scale.fill_(2.0**8)
    return advance(step, store, range(2), phase="fill") + advance(step, store, range(2, 14)), step


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
def test_a_dozen_steps_have_the_bits_of_torchs_optimizers(amp, store):
    """PyTorch's SGD, eq. 4 and casts, each with float32 in between."""
    want, theirs = a_dozen("torch", amp, store)
    found, ours = a_dozen("triton", amp, store)
    assert found == want
    assert isinstance(ours.update, WholeUpdate) and not isinstance(theirs.update, WholeUpdate)
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    for weight, velocity in velocities(theirs).items():
        assert torch.equal(velocities(ours)[weight], velocity), weight


def velocities(step: PretrainStep) -> dict[int, torch.Tensor]:
    return {i: slots["momentum_buffer"] for i, slots in step.state_dict()["optimizer"]["state"].items()}


@pytest.mark.parametrize(("impl", "amp"), [("triton", "fp32"), ("triton", "fp16"), ("torch", "bf16")])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(impl, amp, store):
    """Of this kernel's and of older ones, which PyTorch's optimizers have written."""
    first, second = make(config_of(impl), store, amp), make(config_of("triton"), store, amp)
    advance(second, store, range(7, 9), phase="fill")  # so that nothing is at its first value
    advance(first, store, range(5), phase="fill")
    saved = copy.deepcopy((first.model.state_dict(), first.state_dict()))
    second.model.load_state_dict(saved[0])
    places = [velocity.data_ptr() for velocity in velocities(second).values()]
    second.load_state_dict(run_state(saved[1]))
    assert places == [velocity.data_ptr() for velocity in velocities(second).values()], "in place"
    second.metrics.copy_(first.metrics)
    assert advance(first, store, range(5, 8)) == advance(second, store, range(5, 8))
    if impl == "triton":
        same(first, second)


def test_a_checkpoint_has_the_form_of_torchs(store):
    ours, theirs = (make(config_of(impl), store, "bf16") for impl in ("triton", "torch"))
    state, plain = (step.state_dict()["optimizer"] for step in (ours, theirs))
    assert state["state"].keys() == plain["state"].keys()
    assert state["param_groups"][0]["params"] == plain["param_groups"][0]["params"]
    for index, slots in plain["state"].items():
        assert {k: v.shape for k, v in state["state"][index].items()} == {k: v.shape for k, v in slots.items()}


@pytest.mark.parametrize("amp, launches", [("fp32", 1), ("bf16", 2)])
def test_launches_of_a_step(amp, launches, store):
    """One for what lies in one storage: the recurrent nets' copies do, and the heads'."""
    step = make(config_of("auto"), store, amp)
    advance(step, store, range(1), phase="fill")
    with kernels_on_cpu() as seen:
        advance(step, store, range(1, 2), phase="fill")
    assert [launch.kernel for launch in seen.launches] == ["_update_kernel"] * launches
    assert step.update.says == "SGD of fastmc.kernels (with the key encoder, in one pass)"
