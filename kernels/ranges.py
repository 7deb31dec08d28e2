"""The parts of a pre-training step by name, for whoever listens: NVIDIA's profilers, PyTorch's, or an observer.

    with part("attack"):
        attacked = model.attacked(clips)

docs/profiling.md says which part is what of the paper, and how to look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch.autograd import profiler

PARTS = ("augment", "attack", "key", "query", "mc", "bank", "backward", "optimizer", "ema")
"""All parts, in the order of a step."""
DOMAIN = "fastmc"
"""NVTX domain of the ranges."""

Observer = Callable[[str, bool], None]
_observers: list[Observer] = []


class _NvtxRanges:
    """A range of NVTX for each part: a start and an end, which hold for all threads of the process."""

    def __init__(self, domain: Any) -> None:
        self.start, self.end = domain.start_range, domain.end_range
        self.attributes = {name: domain.get_event_attributes(message=name) for name in PARTS}

    @classmethod
    def if_heard(cls) -> _NvtxRanges | None:
        """None where the package nvtx is missing or switched off, or this process was not started by a profiler."""
        try:
            import nvtx
        except ImportError:
            return None
        domain = nvtx.get_domain(DOMAIN)
        return cls(domain) if isinstance(domain, nvtx.Domain) and nvtx.enabled() else None


_nvtx = _NvtxRanges.if_heard()  # once: a profiler that listens to NVTX is there when a process starts


def heard_by_nvtx() -> bool:
    """Whether a tool such as Nsight Systems listens to the ranges."""
    return _nvtx is not None


class part:
    """Within: the part ``name`` of a step runs. Parts may be nested; not for use inside a compiled region.

    On a GPU autograd launches the kernels of a backward pass from a thread of its own, and profilers count a kernel to
    the ranges of the thread that launched it. So where one listens, backward passes keep to the thread that asks.

    Raises:
        ValueError: the name is none of ``PARTS``.
    """

    __slots__ = ("_name", "_one_thread", "_range", "_record")

    def __init__(self, name: str) -> None:
        if name not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}; got {name!r}")
        self._name = name
        self._range: Any = None
        self._record: Any = None
        self._one_thread: Any = None

    def __enter__(self) -> None:
        if _nvtx is not None:
            self._range = _nvtx.start(_nvtx.attributes[self._name])
        if profiler._is_profiler_enabled:
            self._record = torch.profiler.record_function(self._name)
            self._record.__enter__()
        if self._range is not None or self._record is not None:
            self._one_thread = torch.autograd.set_multithreading_enabled(False)
        for observer in _observers:
            observer(self._name, True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for observer in reversed(_observers):
            observer(self._name, False)
        if self._one_thread is not None:
            self._one_thread.__exit__(kind, error, traceback)
        if self._record is not None:
            self._record.__exit__(kind, error, traceback)
        if _nvtx is not None:
            _nvtx.end(self._range)


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Within: ``observer(name, True)`` is called when a part begins, ``observer(name, False)`` when it ends."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
