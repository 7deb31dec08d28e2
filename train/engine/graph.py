"""The whole training step as one CUDA graph: captured once, launched at every step.

A graph repeats its kernels on the addresses and with the numbers that they had when it was captured. So a captured step
must read all that changes from tensors, and must not wait for the device: see `train.engine.step`.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmc.methods.streams import Beside
from fastmc.random import default_generators_kept
from train.engine.record import log

WARM_UP = 3
"""Steps before a capture, in which libraries choose algorithms and kernels are compiled. They leave no trace."""


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None: ...

    def reset(self) -> None:
        """Destroy it, whoever still refers to it."""


class Recorder(Protocol):
    """Who captures."""

    def warm_up(self, body: Callable[[], None]) -> None:
        """Run the body where it will be captured."""

    def record(self, body: Callable[[], None]) -> Graph:
        """Capture the body. RuntimeError if it does what cannot be captured."""


class CudaRecorder:
    """Captures on a CUDA device, on a stream of its own.

    It warms up there too, as PyTorch asks for what is captured afterwards: autograd remembers streams, and memory and
    workspaces of libraries are kept by stream.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """``device``: that of the body's tensors; by default the current one. On a stream of another device a capture
        would take in nothing."""
        self._device = device
        self._beside: Beside | None = None

    @property
    def beside(self) -> Beside:
        if self._beside is None:
            self._beside = Beside(self._device)
        return self._beside

    def warm_up(self, body: Callable[[], None]) -> None:
        with self.beside:
            body()
        self.beside.join()

    def record(self, body: Callable[[], None]) -> Graph:
        gc.collect()  # not within the capture, where it might free what a graph of before holds
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with _empty_graphs_are_errors(), torch.cuda.graph(graph, stream=self.beside.stream):
                body()
        except BaseException:
            graph.reset()  # the error's traceback keeps it
            raise
        finally:  # torch.cuda.graph ends the capture before it puts the stream back, and that may raise
            torch.cuda.set_stream(here)
        return graph


@contextmanager
def _empty_graphs_are_errors() -> Iterator[None]:
    """Within: RuntimeError for a capture that has taken in nothing, whose replays would train nothing, without a word
    but PyTorch's warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The CUDA Graph is empty")
        try:
            yield
        except UserWarning as warning:
            if "CUDA Graph is empty" not in str(warning):
                raise
            raise RuntimeError(str(warning)) from None


class GraphedStep:
    """A step that is captured when it is called first, and launched as one graph from then on.

    It is captured anew when a tensor of its state has moved or a number that it took from the host has changed. If the
    capture fails, the step runs launch by launch, and the log says why.

    Attributes:
        captures: how often it was captured.
    """

    def __init__(
        self,
        body: Callable[[], None],
        state: Callable[[], list[Tensor]],
        baked: Callable[[], tuple[float, ...]] = tuple,
        recorder: Recorder | None = None,
        alone: bool = True,
    ) -> None:
        """
        Args:
            body: the step: reads its inputs from tensors, and changes nothing but ``state``.
            state: all tensors that the body changes and that outlive it.
            baked: numbers of the host that the body hands to its kernels.
            recorder: who captures.
            alone: no other process takes part in the body. One that does waits for this one's warm-ups, and is told by
                nothing but this one's end if they fail.
        """
        self._body, self._state, self._baked = body, state, baked
        self._recorder = recorder or CudaRecorder()
        self._graph: Graph | None = None
        self._key: tuple[Any, ...] | None = None
        self._failed, self._alone = False, alone
        self.captures = 0

    def __call__(self) -> None:
        """Make the step."""
        if not self._failed:
            state = self._state()
            key = (*self._baked(), *(tensor.data_ptr() for tensor in state))
            if self._graph is None or key != self._key:
                self._capture(state)
                self._key = key
        if self._graph is None:
            self._body()
        else:
            self._graph.replay()

    def release(self) -> None:
        """Destroy the graph: its memory is free then, and what it holds of NCCL. The next call captures anew.

        The device is not waited for: it may be waiting itself, in an exchange, for a rank that is gone. CUDA destroys a
        graph that is at work when it is done.
        """
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.reset()

    def _capture(self, state: list[Tensor]) -> None:
        self.release()
        before = [tensor.detach().clone() for tensor in state]
        is_warm = False
        # What the step draws in its warm-up must not change what it draws when it is launched.
        with default_generators_kept(state[0].device):
            try:
                with default_generators_kept(state[0].device):
                    for _ in range(WARM_UP):
                        self._recorder.warm_up(self._body)
                is_warm = True
                _restore(state, before)
                self._graph = self._recorder.record(self._body)
            except RuntimeError as error:
                if not (is_warm or self._alone):
                    raise
                self._failed = True
                reason = str(_root(error)).strip().splitlines()[0]
                log.warning("the step cannot be captured as a CUDA graph and runs launch by launch: %s", reason)
        _restore(state, before)
        self.captures += self._graph is not None


def _root(error: BaseException) -> BaseException:
    """What went wrong first: ending a broken capture raises an error of its own over it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@torch.no_grad()
def _restore(state: list[Tensor], before: list[Tensor]) -> None:
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)
