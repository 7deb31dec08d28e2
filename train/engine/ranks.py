"""Several processes that train one model together, as torchrun starts them, over torch.distributed.

Everything that they exchange in a step is listed in docs/scaling.md. The hosts exchange a few numbers too, over gloo,
so that what one of them decides all do.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from fastmc.config import differences
from fastmc.encoders.amp import gradient_of
from fastmc.encoders.storage import share_storage
from train.engine.record import start_logging
from train.engine.signals import deaf_to
from train.engine.world import World

Found = TypeVar("Found")
GRACE = 5.0
"""Seconds that a rank gives rank 0, which has the log, to say why the run ends, before it says so itself."""
PATIENCE = 25.0
"""The same of a rank that ends by an error of its own: rank 0 is well, and may be busy. torchrun waits 30 s for it."""
START = 600.0
"""Seconds in which all ranks have to begin: nodes are not started in the same moment."""
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class RankLost(RuntimeError):
    """Another rank does not answer, or has ended by an error of its own."""


class RanksDiffer(RuntimeError):
    """What must have the same bits on all ranks has not."""


@dataclass(frozen=True)
class Place:
    """Of this process among those that torchrun started.

    Attributes:
        rank, size: of all; local_rank, local_size: of this machine's.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls) -> Place:
        """As torchrun says; one process where it did not start this one.

        Raises:
            ValueError: a variable of it is no number.
        """
        if any(name not in os.environ for name in OF_TORCHRUN):
            return cls()
        try:
            rank, size, local = (int(os.environ[name]) for name in OF_TORCHRUN[:3])
            return cls(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        except ValueError as error:
            raise ValueError(f"the environment of torchrun ({', '.join(OF_TORCHRUN)}) is damaged: {error}") from None

    def gpu(self, name: str) -> torch.device | None:
        """The GPU that the device setting gives this rank; None for another device, or one that is not there."""
        found = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?", self.device(name))
        number = int(found[1] or 0) if found else 0
        is_there = found and torch.cuda.is_available() and number < torch.cuda.device_count()
        return torch.device("cuda", number) if is_there else None

    def device(self, name: str) -> str:
        """Of the device setting ``name`` the one that is this rank's: of several GPUs, number LOCAL_RANK.

        Raises:
            ValueError: there are several GPUs, and fewer than ranks.
        """
        there = torch.cuda.device_count() if name in ("auto", "cuda") else 0
        if there < 2:
            return name
        if self.local_size > there:
            raise ValueError(f"{self.local_size} ranks on {there} GPUs; give torchrun --nproc-per-node {there} or less")
        return f"cuda:{self.local_rank}"


class Ranks(World):
    """Several processes. Each rank gets the same bits of every exchange, or the run ends.

    NCCL carries what is on GPUs; gloo carries the rest, and what is on a GPU that several ranks share, by the host.

    Raises:
        RankLost: by all methods, if another rank does not answer in time.
    """

    def __init__(self, place: Place, device: str, timeout: float) -> None:
        """Waits for all ranks.

        Args:
            device: the setting, of which each rank takes its own.
            timeout: seconds to wait for another rank in each exchange; here it is `START`.

        Raises:
            ValueError: as of `Place.device`.
        """
        self.rank, self.size, self.device = place.rank, place.size, place.device(device)
        self._timeout = timedelta(seconds=timeout)
        gpu = place.gpu(device)
        if gpu is not None:
            torch.cuda.set_device(gpu)
        with self._heard():
            store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=START)))
            # torchrun keeps its store over restarts: in it are the addresses of ranks that are gone.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"attempt {attempt} of {self.size} ranks", store)
            self._store.set(f"fastmc/gpu of {self.rank}", "" if gpu is None else uuid_of(gpu))
            self._wait_for_all()
            gpus = [self._store.get(f"fastmc/gpu of {rank}").decode() for rank in range(self.size)]
            self._no_nccl = no_nccl_reason(gpus)
            self._nccl = self._no_nccl is None
            backend = "cpu:gloo,cuda:nccl" if self._nccl else "gloo"
            how: dict[str, Any] = {"timeout": self._timeout, "device_id": gpu if self._nccl else None}
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, **how)
            self.agree(0)

    def _wait_for_all(self) -> None:
        """RuntimeError if not all are there in time."""
        until, there = time.monotonic() + START, self._store.add("fastmc/there", 1)
        while there < self.size:
            if time.monotonic() > until:
                raise RuntimeError(f"{there} of {self.size} ranks are there")
            time.sleep(0.05)
            there = self._store.add("fastmc/there", 0)

    @property
    def says(self) -> str:
        carried = f"gloo ({self._no_nccl})" if self._no_nccl else "NCCL"
        return f"{self.size} ranks by torchrun, exchanges by {carried}; --batch-size counts the clips of all"

    def no_graph_reason(self) -> str | None:
        return None if self._nccl else "gloo carries the exchanges of these ranks by way of the host"

    # What the library asks for

    def stack(self, tensor: Tensor) -> Tensor:
        mine = self._where_carried(tensor.detach().contiguous())
        out = mine.new_empty(self.size, *mine.shape)
        with self._heard():
            dist.all_gather(list(out.unbind()), mine)
        return out.to(tensor.device)

    def sum(self, tensor: Tensor) -> Tensor:
        out = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.sum_(out)
        return out

    def sum_(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all ranks."""
        carried = self._where_carried(tensor)
        with self._heard():
            dist.all_reduce(carried)
        if carried is not tensor:
            tensor.copy_(carried)

    # What the engine asks for

    def gradient_sum(self, weights: Sequence[Parameter]) -> GradientSum:
        return GradientSum(self, weights)

    def agree(self, *numbers: int) -> tuple[int, ...]:
        largest = torch.tensor(numbers, dtype=torch.int64)
        with self._heard():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def first(self, action: Callable[[], Found]) -> Found:
        if self.rank == 0:
            found = action()
            self.agree(0)
            return found
        self.agree(0)
        return action()

    def check_same(self, facts: Mapping[str, Any]) -> None:
        of_all: list[Any] = [None] * self.size
        with self._heard():
            dist.all_gather_object(of_all, dict(facts))
        odd = []
        for rank, theirs in enumerate(of_all):
            for name in differences(of_all[0], theirs):
                here, there = (_value(each, name) for each in (theirs, of_all[0]))
                odd.append(f"rank {rank} has {name} = {here}, rank 0 has {there}")
        if odd:
            raise ValueError(f"the ranks differ: {'; '.join(odd)}. Start all by one torchrun command, on one code")

    def check_equal(self, tensors: Mapping[str, Tensor], when: str) -> None:
        of_all = self.stack(torch.stack([_checksum(tensor) for tensor in tensors.values()])).cpu()
        differs = (of_all != of_all[0]).any(0)
        if differs.any():
            names = [name for name, odd in zip(tensors, differs.tolist(), strict=True) if odd]
            ranks = (of_all != of_all[0]).any(1).nonzero().flatten().tolist()
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise RanksDiffer(
                f"{when} rank {', '.join(map(str, ranks))} has other bits than rank 0: {', '.join(names[:4])}{more}. A "
                "device computes wrongly, the devices are not of one kind, or the method's loss is not made of what "
                "Batch.gather gives. The same command goes on from the last checkpoint"
            )

    # How it ends

    def end(self, error: Exception) -> Exception:
        """Before this process ends by an error: let the others know, and see to it that one process says so, rank 0 if
        it can. Returns the error to raise."""
        own = not isinstance(error, RankLost)
        if self.rank == 0:
            told = None if own else self._read("fault")
            self._tell("said", "0")
            self.close(abort=True)
            self._until(self._all_have_heard)
            return error if told is None else RankLost(told)
        if own:
            self._tell("fault", f"rank {self.rank}: {error}")
        self.close(abort=True)  # so that who waits for this rank learns of it
        patience = PATIENCE if own else GRACE
        if not self._until(lambda: self._read("said") is not None, patience) and self._count("says") <= 1:
            start_logging()
        self._count("heard")
        return error

    def _all_have_heard(self) -> bool:
        """Asked by rank 0, which may hold the store that the others read."""
        return self._count("heard", 0) == self.size - 1

    def _until(self, holds: Callable[[], bool], seconds: float = GRACE) -> bool:
        """Whether it comes to hold in time."""
        until = time.monotonic() + min(seconds, self._timeout.total_seconds())
        while not (held := holds()) and time.monotonic() < until:
            time.sleep(0.05)
        return held

    def _count(self, key: str, more: int = 1) -> int:
        """How many ranks have counted themselves under ``key``; 0 if who held the store is gone, and nobody can ask."""
        with suppress(RuntimeError):
            return self._store.add(f"fastmc/{key}", more)
        return 0

    def _tell(self, key: str, value: str) -> None:
        with suppress(RuntimeError):
            self._store.set(f"fastmc/{key}", value)

    def _read(self, key: str) -> str | None:
        with suppress(RuntimeError):
            if self._store.check([f"fastmc/{key}"]):
                return self._store.get(f"fastmc/{key}").decode()
        return None

    def close(self, *, abort: bool = False) -> None:
        """Leave. ``abort``: without waiting for what is still to be exchanged."""
        if not dist.is_initialized():
            return
        with suppress(RuntimeError):
            if abort and self._nccl and (group := dist.group.WORLD) is not None:
                group.abort()
            dist.destroy_process_group()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Within: an exchange; RankLost if another rank does not take part."""
        began = time.monotonic()
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            # torchrun ends all with the first that is gone, and would cut short what this one is about to say.
            deaf_to(signal.SIGTERM)
            raise RankLost(
                f"another rank of this run is gone, or did not answer for {self._timeout.total_seconds():g} s "
                f"(--rank-timeout; rank {self.rank} waited {time.monotonic() - began:.1f} s). The same command goes on "
                "from the last checkpoint"
            ) from error

    def _where_carried(self, tensor: Tensor) -> Tensor:
        """The tensor itself, or, where gloo has to carry what is on a GPU, a copy on the host."""
        return tensor if self._nccl or tensor.device.type == "cpu" else tensor.cpu()


def uuid_of(gpu: torch.device) -> str:
    """What tells a GPU from all others, whatever number a process sees it under."""
    card = torch.cuda.get_device_properties(gpu)
    return f"{card.name} {card.uuid}"


def no_nccl_reason(gpus: Sequence[str]) -> str | None:
    """Why NCCL cannot carry the exchanges of ranks on these GPUs, by `uuid_of`, "" for none; None if it can."""
    if not all(gpus):
        return "some ranks have no GPU" if any(gpus) else "on CPUs"
    if not dist.is_nccl_available():
        return "this PyTorch has no NCCL"
    if any(" MIG " in gpu for gpu in gpus):
        return "NCCL takes no slices of a GPU (MIG)"
    for gpu in gpus:
        sharing = [rank for rank, other in enumerate(gpus) if other == gpu]
        if len(sharing) > 1:
            return f"ranks {', '.join(map(str, sharing))} share one GPU"
    return None


class GradientSum:
    """The sum of gradients over ranks, in float32, by one exchange.

    In half precision a sum of the ranks' parts, each rounded already, would be rounded once more for every rank.
    It comes after the backward pass, not beside it: cuDNN gives the gradients of a recurrent net at its very end.
    """

    def __init__(self, ranks: Ranks, weights: Sequence[Parameter]) -> None:
        """Allocates room for the gradients of these weights."""
        self._ranks, self._weights = ranks, weights
        self._pieces = [torch.zeros(weight.shape, device=weight.device) for weight in weights]
        self._flat = share_storage(self._pieces)

    @torch.no_grad()
    def __call__(self) -> None:
        """Every weight has a gradient, which is that of all ranks from here on."""
        gradients = [gradient_of(weight) for weight in self._weights]
        torch._foreach_copy_(self._pieces, gradients)
        self._ranks.sum_(self._flat)
        torch._foreach_copy_(gradients, self._pieces)


@contextmanager
def opened(place: Place, device: str, timeout: float) -> Iterator[World]:
    """Within: the ranks of this run; one process, where it is alone. Arguments and errors as of `Ranks`."""
    if place.size == 1:
        yield World()
        return
    try:
        world = Ranks(place, device, timeout)
    except RankLost:  # before they have met, each has to speak for itself
        start_logging()
        raise
    try:
        yield world
    except Exception as error:
        said = world.end(error)
        if said is error:
            raise
        raise said from error
    except BaseException:
        world.close(abort=True)
        raise
    world.close()


def _value(facts: Mapping[str, Any], name: str) -> Any:
    """Of the dotted ``name``; None where there is none."""
    found: Any = facts
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _checksum(tensor: Tensor) -> Tensor:
    """() int64, the sum of a tensor's bits as integers of its width: any one bit changes it."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(-1).view(width).sum(dtype=torch.int64)
