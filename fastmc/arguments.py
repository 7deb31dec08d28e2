"""What the contrastive functions accept, and which implementation serves a call."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

import kernels
from fastmc.checks import check_number

MIXES = ("own", "tiled")
IMPLS = ("auto", "triton", "torch", "reference")
VIEW_IMPLS = (*IMPLS, "numba")
PRECISIONS = ("bf16x3", "ieee", "bf16")


def choose(impl: str, device: torch.device, dtype: torch.dtype, dim: int = 1) -> str:
    """The implementation that ``impl`` names; "auto" takes triton on a GPU where it can run, and torch elsewhere.
    ``dtype`` is what is computed in, ``dim`` is D.

    Raises:
        ValueError: an unknown name.
        RuntimeError: ``"triton"`` was asked for and cannot run.
    """
    if impl == "auto":
        on_gpu = device.type == "cuda" and _reason("triton", device, dtype, dim) is None
        return "triton" if on_gpu else "torch"
    reason = _reason(impl, device, dtype, dim)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}; impl='auto' takes what can")
    return impl


def choose_for_views(
    impl: str, device: torch.device, dtype: torch.dtype = torch.float32, size: tuple[int, int, int] | None = None
) -> str:
    """As `choose`, of the implementations of views; "auto" takes numba on a CPU where it can run. ``dtype`` is that of
    the clips' frames, ``size`` the (T, M, V) of the views."""
    check_choice("impl", impl, VIEW_IMPLS)
    if impl == "auto":
        fast = "triton" if device.type == "cuda" else "numba"
        compiling = torch.compiler.is_compiling() and fast == "numba"
        return "torch" if compiling or no_views_reason(fast, device, dtype, size) is not None else fast
    reason = no_views_reason(impl, device, dtype, size)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}; impl='auto' takes what can")
    return impl


def no_views_reason(
    impl: str, device: torch.device, dtype: torch.dtype = torch.float32, size: tuple[int, int, int] | None = None
) -> str | None:
    """Why ``impl`` cannot make views, as the end of a sentence; None if it can. Arguments as above."""
    if impl == "numba":
        return _numba_reason(device, dtype)
    too_large = kernels.view_reason(*size) if impl == "triton" and size is not None else None
    return too_large or unavailable_reason(impl, device)


def _numba_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it makes views on a CPU and the clips are on {device.type}"
    if dtype != torch.float32:
        return f"it takes frames in float32 and these are {dtype}"
    return numba_problem()


@cache
def numba_problem() -> str | None:
    """Why numba cannot compile anything, as the end of a sentence; None if it can."""
    try:
        import numba
    except ImportError as error:
        return f"numba cannot be imported ({error}); pip install fastmc[cpu] brings it"
    disabled = numba.config.DISABLE_JIT  # type: ignore[attr-defined]
    return "the environment variable NUMBA_DISABLE_JIT is set" if disabled else None


def call(modules: Mapping[str, str], impl: str, name: str, device: torch.device, *arguments: Any) -> Any:
    """Call function ``name`` of the module that ``modules`` names for ``impl``, as in `plainly`. The module is imported
    here: Triton and numba need not be installed."""
    function = getattr(importlib.import_module(modules[impl]), name)
    with plainly(device, name):
        return function(*arguments)


@contextmanager
def plainly(device: torch.device, what: str) -> Iterator[None]:
    """Within: no gradient is recorded, dtypes are those that are written, and Triton launches on ``device``, for a
    profiler as the operator ``what``."""
    autocast = torch.amp.is_autocast_available(device.type)
    written = torch.autocast(device.type, enabled=False) if autocast else nullcontext()
    with torch.no_grad(), written, kernels.launching_on(device, what):
        yield


def _reason(impl: str, device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    reason = unavailable_reason(impl, device, dtype)
    if reason is None and impl == "triton" and dim > kernels.MAX_DIM:
        reason = f"its kernels take features of D <= {kernels.MAX_DIM} and these have {dim}"
    return reason


@torch.compiler.assume_constant_result
def unavailable_reason(impl: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why ``impl`` cannot compute in ``dtype`` on ``device``, as the end of a sentence; None if it can.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("impl", impl, IMPLS)
    if impl != "triton":
        return None
    reason = kernels.unavailable_reason(device)
    if reason is None and dtype == torch.float64:
        reason = "its kernels compute in float32 and the tensors are float64"
    return reason


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest of the tensors' dtypes, at least float32."""
    return reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def may_look(tensor: Tensor) -> bool:
    """Whether values may decide what to do next: free on a CPU, while a GPU would be waited for."""
    return tensor.device.type == "cpu"


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """One of the known words."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def check_contrast(features: Mapping[str, Tensor], bank: Tensor, temperature: float) -> None:
    """Features (B, D) by name, all of one shape, against a bank (K, D) on the same device; a usable temperature."""
    for name, tensor in {"bank": bank, **features}.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != 2 or 0 in tensor.shape:
            rows = "K" if name == "bank" else "B"
            raise ValueError(f"{name} must be ({rows}, D) with {rows}, D >= 1, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != bank.device:
            raise ValueError(f"{name} is on {tensor.device}, bank is on {bank.device}: they must be on one device")
    first, *others = features
    for name in others:
        if features[name].shape != features[first].shape:
            shape, expected = tuple(features[name].shape), tuple(features[first].shape)
            raise ValueError(f"{name} is {shape}, {first} is {expected}: they must be equal")
    if bank.shape[1] != features[first].shape[1]:
        raise ValueError(f"bank has rows of {bank.shape[1]} elements, {first} of {features[first].shape[1]}")
    check_number("temperature", temperature, above=0)


def check_mixing(mixing: Tensor | float | None, bank: Tensor, mix: str) -> None:
    """mixing is None, a number in [0, 1] or (K,) such numbers beside the bank; mix is known."""
    check_choice("mix", mix, MIXES)
    if mixing is None:
        return
    if not isinstance(mixing, Tensor):
        check_number("mixing", mixing, at_least=0, at_most=1)
        return
    if mixing.shape != bank.shape[:1]:
        raise ValueError(f"mixing must be ({len(bank)},), one per bank entry, got {tuple(mixing.shape)}")
    if not mixing.is_floating_point():
        raise ValueError(f"mixing must be floating point, got {mixing.dtype}")
    if mixing.device != bank.device:
        raise ValueError(f"mixing is on {mixing.device}, bank is on {bank.device}: they must be on one device")
    # While compiling, looking at the values would break the graph.
    if may_look(mixing) and not torch.compiler.is_compiling():
        outside = ~((mixing >= 0) & (mixing <= 1))
        if outside.any():
            raise ValueError(f"mixing must lie in [0, 1], got {mixing[outside][0].item()}")


def check_update(bank: Tensor, momentum: Tensor, lr: float, momentum_factor: float, weight_decay: float) -> None:
    """A bank and velocity that a step can change in place, and the numbers of eq. 7."""
    if bank.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bank must be float32 or float64, got {bank.dtype}: its updates are below half precision")
    for what in ("shape", "dtype", "device"):
        ours, theirs = getattr(momentum, what, None), getattr(bank, what)
        if ours != theirs:
            raise ValueError(f"momentum must have the bank's {what}, {theirs}; got {ours}")
    check_number("lr", lr, at_least=0)
    check_number("momentum_factor", momentum_factor, at_least=0, at_most=1)
    check_number("weight_decay", weight_decay, at_least=0)


def mixing_vector(mixing: Tensor | float | None, bank: Tensor, dtype: torch.dtype) -> Tensor | None:
    """lambda as a constant (K,) in ``dtype`` beside the bank, or None."""
    if mixing is None:
        return None
    if isinstance(mixing, Tensor):
        return mixing.detach().to(dtype)
    return torch.full(bank.shape[:1], mixing, dtype=dtype, device=bank.device)


def convert_features(impl: str, features: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """f0 and the queries in the dtype that ``impl`` computes in. Triton's kernels widen half precision themselves, and
    want one dtype of all queries."""
    key, *queries = features
    if impl != "triton":
        return [f.to(dtype) for f in features]
    shared = queries[0].dtype if len({f.dtype for f in queries}) == 1 else dtype
    return [_narrow(key, key.dtype, dtype), *(_narrow(f, shared, dtype) for f in queries)]


def _narrow(tensor: Tensor, wanted: torch.dtype, dtype: torch.dtype) -> Tensor:
    return tensor.to(wanted if wanted in (torch.float16, torch.bfloat16) else dtype)
