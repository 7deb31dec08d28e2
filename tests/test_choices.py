"""What of the machine a step uses, and why."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.torch_version import TorchVersion

import kernels
from fastmc.backends import DRAW, VIEWS, Need
from fastmc.config import Config, StepConfig
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.placed.streamed import StreamedStore
from fastmc.data.store import PackedStore
from fastmc.skeleton import NTU25
from fastmc.views.draw import AugmentConfig, draw_params
from train import run
from train.command.parse import parse
from train.engine.choices import choose_amp, choose_compile, choose_graph, choose_overlap

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has one; returns what it says of bfloat16."""
    has = {"bf16": True, "cudnn": 91900}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an H100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has["bf16"])
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: has["cudnn"])
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cu130"))
    return has


def test_precision(gpu):
    assert choose_amp(StepConfig(), CUDA) == ("bf16", "an H100 has it")
    gpu["bf16"] = False
    assert choose_amp(StepConfig(), CUDA) == ("fp32", "an H100 has no bfloat16")
    assert choose_amp(StepConfig(), CPU).value == "fp32"
    assert choose_amp(StepConfig(amp="bf16"), CPU) == ("bf16", "--amp bf16")
    with pytest.raises(ValueError, match="amp = 'tf32' needs an NVIDIA GPU"):
        choose_amp(StepConfig(amp="tf32"), CPU)


@pytest.mark.parametrize(
    ("cudnn", "pytorch", "reason"),
    [
        (91002, "2.11.0", "cuDNN 9.10.2 has no recurrent nets in bfloat16, 9.13.0 has"),
        (None, "2.11.0", "PyTorch finds no cuDNN"),
        (91300, "2.9.1+cu128", "PyTorch 2.9.1+cu128 does not use cuDNN for recurrent nets in bfloat16, 2.10 does"),
    ],
)
def test_bfloat16_is_not_taken_where_cudnn_has_no_recurrent_nets_in_it(gpu, monkeypatch, cudnn, pytorch, reason):
    """PyTorch would go through the frames by itself, without a word."""
    gpu["cudnn"] = cudnn
    monkeypatch.setattr(torch, "__version__", TorchVersion(pytorch))
    assert choose_amp(StepConfig(), CUDA) == ("fp16", reason)
    with pytest.raises(ValueError, match=r"amp = 'bf16' would be slower than fp32: .* Give --amp fp16, or upgrade"):
        choose_amp(StepConfig(amp="bf16"), CUDA)
    assert choose_amp(StepConfig(amp="bf16"), CPU).value == "bf16", "a check of arithmetic, not a speed"
    assert choose_amp(StepConfig(amp="tf32"), CUDA).value == "tf32"


def test_the_first_versions_that_have_it(gpu, monkeypatch):
    gpu["cudnn"] = 91300
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.0"))
    assert choose_amp(StepConfig(), CUDA).value == "bf16"


def test_compile(gpu, monkeypatch):
    assert choose_compile(StepConfig(), CUDA).value == "on"
    assert choose_compile(StepConfig(), CPU) == ("off", "on cpu it costs more than it saves")
    assert choose_compile(StepConfig(compile="off"), CUDA) == ("off", "--compile off")
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: "Triton is not installed")
    assert choose_compile(StepConfig(), CUDA) == ("off", "Triton is not installed")
    with pytest.raises(ValueError, match="compile = 'on' is impossible: Triton is not installed"):
        choose_compile(StepConfig(compile="on"), CUDA)


def test_compile_without_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"compile = 'on' is impossible: torch.compile finds no C\+\+ compiler"):
        choose_compile(StepConfig(compile="on"), CPU)


def test_cuda_graph(data_root):
    store = PackedStore.open(data_root / "small")
    resident, streamed = ResidentStore(store), StreamedStore(store, CPU, torch.float32, in_memory=True)
    config = Config()
    assert choose_graph(config, resident, CUDA) == ("on", "the whole step")
    assert "--placement device" in choose_graph(config, streamed, CUDA).why
    slow = replace(config, step=replace(config.step, impl="reference"))
    assert "--impl reference reads" in choose_graph(slow, resident, CUDA).why
    slow = replace(config, step=replace(config.step, view_impl="reference"))
    assert "--view-impl reference reads" in choose_graph(slow, resident, CUDA).why
    assert "need an NVIDIA GPU" in choose_graph(config, resident, CPU).why
    off, on = (replace(config, step=StepConfig(cuda_graph=word)) for word in ("off", "on"))
    assert choose_graph(off, resident, CUDA) == ("off", "--cuda-graph off")
    assert choose_graph(on, resident, CUDA).value == "on"
    with pytest.raises(ValueError, match="cuda_graph = 'on' is impossible: streamed frames"):
        choose_graph(on, streamed, CUDA)


def test_overlap(gpu):
    def of(asked: str, method: str = "a2mc") -> Config:
        return Config(step=StepConfig(overlap=asked), method=method)

    choose = partial(choose_overlap, has_work=True)
    assert choose(of("auto"), CUDA) == ("on", "the key encoder beside the attack")
    assert choose(of("off"), CUDA) == ("off", "--overlap off")
    assert choose(of("auto"), CPU) == ("off", "a second stream needs a GPU, not cpu")
    alone = "--method b1 has nothing to compute beside the rest"
    assert choose_overlap(of("auto", "b1"), CUDA, has_work=False) == ("off", alone)
    with pytest.raises(ValueError, match="overlap = 'on' is impossible: a second stream needs a GPU"):
        choose(of("on"), CPU)


# What no kernel can bear


SIZES = {
    (64, 2, 25): None,
    (256, 1, 15): None,
    (16, 1, 256): None,
    (65, 2, 25): "a program holds at most 4096 joints of a view, and 65 frames of 2 bodies of 25 joints take 8192",
    (512, 1, 8): "a program filters views of at most 256 frames, and these have 512",
    (1024, 1, 4): "a program filters views of at most 256 frames, and these have 1024",
    (8, 1, 300): "a program draws for bodies of at most 256 joints, and these have 300",
}
"""(T, M, V) of views, and why Triton's kernels do not make them: they spill, or the compiler takes minutes or more."""


@pytest.mark.parametrize("size", SIZES)
def test_sizes_that_the_kernels_of_views_cannot_bear_are_pytorch_s(size, gpu):
    reason, joints = SIZES[size], size[2]
    for operation, need, refused in (
        (VIEWS, Need(CUDA, size=size), reason),
        (DRAW, Need(CUDA, joints=joints), reason if joints > 256 else None),
    ):
        assert operation.choose("auto", need) == ("torch" if refused else "triton")
        assert operation.passed_by(need) == (f"triton cannot: {operation.why_not('triton', need)}" if refused else None)
        if refused:
            with pytest.raises(RuntimeError, match=re.escape(f"impl='triton' cannot run: {refused}")):
                operation.choose("triton", need)


def test_choices_of_many_joints_are_not_drawn_by_the_kernel_that_was_asked_for():
    frames = torch.full((2,), 30)
    with pytest.raises(RuntimeError, match="'triton' cannot run: a program draws for bodies of at most 256 joints"):
        draw_params(AugmentConfig(), frames, 543, views=(0,), seed=0, step=0, sample=frames, impl="triton")


@pytest.mark.parametrize(
    ("preset", "frames", "says"),
    [
        ("ascal", 150, "views by torch, slower: triton cannot: a program holds at most 4096 joints of a view, and 150"),
        ("a2mc", 64, None),
        ("a2mc", 65, "views by torch, slower: triton cannot: a program holds at most 4096 joints of a view, and 65"),
    ],
)
def test_a_run_says_why_its_views_have_no_kernel(preset, frames, says, gpu, told):
    config = parse(["--dataset", "ntu60", "--method", preset, "--frames", str(frames)])
    assert preset != "ascal" or parse(["--dataset", "ntu60", "--method", "ascal"]).frames == frames, "its own"
    layout = SimpleNamespace(skeleton=NTU25, max_bodies=2, dtype=torch.float32)
    setup = SimpleNamespace(
        skeleton=NTU25, max_bodies=2, frames=config.frames, encoder=SimpleNamespace(feature_dim=128)
    )
    run.say_what_is_slower(SimpleNamespace(config=config, model=SimpleNamespace(setup=setup), data=layout, device=CUDA))
    assert [record.getMessage()[: len(says or "")] for record in told.records] == ([says] if says else [])
