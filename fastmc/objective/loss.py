"""The contrastive losses: MC loss (eq. 8-11) and InfoNCE (eq. 1-3), with a choice of implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmc.arguments import (
    PRECISIONS,
    check_choice,
    check_contrast,
    check_mixing,
    convert_features,
    mixing_vector,
    working_dtype,
)
from fastmc.backends import CONTRAST, Need
from fastmc.contrast_table import A2MC, B1, B3, Table
from fastmc.objective.ops import contrast_losses
from fastmc.reference import contrast as reference


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
    precision: str = "bf16x3",
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
        impl: ``"reference"``, ``"torch"`` (chunks of the bank, O(K) memory whatever B), ``"cpp"`` (the same in C++),
            ``"triton"``, or ``"auto"``: triton on a GPU and cpp on a CPU where they can run, else torch. Of all but the
            reference a second derivative is an error.
        precision: of triton's products; the others compute in their tensors' dtype. ``"bf16x3"``: float32 operands as
            sums of two bfloat16, about 16 bits; ``"ieee"``: float32; ``"bf16"``: rounded to bfloat16.

    Returns:
        A scalar, in the widest dtype of the inputs and at least float32 (half-precision features are widened, and
        autocast does not apply inside: logits are similarities divided by tau).

    Raises:
        ValueError: an invalid input; the message names the argument. The range of a mixing tensor is checked on the
            CPU only, since on a GPU the check would wait for the device.
        RuntimeError: ``impl`` cannot run; the message says why.
    """
    features = {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    check_contrast(features, bank, temperature)
    return _losses(features, bank, mc_table(mixing), mixing, temperature, mix, impl, precision).sum()


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
    precision: str = "bf16x3",
) -> tuple[Tensor, Tensor, Tensor]:
    """(L_1, L_2, L_3) of eq. 9-11, three scalars; arguments and errors as for :func:`mc_loss`."""
    features = {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    check_contrast(features, bank, temperature)
    l1, l2, l3 = _losses(features, bank, mc_table(mixing), mixing, temperature, mix, impl, precision).unbind()
    return l1, l2, l3


def info_nce(
    f: Tensor,
    f0: Tensor,
    bank: Tensor,
    *,
    temperature: float = 0.07,
    impl: str = "auto",
    precision: str = "bf16x3",
) -> Tensor:
    """InfoNCE L_in (eq. 1) of the query features f against the key features f0, averaged over the batch.

    f and f0 are (B, D) with unit rows, bank is (K, D) and normalised inside; f0 is a constant. Returns a scalar;
    dtypes, ``impl``, ``precision`` and errors as for :func:`mc_loss`.
    """
    features = {"f0": f0, "f": f}
    check_contrast(features, bank, temperature)
    return _losses(features, bank, B1, None, temperature, "own", impl, precision)[0]


def mc_table(mixing: Tensor | float | None) -> Table:
    """Of the MC loss, with mixed entries or without."""
    return B3 if mixing is None else A2MC


def _losses(
    features: dict[str, Tensor],
    bank: Tensor,
    table: Table,
    mixing: Tensor | float | None,
    temperature: float,
    mix: str,
    impl: str,
    precision: str,
) -> Tensor:
    """Those of the table (q,); ``features`` are f0 and the queries."""
    check_mixing(mixing, bank, mix)
    check_choice("precision", precision, PRECISIONS)
    f0, *queries = features.values()
    dtype = working_dtype(f0, *queries, bank)
    impl = CONTRAST.choose(impl, Need(bank.device, dtype, bank.shape[1]))
    with torch.autocast(bank.device.type, enabled=False):
        bank = bank.to(dtype)
        if impl == "reference":
            f0, *queries = (f.to(dtype) for f in (f0, *queries))
            coefficients = mixing.detach().to(dtype) if isinstance(mixing, Tensor) else mixing
            return reference.contrast_losses(f0, queries, bank, table, coefficients, temperature=temperature, mix=mix)
        f0, *queries = convert_features(impl, [f0, *queries], dtype)
        coefficients = mixing_vector(mixing, bank, dtype)
        settings = (temperature, mix == "tiled", precision, impl)
        return contrast_losses(f0.detach(), queries, bank, coefficients, table, *settings)
