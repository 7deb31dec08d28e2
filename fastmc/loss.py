"""The contrastive losses: MC loss (eq. 8-11) and InfoNCE (eq. 1-3), with a choice of implementations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

import kernels
from fastmc.checks import check_number
from fastmc.reference import contrast as reference

MIXES = ("own", "tiled")
IMPLS = ("auto", "triton", "torch", "reference")

Implementation = TypeVar("Implementation", bound=Callable[..., Any])


def mc_loss(
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float = 0.07,
    mix: str = "own",
    impl: str = "auto",
) -> Tensor:
    """The MC loss L = L_1 + L_2 + L_3 (eq. 9-11), averaged over the batch.

    Gradients go to f1, f2, f3 and to bank (through the normalisation of its rows). Constants: f0, mixing, the target
    distribution of L_2, and the feature inside a mixed bank. Mixed entries are not normalised again (eq. 8).

    Args:
        f0: (B, D) key features, unit rows.
        f1, f2, f3: (B, D) query features, unit rows: weak and strong view of the attacked sequence, basic view.
        bank: (K, D) raw entries of M_0, normalised inside as ``torch.nn.functional.normalize`` does (eps 1e-12).
        mixing: lambda of eq. 8 in [0, 1], (K,) or one float; None leaves the mixed half of every bank out.
        temperature: tau, > 0.
        mix: ``"own"`` mixes sample n's bank with its own feature; ``"tiled"`` mixes entry i with the feature of sample
            i mod B.
        impl: ``"reference"``, ``"torch"`` (no mixed bank is built: memory O(BK), not O(BKD)), ``"triton"``, or
            ``"auto"``: triton on a GPU where it can run, torch elsewhere.

    Returns:
        A scalar, in the widest dtype of the inputs and at least float32 (half-precision features are widened, and
        autocast does not apply inside: logits are similarities divided by tau).

    Raises:
        ValueError: an invalid input; the message names the argument. The range of a mixing tensor is checked on the
            CPU only, since on a GPU the check would wait for the device.
        RuntimeError: ``impl="triton"`` cannot run; the message says why.
    """
    l1, l2, l3 = mc_loss_parts(f0, f1, f2, f3, bank, mixing, temperature=temperature, mix=mix, impl=impl)
    return l1 + l2 + l3


def mc_loss_parts(
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float = 0.07,
    mix: str = "own",
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """(L_1, L_2, L_3) of eq. 9-11, three scalars; arguments and errors as for :func:`mc_loss`."""
    features = {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    check_contrast(features, bank, temperature)
    check_mixing(mixing, bank, mix)
    loss_parts = choose(_MC_LOSS_PARTS, impl, bank.device)
    dtype = working_dtype(f0, f1, f2, f3, bank)
    if isinstance(mixing, Tensor):
        mixing = mixing.detach().to(dtype)
    with torch.autocast(bank.device.type, enabled=False):
        wide = [t.to(dtype) for t in (*features.values(), bank)]
        return loss_parts(*wide, mixing, temperature=temperature, mix=mix)


def info_nce(f: Tensor, f0: Tensor, bank: Tensor, *, temperature: float = 0.07, impl: str = "auto") -> Tensor:
    """InfoNCE L_in (eq. 1) of the query features f against the key features f0, averaged over the batch.

    f and f0 are (B, D) with unit rows, bank is (K, D) and normalised inside; f0 is a constant. Returns a scalar;
    dtypes, ``impl`` and errors as for :func:`mc_loss`.
    """
    check_contrast({"f": f, "f0": f0}, bank, temperature)
    loss = choose(_INFO_NCE, impl, bank.device)
    dtype = working_dtype(f, f0, bank)
    with torch.autocast(bank.device.type, enabled=False):
        return loss(f.to(dtype), f0.to(dtype), bank.to(dtype), temperature=temperature)


# The algebraic form. u . (lambda f + (1 - lambda) m_i) = lambda (u . f) + (1 - lambda) (u . m_i): the product of the
# features with the plain bank holds every logit of every mixed bank. A float32 product on a GPU follows torch's matmul
# precision; TF32's error (about 1e-3 of a similarity, divided by tau) is the caller's choice.


def _torch_mc_loss_parts(
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float,
    mix: str,
) -> tuple[Tensor, Tensor, Tensor]:
    f0 = f0.detach()
    p1, p2, p3 = ((f * f0).sum(dim=1, keepdim=True) for f in (f1, f2, f3))
    s1, s2, s3 = (torch.cat([f1, f2, f3]) @ F.normalize(bank, dim=1, eps=1e-12).T).chunk(3)

    def logits(positive: Tensor, plain: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """u against its positive, M_0 and the bank mixed with v: (B, 1 + 2K), or (B, 1 + K) without mixing."""
        halves = [positive, plain]
        if mixing is not None:
            halves.append(mixing * _similarity(u, v.detach(), len(bank), mix) + (1 - mixing) * plain)
        return torch.cat(halves, dim=1) / temperature

    with torch.no_grad():
        target = logits(p3, s3, f3, f2).softmax(dim=1)
    l1 = _one_hot_contrast(logits(p1, s1, f1, f1))
    l2 = -(target * logits(p2, s2, f2, f2).log_softmax(dim=1)).sum(dim=1).mean()
    l3 = _one_hot_contrast(logits(p3, s3, f3, f3))
    return l1, l2, l3


def _similarity(u: Tensor, v: Tensor, size: int, mix: str) -> Tensor:
    """c: of every u with the v that each of ``size`` bank entries is mixed with, (B, 1) for own, (B, K) for tiled."""
    if mix == "own":
        return (u * v).sum(dim=1, keepdim=True)
    return (u @ v.T).repeat(1, math.ceil(size / len(v)))[:, :size]


def _one_hot_contrast(logits: Tensor) -> Tensor:
    """-log of the positive's (column 0) probability, averaged over the batch."""
    return -logits.log_softmax(dim=1)[:, 0].mean()


def _torch_info_nce(f: Tensor, f0: Tensor, bank: Tensor, *, temperature: float) -> Tensor:
    positive = (f * f0.detach()).sum(dim=1, keepdim=True)
    plain = f @ F.normalize(bank, dim=1, eps=1e-12).T
    return _one_hot_contrast(torch.cat([positive, plain], dim=1) / temperature)


def _reference_info_nce(f: Tensor, f0: Tensor, bank: Tensor, *, temperature: float) -> Tensor:
    return reference.info_nce(f, f0, reference.normalise(bank), temperature)


# A fused implementation enters its table under "triton".
_MC_LOSS_PARTS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "torch": _torch_mc_loss_parts,
    "reference": reference.mc_loss_parts,
}
_INFO_NCE: dict[str, Callable[..., Tensor]] = {
    "torch": _torch_info_nce,
    "reference": _reference_info_nce,
}


def choose(table: Mapping[str, Implementation], impl: str, device: torch.device) -> Implementation:
    """The implementation that ``impl`` names, for tensors on ``device``; "auto" takes the fastest that can run.

    Raises:
        ValueError: an unknown name.
        RuntimeError: ``"triton"`` was asked for and cannot run.
    """
    if impl == "auto":
        on_gpu = device.type == "cuda" and "triton" in table and unavailable_reason("triton", device) is None
        impl = "triton" if on_gpu else "torch"
    reason = unavailable_reason(impl, device)
    if reason is None and impl not in table:
        reason = "this function has no such implementation"
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}; impl='auto' takes what can")
    return table[impl]


def unavailable_reason(impl: str, device: torch.device) -> str | None:
    """Why ``impl`` cannot run for tensors on ``device``, as the end of a sentence; None if it can.

    Raises:
        ValueError: an unknown name.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}; got {impl!r}")
    if impl != "triton":
        return None
    reason = kernels.unavailable_reason()
    if reason is None and device.type != "cuda":
        reason = f"the tensors are on {device}, not on a GPU"
    return reason


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest of the tensors' dtypes, at least float32."""
    return reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


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
    if mix not in MIXES:
        raise ValueError(f"mix must be one of {', '.join(MIXES)}; got {mix!r}")
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
    # On a GPU, or while compiling, looking at the values would cost a wait for the device or break the graph.
    if mixing.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = ~((mixing >= 0) & (mixing <= 1))
        if outside.any():
            raise ValueError(f"mixing must lie in [0, 1], got {mixing[outside][0].item()}")
