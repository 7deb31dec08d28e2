"""What of the machine a step uses: precision, compiler, CUDA graph. Each choice comes with its reason, for the log."""

from __future__ import annotations

from typing import NamedTuple

import torch

import kernels
from fastmc.config import Config, StepConfig
from fastmc.data.placed.resident import PlacedStore, ResidentStore
from fastmc.encoders.amp import no_bf16_reason


class Choice(NamedTuple):
    """What is used, and why."""

    value: str
    why: str


def choose_amp(settings: StepConfig, device: torch.device) -> Choice:
    """Key of `fastmc.encoders.amp.AMP`.

    Raises:
        ValueError: the GPU has not what was asked for.
    """
    asked = settings.amp
    if asked == "auto":
        if device.type != "cuda":
            return Choice("fp32", f"half precision is slower on {device.type}")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("fp32", f"{_name(device)} has no bfloat16")
        reason = no_bf16_reason()
        return Choice("bf16", f"{_name(device)} has it") if reason is None else Choice("fp16", reason)
    if asked == "tf32" and device.type != "cuda":
        raise ValueError(f"amp = 'tf32' needs an NVIDIA GPU, not {device.type}; give --amp fp32")
    if asked == "bf16" and device.type == "cuda" and (reason := no_bf16_reason()) is not None:
        raise ValueError(f"amp = 'bf16' would be slower than fp32: {reason}. Give --amp fp16, or upgrade PyTorch")
    return Choice(asked, f"--amp {asked}")


def choose_compile(settings: StepConfig, device: torch.device) -> Choice:
    """on or off.

    Raises:
        ValueError: it was asked for and there is no compiler.
    """
    asked = settings.compile
    if asked == "off":
        return Choice("off", "--compile off")
    if asked == "auto" and device.type != "cuda":
        return Choice("off", f"on {device.type} it costs more than it saves")
    reason = no_compiler_reason(device)
    if reason is not None and asked == "on":
        raise ValueError(f"compile = 'on' is impossible: {reason}. Give --compile auto")
    return Choice("on", "around the recurrent calls") if reason is None else Choice("off", reason)


def no_compiler_reason(device: torch.device) -> str | None:
    """Why torch.compile cannot generate code for this device, as a sentence; None if it can."""
    if device.type == "cuda":
        return kernels.unavailable_reason(device)
    from torch._inductor import cpp_builder  # takes seconds to import

    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError as error:
        return f"torch.compile finds no C++ compiler ({error})"
    return None


def choose_graph(config: Config, store: PlacedStore, device: torch.device, no_exchange: str | None = None) -> Choice:
    """on or off. ``no_exchange``: why the ranks' exchanges cannot be captured (`World.no_graph_reason`), if they
    cannot.

    Raises:
        ValueError: it was asked for and is impossible.
    """
    asked = config.step.cuda_graph
    if asked == "off":
        return Choice("off", "--cuda-graph off")
    reason = no_graph_reason(config, store, device) or no_exchange
    if reason is not None and asked == "on":
        raise ValueError(f"cuda_graph = 'on' is impossible: {reason}. Give --cuda-graph auto")
    return Choice("on", "the whole step") if reason is None else Choice("off", reason)


def no_graph_reason(config: Config, store: PlacedStore, device: torch.device) -> str | None:
    """Why a step cannot be captured, as a sentence; None if it can."""
    if device.type != "cuda":
        return f"CUDA graphs need an NVIDIA GPU, not {device.type}"
    if not isinstance(store, ResidentStore):
        return "streamed frames lie elsewhere at every step (--placement device)"
    for flag, impl in (("--impl", config.step.impl), ("--view-impl", config.step.view_impl)):
        if impl == "reference":
            return f"{flag} reference reads numbers back from the device"
    return None


def choose_overlap(config: Config, device: torch.device, *, has_work: bool) -> Choice:
    """on or off; ``has_work``: whether the method has work for a second stream.

    Raises:
        ValueError: it was asked for and is impossible.
    """
    asked, reason = config.step.overlap, None
    if asked == "off":
        return Choice("off", "--overlap off")
    if device.type != "cuda":
        reason = f"a second stream needs a GPU, not {device.type}"
    elif not has_work:
        reason = f"--method {config.method} has nothing to compute beside the rest"
    if reason is not None and asked == "on":
        raise ValueError(f"overlap = 'on' is impossible: {reason}. Give --overlap auto")
    return Choice("on", "the key encoder beside the attack") if reason is None else Choice("off", reason)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
