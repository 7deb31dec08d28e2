"""Frames that stay on the host: the next batches are gathered and copied to the device while a step runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fastmc.data.placed.order import batches_of
from fastmc.data.placed.resident import PlacedStore, copy_frames, map_frames, rounding_error
from fastmc.data.store import PackedStore
from fastmc.views.clips import PackedClips

AHEAD = 2
THREAD_NAME = "fastmc-frames"

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Fetched(NamedTuple):
    """Frames of one batch on the device; ``copied`` says when they have arrived there, None where nothing travels."""

    frames: Tensor
    copied: torch.cuda.Event | None


class StreamedStore(PlacedStore):
    """The frames on the host, copied whole into its memory (page-locked for a GPU) or left in the memory map.

    A batch is a compact copy of its clips' rows, so ``start`` counts in the batch; every clip of it has the bits that
    `ResidentStore` would give. `batches` fetches the next `AHEAD` batches in a thread, on a stream of its own.
    """

    def __init__(
        self,
        store: PackedStore,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        in_memory: bool,
    ) -> None:
        super().__init__(store, device, dtype)
        on_gpu = self.device.type == "cuda"
        if in_memory:
            self._frames, self.rounding_error = copy_frames(store.frames, dtype, "cpu", pin=on_gpu)
        else:
            self._frames, self.rounding_error = map_frames(store.frames), rounding_error(store.frames, dtype)
        self._first = self.start.cpu()
        self._end = self._first + (self.num_frames * self.num_bodies).cpu()
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None

    def select(self, ids: Tensor) -> PackedClips:
        """As in the base class; waits for the host. The thread of `batches` is for what has to be fast."""
        return self._clips(ids, self._fetch(ids.cpu()))

    def batches(self, order: Tensor, size: int) -> Generator[tuple[Tensor, PackedClips]]:
        """As in the base class. Waits for the device once, for the order. What fails in the thread is raised here."""
        with closing(run_ahead(self._fetch, batches_of(order.cpu(), size), AHEAD)) as fetched:
            for ids, batch in zip(batches_of(order, size), fetched, strict=True):
                yield ids, self._clips(ids, batch)

    def _fetch(self, ids: Tensor) -> _Fetched:
        """The rows of these clips (B,), gathered into a buffer that is page-locked for a GPU and sent on its way."""
        spans = zip(self._first[ids].tolist(), self._end[ids].tolist(), strict=True)
        clips = [self._frames[first:end] for first, end in spans]
        shape = (sum(map(len, clips)), *self._frames.shape[1:])
        with self._side_stream():
            gathered = torch.empty(shape, dtype=self.dtype, pin_memory=self._stream is not None)
            torch.cat(clips, out=gathered)
            if self._stream is None:
                return _Fetched(gathered, None)
            frames = gathered.to(self.device, non_blocking=True)  # torch keeps the buffer until this copy is done
            return _Fetched(frames, self._stream.record_event())

    def _side_stream(self) -> AbstractContextManager[object]:
        """Makes the stream and its device current, in the thread too, which starts out with device 0."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _clips(self, ids: Tensor, fetched: _Fetched) -> PackedClips:
        if fetched.copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(fetched.copied)
            fetched.frames.record_stream(stream)  # its memory belongs to the side stream: no reuse before this one
        num_frames, num_bodies = self.num_frames[ids], self.num_bodies[ids]
        rows = num_frames * num_bodies
        return PackedClips(fetched.frames, rows.cumsum(0) - rows, num_frames, num_bodies, self.max_bodies)


def run_ahead(work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Generator[Result]:
    """``map(work, items)`` in one thread that is at most ``ahead`` results in front of the one last taken.

    What ``work`` raises is raised to whoever takes that result. The thread ends with the generator: when it is
    exhausted, closed or has raised.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
