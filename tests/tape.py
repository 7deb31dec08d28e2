"""A stand-in for CUDA graphs: PyTorch's operators and the kernels that Triton interprets, recorded as they run, and run
again on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from gpu_less import INTERPRETED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

READS = ("_local_scalar_dense", "item", "is_nonzero", "equal")
SHAPED_BY_DATA = ("nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive", "bincount")


NO_WORK = ("empty", "empty_like", "new_empty", "empty_strided", "transpose_", "t_", "squeeze_", "unsqueeze_")


class Tape(TorchDispatchMode):
    """Operators by name and shapes, in the order of their calls.

    Attributes:
        calls: (operator, arguments, keyword arguments, results) of each that did something, with its tensors' memory,
            shapes and strides as they were then. Views and allocations did nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not (func.is_view or func.overloadpacket.__name__ in NO_WORK):
            self.calls.append(tree_map_only(Tensor, torch.ops.aten.alias, (func, args, kwargs, result)))
        return result

    def __enter__(self) -> Tape:
        self._launches = ExitStack()
        self._launches.enter_context(_launches_go_to(self.calls))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._launches.close()

    def names(self) -> list[str]:
        return [func.overloadpacket.__name__ for func, *_ in self.calls]

    def sequence(self) -> list[tuple[Any, ...]]:
        """What must be the same at every step: operators, and of their tensors shape, strides and dtype."""
        return [(str(func), *map(_kind, tree_leaves((args, kwargs)))) for func, args, kwargs, _ in self.calls]


class Launch:
    """A kernel and its grid, in the place of an operator."""

    def __init__(self, executor: Any, run: Callable[..., None]) -> None:
        self.overloadpacket = SimpleNamespace(__name__=executor.fn.__name__)
        self._executor, self._run = executor, run

    def __str__(self) -> str:
        return self.overloadpacket.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():  # the interpreter itself uses operators
            self._run(self._executor, *args, **kwargs)


@contextmanager
def _launches_go_to(calls: list[tuple[Any, ...]]) -> Iterator[None]:
    """Within: kernels that Triton interprets are appended there when they have run."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        kernel = Launch(executor, run)
        kernel(*args, **kwargs)
        with _disable_current_modes():
            calls.append(tree_map_only(Tensor, torch.ops.aten.alias, (kernel, args, kwargs, None)))

    with mock.patch.object(GridExecutor, "__call__", launch):
        yield


def _kind(value: Any) -> Any:
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else type(value)


class TapeGraph:
    """What `TapeRecorder` captured."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self._tape.calls:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(result), again, strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)

    def reset(self) -> None:
        self._tape.calls.clear()


class TapeRecorder:
    """In the place of `train.engine.graph.CudaRecorder`. As CUDA does, it refuses a step that waits for the device or
    whose shapes depend on data, and keeps every number of the host as it was.

    Attributes:
        warm_ups: how often a body was run before.
        tape: of the last capture.
    """

    def __init__(self) -> None:
        self.warm_ups = 0
        self.tape = Tape()

    def warm_up(self, body: Callable[[], None]) -> None:
        self.warm_ups += 1
        body()

    def record(self, body: Callable[[], None]) -> TapeGraph:
        self.tape = Tape()
        with self.tape:
            body()
        forbidden = sorted({*READS, *SHAPED_BY_DATA} & set(self.tape.names()))
        if forbidden:
            raise RuntimeError(f"operation not permitted when stream is capturing: {', '.join(forbidden)}")
        return TapeGraph(self.tape)
