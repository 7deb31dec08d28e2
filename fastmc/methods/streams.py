"""Work of a GPU beside other work of it."""

from __future__ import annotations

from types import TracebackType

import torch


class Beside:
    """A second stream of a GPU, for work that does not depend on what is given to the device after it.

        with beside:  # waits for all that was given before
            f0 = key(x0)
        attacked = attack(x)  # at the same time
        beside.join()  # what comes now waits for both

    What is made within must be used after `join` alone, and may be freed at any time: its memory is the second
    stream's, which waits for the first one before it writes there again. A graph that is captured gets two branches.

    Attributes:
        stream: the second one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.stream = torch.cuda.Stream(device)
        self._within: torch.cuda.StreamContext | None = None

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        self._within = torch.cuda.stream(self.stream)
        self._within.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._within is not None
        self._within.__exit__(kind, error, traceback)

    def join(self) -> None:
        """What is given to the current stream from now on waits for what was given within."""
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
