"""Mixed precision: a network in a low precision, beside the float32 weights that learn.

A working copy is refreshed once per step and called as often as the step likes; autocast would cast the recurrent net's
weights, and lay them out for cuDNN, at every call. Input norm, unit length, loss, bank, optimizer and key encoder's
update stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.torch_version import TorchVersion

from fastmc.encoders.recurrent import flatten_

Network = TypeVar("Network", bound=nn.Module)


class Amp(NamedTuple):
    """What recurrent nets and heads compute in."""

    dtype: torch.dtype
    tensor_cores: bool
    """Whether cuDNN's recurrent nets may use them, see `tensor_cores`."""


AMP = {
    "bf16": Amp(torch.bfloat16, tensor_cores=True),
    "fp16": Amp(torch.float16, tensor_cores=True),
    "tf32": Amp(torch.float32, tensor_cores=True),
    "fp32": Amp(torch.float32, tensor_cores=False),
}
"""By the names of ``--amp``."""


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Within: cuDNN's recurrent nets use tensor cores, or do not.

    PyTorch asks cuDNN for plain multiply-adds in every dtype but float16 unless TF32 is allowed: bfloat16 needs that as
    much as float32 that may be rounded (RNNDescriptor::set in ATen/cudnn/Descriptors.h). The flag is the process's,
    which autograd's threads read too: a backward pass has to run within as well. Other products are not concerned.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


BF16_CUDNN, BF16_TORCH = 91300, "2.10"
"""The first versions whose recurrent nets are cuDNN's in bfloat16 (pytorch/pytorch#164411)."""


def no_bf16_reason() -> str | None:
    """Why cuDNN has no recurrent nets in bfloat16 here, as a sentence; None if it has. PyTorch then takes a loop over
    frames of its own, without a word."""
    if (cudnn := torch.backends.cudnn.version()) is None:
        return "PyTorch finds no cuDNN"
    if cudnn < BF16_CUDNN:
        return f"cuDNN {cudnn_text(cudnn)} has no recurrent nets in bfloat16, {cudnn_text(BF16_CUDNN)} has"
    if TorchVersion(torch.__version__) < BF16_TORCH:
        return f"PyTorch {torch.__version__} does not use cuDNN for recurrent nets in bfloat16, 2.10 does"
    return None


def cudnn_text(number: int) -> str:
    """Such as 9.13.0 for 91300."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class WorkingCopy(Generic[Network]):
    """What computes in place of an encoder or another network.

    Attributes:
        network: to be called. Batch norms, and the parts that the master names in ``in_float32``, are the master's
            own, statistics and gradients included; the others hold the master's weights as they were at the last
            `refresh`. In float32 all parts are the master's own; it is another object, so that what is compiled for a
            step serves no call of other shapes.
        pairs: each weight of the master beside the one that computes in its place, and gets its gradient.
    """

    def __init__(self, master: Network, dtype: torch.dtype) -> None:
        """Copies the weights. ``dtype``: of all parts but those in float32."""
        self.network = copy.copy(master)
        if dtype != torch.float32:
            kept = dict(_in_float32(master))
            self.network = copy.deepcopy(master)
            self._lower(self.network, dtype)
            for path, part in kept.items():
                self.network.set_submodule(path, part)
        self.pairs = list(zip(master.parameters(), self.network.parameters(), strict=True))
        self._masters: list[Tensor] = [theirs for theirs, mine in self.pairs if mine is not theirs]
        self._copies: list[Tensor] = [mine for theirs, mine in self.pairs if mine is not theirs]
        self._gradients: list[Tensor] = []
        self._versions = self._versions_now()

    @staticmethod
    def _lower(part: nn.Module, dtype: torch.dtype) -> None:
        part.to(dtype)
        for module in part.modules():
            if isinstance(module, nn.RNNBase):
                flatten_(module)

    @property
    def masters(self) -> list[nn.Parameter]:
        """The weights of the master."""
        return [master for master, _ in self.pairs]

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master's weights, in one call for all of them."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._masters)
            self._versions = self._versions_now()

    @property
    def is_stale(self) -> bool:
        """Whether an operator of PyTorch has changed a weight of the master since the last `refresh`. Our own kernels'
        changes are not seen, nor are those of a replayed graph."""
        return self._versions != self._versions_now()

    @torch.no_grad()
    def collect_(self) -> None:
        """Widen the gradients of a backward pass into those of the master, in one call; no master keeps older ones."""
        if not self._copies:
            return
        if not self._gradients:
            self._gradients = [torch.empty_like(p) for p in self._masters]
        torch._foreach_copy_(self._gradients, [gradient_of(p) for p in self._copies])
        for master, gradient, working in zip(self._masters, self._gradients, self._copies, strict=True):
            master.grad, working.grad = gradient, None

    def _versions_now(self) -> list[int]:
        """Numbers that every operator that works in place counts up."""
        return [weight._version for weight in self._masters]


def _in_float32(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and parts that stay in float32: those that the network names, and batch norms, with their statistics."""
    named = getattr(network, "in_float32", ())
    for path, part in network.named_modules():
        if path in named or isinstance(part, _BatchNorm):
            yield path, part


def gradient_of(weight: Tensor) -> Tensor:
    """That a backward pass has left there."""
    assert weight.grad is not None, "a backward pass has reached every weight"
    return weight.grad
