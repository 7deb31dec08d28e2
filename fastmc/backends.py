"""How an operation finds its implementation, and why another one cannot run.

There is one way for all: an `Operation` has its `Backend`s, each says why it cannot serve a `Need`, and "auto" takes
the first that can. A model resolves "auto" once, when it is made (`fastmc.build`); what it hands on is `Chosen`, and is
not looked at again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kernels
from kernels import cpu

IMPLS = ("auto", "triton", "cpp", "torch", "reference")
VIEW_IMPLS = ("auto", "triton", "numba", "torch", "reference")


class Need(NamedTuple):
    """What an implementation has to serve.

    Attributes:
        dtype: that is computed in; of views, that of the clips' frames.
        dim: D of features. size: (T, M, V) of views. joints: V, of their choices.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    dim: int = 1
    size: tuple[int, int, int] | None = None
    joints: int = 1


class Backend(NamedTuple):
    """An implementation: its name, its module, which is imported when it is called (Triton and numba need not be
    installed), the kind of device on which "auto" takes it (None for any), why it cannot serve, as the end of a
    sentence (None if it can), and whether torch.compile cannot trace it: "auto" passes it by there."""

    name: str
    module: str
    auto_on: str | None
    why_not: Callable[[Need], str | None]
    untraced: bool = False


class Chosen(str):
    """The name of an implementation that was found to serve."""


class Operation(NamedTuple):
    """What several implementations compute: functions of the same names and arguments in their modules."""

    name: str
    backends: tuple[Backend, ...]

    def choose(self, impl: str, need: Need) -> str:
        """The implementation that ``impl`` names; of "auto" the first that can serve.

        Raises:
            ValueError: an unknown name.
            RuntimeError: what was asked for cannot run; the message says why.
        """
        if isinstance(impl, Chosen):
            return str(impl)
        if impl == "auto":
            compiling = torch.compiler.is_compiling()
            for backend in self.backends:
                here = backend.auto_on in (None, need.device.type) and not (compiling and backend.untraced)
                if here and backend.why_not(need) is None:
                    return backend.name
        reason = self.why_not(impl, need)
        if reason is not None:
            raise RuntimeError(f"impl={impl!r} cannot run: {reason}; impl='auto' takes what can")
        return impl

    def why_not(self, impl: str, need: Need) -> str | None:
        """Why ``impl`` cannot serve, as the end of a sentence; None if it can. ValueError for an unknown name."""
        return self._backend(impl).why_not(need)

    def passed_by(self, need: Need) -> str | None:
        """The implementation that is made for this kind of device and cannot serve, and why; None if it can."""
        for backend in self.backends:
            if backend.auto_on == need.device.type and (reason := backend.why_not(need)) is not None:
                return f"{backend.name} cannot: {reason}"
        return None

    def call(self, impl: str, function: str, device: torch.device, *arguments: Any) -> Any:
        """Call the implementation's function of this name, as in `plainly`."""
        with plainly(device, function):
            return getattr(self.module(impl), function)(*arguments)

    def module(self, impl: str) -> ModuleType:
        """The implementation's functions."""
        return importlib.import_module(self._backend(impl).module)

    def _backend(self, impl: str) -> Backend:
        for backend in self.backends:
            if backend.name == impl:
                return backend
        known = ("auto", *(backend.name for backend in self.backends))
        raise ValueError(f"impl must be one of {', '.join(known)}; got {impl!r}")


@contextmanager
def plainly(device: torch.device, what: str) -> Iterator[None]:
    """Within: no gradient is recorded, dtypes are those that are written, and Triton launches on ``device``, for a
    profiler as the operator ``what``."""
    autocast = torch.amp.is_autocast_available(device.type)
    written = torch.autocast(device.type, enabled=False) if autocast else nullcontext()
    with torch.no_grad(), written, kernels.launching_on(device, what):
        yield


def may_look(tensor: Tensor) -> bool:
    """Whether values may decide what to do next: free on a CPU, while a GPU would be waited for."""
    return tensor.device.type == "cpu"


def _never(need: Need) -> None:
    return None


def _no_kernels(device: torch.device) -> str | None:
    return kernels.unavailable_reason(device)


def _no_library() -> str | None:
    return cpu.unavailable_reason()


# torch.compiler.assume_constant_result sets this and nothing else, but imports the compiler: 1.5 s of every command.
for constant in (_no_kernels, _no_library):
    constant.__dict__["_dynamo_marked_constant"] = True


def _no_triton(need: Need) -> str | None:
    reason = _no_kernels(need.device)
    if reason is None and need.dtype == torch.float64:
        reason = "its kernels compute in float32 and the tensors are float64"
    if reason is None and need.dim > kernels.MAX_DIM:
        reason = f"its kernels take features of D <= {kernels.MAX_DIM} and these have {need.dim}"
    return reason


def _no_triton_views(need: Need) -> str | None:
    too_large = None if need.size is None else kernels.view_reason(*need.size)
    return too_large or kernels.draw_reason(need.joints) or _no_kernels(need.device)


def _no_numba(need: Need) -> str | None:
    if need.device.type != "cpu":
        return f"it makes views on a CPU and the clips are on {need.device.type}"
    if need.dtype != torch.float32:
        return f"it takes frames in float32 and these are {need.dtype}"
    return numba_problem()


@cache
def numba_problem() -> str | None:
    """Why numba cannot compile anything, as the end of a sentence; None if it can."""
    try:
        import numba
    except ImportError as error:
        return f"numba cannot be imported ({error}); pip install numba brings it"
    disabled = numba.config.DISABLE_JIT  # type: ignore[attr-defined]
    return "the environment variable NUMBA_DISABLE_JIT is set" if disabled else None


def _no_cpp(need: Need) -> str | None:
    if need.device.type != "cpu":
        return f"it computes on a CPU and the tensors are on {need.device.type}"
    if need.dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 and float64 and the tensors are {need.dtype}"
    return _no_library()


def _contrast(name: str, triton: str, cpp: str, torch: str, reference: str) -> Operation:
    """In the order in which "auto" looks at them."""
    fast = (Backend("triton", triton, "cuda", _no_triton), Backend("cpp", cpp, "cpu", _no_cpp))
    return Operation(name, (*fast, *_plain(torch, reference)))


def _of_views(name: str, triton: str, torch: str, reference: str) -> Operation:
    numba = "fastmc.views.numba_views"
    fast = (
        Backend("triton", triton, "cuda", _no_triton_views),
        Backend("numba", numba, "cpu", _no_numba, untraced=True),
    )
    return Operation(name, (*fast, *_plain(torch, reference)))


def _plain(torch: str, reference: str) -> tuple[Backend, Backend]:
    return Backend("torch", torch, None, _never), Backend("reference", reference, "", _never)


_CHUNKED, _ATTACK = "fastmc.objective.chunked", "fastmc.methods.attack"
CONTRAST = _contrast("contrast", "kernels.mc", "fastmc.objective.cpp_passes", _CHUNKED, "fastmc.reference.contrast")
ATTACK = _contrast("attack", "kernels.attack", _ATTACK, _ATTACK, "fastmc.reference.attack")  # nothing of it takes long
DRAW = _of_views("draw", "kernels.draw", "fastmc.views.draw", "fastmc.views.draw")
VIEWS = _of_views("views", "fastmc.views.triton_views", "fastmc.views.torch_views", "fastmc.views.plain_views")
RECURRENT = Operation(
    "recurrent net",
    (
        Backend("cpp", "fastmc.encoders.cpp_layers", "cpu", _no_cpp, untraced=True),
        Backend("torch", "fastmc.encoders.recurrent", None, _never),
    ),
)
