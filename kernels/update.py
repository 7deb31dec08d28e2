"""One pass over the weights of both encoders: descent of the query encoder, eq. 4, and their copies in half precision.

    g = unscale * gradient + weight_decay * query      query    -= lr * velocity
    velocity = momentum * velocity + g                 key      -= (1 - alpha) * (key - query)

A weight is read and written once, 30 bytes with copies in half precision. Tensors of one group lie, in each role, in
one storage, in any order; a table on the device says where in each of them a program's chunk begins, so that nothing is
uploaded at a step.

The order of operations is that of PyTorch's float32 SGD and of `train.engine.optimizer.KeyUpdate` on a CPU, bit for
bit: each product with a rate is one fused multiply-add with what follows it, momentum * velocity is rounded by itself.
So nothing else may be fused, and the kernel is compiled without the compiler's own fusing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Weights of a program: 8 in a thread."""
WIDE = 4
"""Weights of an access where chunks begin at multiples of it in every storage: 16 bytes in float32, 8 in half
precision. A warp takes whole lines of either. With 16 bytes in half precision too, float32 has to go through shared
memory, since a thread then holds other weights of the one than of the other."""


@triton.jit
def _update_kernel(
    p_table,  # (programs, 6): of its chunk the number of weights; where it begins in query, key, gradient, copies
    p_query,
    p_velocity,  # laid out as query
    p_key,
    p_gradient,  # float32, float16 or bfloat16
    p_query_copy,  # float16 or bfloat16; None without copies
    p_key_copy,
    p_skip,  # () each: unless 0, all is left as it is
    p_lr,
    p_unscale,  # what multiplies the gradients, or None for 1
    momentum,
    weight_decay,
    follow,  # 1 - alpha
    IS_WIDE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if tl.load(p_skip) == 0.0:
        p_row = p_table + tl.program_id(0).to(tl.int64) * 6
        count, start, start_key = tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2)
        start_gradient = tl.load(p_row + 3)
        if IS_WIDE:
            count, start = tl.multiple_of(count, WIDE), tl.multiple_of(start, WIDE)
            start_key, start_gradient = tl.multiple_of(start_key, WIDE), tl.multiple_of(start_gradient, WIDE)
        o_w = tl.arange(0, BLOCK)
        mask = o_w < count
        b_query = tl.load(p_query + start + o_w, mask=mask, other=0.0)
        b_velocity = tl.load(p_velocity + start + o_w, mask=mask, other=0.0)
        b_key = tl.load(p_key + start_key + o_w, mask=mask, other=0.0)
        b_g = tl.load(p_gradient + start_gradient + o_w, mask=mask, other=0.0).to(tl.float32)
        if p_unscale is not None:
            b_g *= tl.load(p_unscale)

        b_g = tl.fma(b_query, weight_decay, b_g)
        b_velocity = b_velocity * momentum + b_g
        b_query = tl.fma(b_velocity, -tl.load(p_lr), b_query)
        b_key = tl.fma(b_key - b_query, -follow, b_key)

        tl.store(p_query + start + o_w, b_query, mask=mask)
        tl.store(p_velocity + start + o_w, b_velocity, mask=mask)
        tl.store(p_key + start_key + o_w, b_key, mask=mask)
        if p_query_copy is not None:
            start_query_copy, start_key_copy = tl.load(p_row + 4), tl.load(p_row + 5)
            if IS_WIDE:
                start_query_copy = tl.multiple_of(start_query_copy, WIDE)
                start_key_copy = tl.multiple_of(start_key_copy, WIDE)
            dtype: tl.constexpr = p_query_copy.dtype.element_ty
            tl.store(p_query_copy + start_query_copy + o_w, b_query.to(dtype), mask=mask)
            tl.store(p_key_copy + start_key_copy + o_w, b_key.to(dtype), mask=mask)


@dataclass(frozen=True)
class Table:
    """Which chunk each program takes."""

    chunks: Tensor
    """(programs, 6) int64 on the device."""
    is_wide: bool


class UpdateGroup:
    """Weights that one launch updates.

    Attributes:
        velocity: their velocities, zeros at first: views of one storage, laid out as the query's.
        counts: how many weights each tensor has.
    """

    def __init__(
        self,
        query: Sequence[Tensor],
        key: Sequence[Tensor],
        query_copy: Sequence[Tensor] | None = None,
        key_copy: Sequence[Tensor] | None = None,
    ) -> None:
        """Each a list of contiguous tensors of one storage, of the same shapes: the encoders' weights in float32, and
        the copies in half precision that follow them. ValueError if the tensors of a list do not share a storage."""
        self._lists = [query, key, *(copies for copies in (query_copy, key_copy) if copies is not None)]
        self.counts = [weight.numel() for weight in query]
        starts = [starts_in_one_storage(tensors) for tensors in self._lists]
        if None in starts:
            raise ValueError("the tensors of a role must be contiguous and share a storage")
        self._starts = [found for found in starts if found is not None]
        self._query, self._key, *self._copies = (flat(tensors) for tensors in self._lists)
        self._made_at = self._addresses()
        self._velocity = torch.zeros_like(self._query)
        self.velocity = self._pieces(self._velocity)
        self._collected: Tensor | None = None
        self._tables: dict[tuple[int, ...], Table] = {}
        self._make_table(self._starts[0])

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the weights that autograd sees: the copies, where there are any."""
        return self._copies[0].dtype if self._copies else self._query.dtype

    @property
    def programs(self) -> int:
        return sum(triton.cdiv(count, BLOCK) for count in self.counts)

    def step(
        self,
        gradients: Sequence[Tensor],
        *,
        skip: Tensor,
        lr: Tensor,
        unscale: Tensor | None,
        momentum: float,
        weight_decay: float,
        alpha: float,
    ) -> None:
        """One launch; after a copy of the gradients, unless they lie in one storage.

        Args:
            gradients: one for each weight, in ``gradient_dtype``.
            skip: () float32; 1 to leave everything as it is, 0 to update.
            lr: () float32.
            unscale: () float32 that multiplies the gradients; None for 1.
            alpha: of eq. 4.

        Raises:
            RuntimeError: a weight or copy lies elsewhere than when the group was made.
        """
        if self._addresses() != self._made_at:
            raise RuntimeError("weights have moved since their update was made (by .to() or the like): make a new step")
        gradients, table = self._reached(gradients)
        query_copy, key_copy = self._copies or (None, None)
        _update_kernel[(len(table.chunks),)](
            p_table=table.chunks, p_query=self._query, p_velocity=self._velocity, p_key=self._key,
            p_gradient=flat(gradients), p_query_copy=query_copy, p_key_copy=key_copy, p_skip=skip, p_lr=lr,
            p_unscale=unscale, momentum=float(momentum), weight_decay=float(weight_decay), follow=1.0 - alpha,
            IS_WIDE=table.is_wide, WIDE=WIDE, BLOCK=BLOCK, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip

    def _reached(self, gradients: Sequence[Tensor]) -> tuple[Sequence[Tensor], Table]:
        """The gradients where the kernel reaches them, and the table that leads to them. cuDNN's backward pass gives
        all of them in one storage; others are copied to one of our own."""
        starts = starts_in_one_storage(gradients)
        # A table is uploaded, which must not be captured into a CUDA graph; so is only what the steps before have seen.
        if starts is not None and starts not in self._tables and not is_being_captured(gradients[0]):
            self._make_table(starts)
        if starts is None or starts not in self._tables:
            if self._collected is None:
                self._collected = torch.empty(self._query.shape, dtype=self.gradient_dtype, device=self._query.device)
            collected, starts = self._pieces(self._collected), self._starts[0]
            torch._foreach_copy_(collected, list(gradients))
            gradients = collected
        return gradients, self._tables[starts]

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensors in self._lists for tensor in tensors]

    def _pieces(self, storage: Tensor) -> list[Tensor]:
        """Of a flat tensor laid out as the query's weights."""
        weights, starts = self._lists[0], self._starts[0]
        return [storage[start : start + w.numel()].view(w.shape) for w, start in zip(weights, starts, strict=True)]

    def _make_table(self, gradient: tuple[int, ...]) -> None:
        query, key, *copies = self._starts
        rows = []
        for count, *starts in zip(self.counts, query, key, gradient, *copies, strict=True):
            starts += [0] * (5 - len(starts))
            rows += [
                [min(BLOCK, count - first), *(start + first for start in starts)] for first in range(0, count, BLOCK)
            ]
        is_wide = all(number % WIDE == 0 for row in rows for number in row)
        self._tables[gradient] = Table(torch.tensor(rows, device=self._query.device), is_wide)


def is_being_captured(tensor: Tensor) -> bool:
    """Whether work on the tensor's device goes into a CUDA graph now."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def starts_in_one_storage(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Where each begins, in elements from the first of them in memory; None if they are not contiguous or share no
    storage."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    if len(storages) > 1 or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    offsets = [int(tensor.storage_offset()) for tensor in tensors]
    first = min(offsets)
    return tuple(offset - first for offset in offsets)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """From the first to the last of contiguous tensors that share a storage, as a vector."""
    spans = [(int(tensor.storage_offset()), tensor.numel()) for tensor in tensors]
    first, behind = min(start for start, _ in spans), max(start + count for start, count in spans)
    return tensors[0].detach().as_strided((behind - first,), (1,), first)
