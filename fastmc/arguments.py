"""What functions of the library accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from fastmc.backends import may_look
from fastmc.checks import check_number

MIXES = ("own", "tiled")
PRECISIONS = ("bf16x3", "ieee", "bf16")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest of the tensors' dtypes, at least float32."""
    return reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


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
