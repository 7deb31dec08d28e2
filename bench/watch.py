"""Count what Triton kernels ask of a GPU, exactly, and stop at accesses that a GPU would not forgive.

    with watch() as seen:                # under TRITON_INTERPRET=1
        contrast_step_(...)
    seen.total.load_bytes, seen.launches[0].dot_flops["bf16"]

Kernels run on Triton's interpreter. Every pointer argument carries its number in the upper 16 bits of the address,
which pointer arithmetic keeps and no address of a process uses; so each lane of an access is held against the very
tensor it was derived from, even where tensors are neighbours in memory. One shadow per storage holds which bytes were
loaded and stored, and by which program.

A fault is a KernelFault that names file and line of the kernel: an active lane outside its tensor (for a tensor with
gaps: outside its extent), or a race, which is a store that meets another program's load or store within one launch, or
an atomic update that meets another program's plain access. Programs run one after the other here, not so on a GPU.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.runtime import interpreter as stock

from bench.interpreter import repair

TAG = 48  # the lowest bit of an argument's number in a pointer
ADDRESS = np.uint64((1 << TAG) - 1)
NOBODY, SEVERAL = -1, -2  # in place of a program's number
MACHINERY = (__file__, repair.__code__.co_filename, str(Path(triton.__file__).parent))
"""Files whose lines are not the kernel's."""


class KernelFault(AssertionError):
    """A kernel did what a GPU does not forgive."""


@dataclass
class Counts:
    """What one launch, or all of them together, asked for. Bytes are those of active lanes."""

    kernel: str
    grid: tuple[int, ...] = ()
    programs: int = 0
    load_bytes: int = 0
    """Asked for by loads, whether or not a cache has them."""
    store_bytes: int = 0
    atomic_bytes: int = 0
    memory_load_bytes: int = 0
    """Distinct bytes loaded that nothing watched before had loaded or stored: what must come from memory at least."""
    memory_store_bytes: int = 0
    """Distinct bytes stored (or updated atomically) that nothing watched before had stored."""
    dot_flops: Counter[str] = field(default_factory=Counter)
    """Of tl.dot, two to a multiplication and addition, by what is multiplied: bf16, fp16, fp32, and for float32
    operands of another input_precision that: tf32, tf32x3, bf16x3 (which counts as one product)."""
    exponentials: int = 0
    """Elements through exp and exp2."""

    def add(self, other: Counts) -> None:
        self.programs += other.programs
        self.load_bytes += other.load_bytes
        self.store_bytes += other.store_bytes
        self.atomic_bytes += other.atomic_bytes
        self.memory_load_bytes += other.memory_load_bytes
        self.memory_store_bytes += other.memory_store_bytes
        self.dot_flops += other.dot_flops
        self.exponentials += other.exponentials


class Shadow:
    """Of one storage, per granule (the smallest element it was accessed by): who touched it."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = tensor.untyped_storage()  # kept alive, so that its address is not given out again
        self.base = self.storage.data_ptr()
        self.granule = tensor.element_size()
        count = self.storage.nbytes() // self.granule
        self.fetched = np.zeros(count, bool)
        self.stored = np.zeros(count, bool)
        self.reset()

    def reset(self) -> None:
        """Forget the programs of the launch before."""
        self.loader, self.storer, self.updater = (np.full(self.stored.shape, NOBODY, np.int32) for _ in range(3))

    def refine(self, granule: int) -> None:
        if granule < self.granule:
            times = self.granule // granule
            for name in ("fetched", "stored", "loader", "storer", "updater"):
                setattr(self, name, np.repeat(getattr(self, name), times))
            self.granule = granule

    def granules(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Indices of the granules of elements of ``size`` bytes at these addresses."""
        self.refine(size)
        first = (addresses - self.base) // self.granule
        if size == self.granule:
            return first
        return (first[:, None] + np.arange(size // self.granule)).ravel()


@dataclass
class Argument:
    """A tensor that a kernel was given."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    """Addresses of its first element and behind its last."""
    shadow: Shadow


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to behind the last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class Seen:
    """The launches of a watched region, and all of them together."""

    def __init__(self, races: bool) -> None:
        self.launches: list[Counts] = []
        self.total = Counts("total")
        self._races = races
        self._shadows: dict[int, Shadow] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._arguments: list[Argument] = []
        self._now = Counts("none")

    # One launch

    def begin(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = set(executor.arg_names)
        bound = inspect.getcallargs(executor.fn, *args, **{k: v for k, v in kwargs.items() if k in known})
        tuples = {name: value for name, value in bound.items() if isinstance(value, tuple)}
        bound |= {f"{name}[{i}]": value for name, values in tuples.items() for i, value in enumerate(values)}
        self._names = {_identity(value): name for name, value in bound.items() if isinstance(value, Tensor)}
        self._arguments = []
        for shadow in self._shadows.values():
            shadow.reset()
        self._now = Counts(executor.fn.__name__)
        self.launches.append(self._now)

    def end(self) -> None:
        now, builder = self._now, stock.interpreter_builder
        now.grid = tuple(builder.grid_dim)
        now.programs = int(np.prod(now.grid))
        fetched = sum(int(s.fetched.sum()) * s.granule for s in self._shadows.values())
        stored = sum(int(s.stored.sum()) * s.granule for s in self._shadows.values())
        now.memory_load_bytes = fetched - self.total.memory_load_bytes
        now.memory_store_bytes = stored - self.total.memory_store_bytes
        self.total.add(now)

    def tagged(self, tensor: Tensor, handle: Any) -> None:
        """Number a pointer argument, in its own address."""
        storage = tensor.untyped_storage().data_ptr()
        if storage not in self._shadows:
            self._shadows[storage] = Shadow(tensor)
        start = tensor.data_ptr()
        name = self._names.get(_identity(tensor), f"tensor {len(self._arguments)}")
        shape = tuple(tensor.shape)
        self._arguments.append(Argument(name, shape, start, start + _extent(tensor), self._shadows[storage]))
        handle.data = handle.data | np.uint64(len(self._arguments) << TAG)

    # One access

    def access(self, kind: str, pointers: Any, mask: Any) -> Any:
        """Count, check and remember an access; returns the pointers without their tags."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        active = pointers.data
        if mask is not None:
            active = active[np.broadcast_to(np.asarray(mask.data, dtype=bool), active.shape)]
        active = active.ravel()
        setattr(self._now, f"{kind}_bytes", getattr(self._now, f"{kind}_bytes") + active.size * size)
        if active.size:
            tags = active >> np.uint64(TAG)
            for tag in [tags[0]] if (tags == tags[0]).all() else np.unique(tags):
                self._touch(kind, int(tag), (active[tags == tag] & ADDRESS).astype(np.int64), size)
        return stock.TensorHandle(pointers.data & ADDRESS, pointers.dtype)

    def _touch(self, kind: str, tag: int, addresses: np.ndarray, size: int) -> None:
        if not 1 <= tag <= len(self._arguments):
            raise KernelFault(f"{kind} through a pointer that is derived from no tensor argument, {_site()}")
        argument = self._arguments[tag - 1]
        inside = (addresses >= argument.start) & (addresses + size <= argument.stop)
        if not inside.all():
            raise KernelFault(_out_of_bounds(kind, argument, addresses[~inside], size))
        shadow = argument.shadow
        where = shadow.granules(addresses, size)
        if self._races:
            self._check_races(kind, argument, where)
        if kind == "load":
            shadow.fetched[where[~shadow.stored[where]]] = True
        else:
            shadow.stored[where] = True

    def _check_races(self, kind: str, argument: Argument, where: np.ndarray) -> None:
        shadow, program = argument.shadow, _program()
        against = {
            "load": {"stores": shadow.storer, "updates": shadow.updater},
            "store": {"stores": shadow.storer, "loads": shadow.loader, "updates": shadow.updater},
            "atomic": {"stores": shadow.storer, "loads": shadow.loader},
        }
        for verb, owners in against[kind].items():
            owner = owners[where]
            foreign = (owner != NOBODY) & (owner != program)
            if foreign.any():
                raise KernelFault(_race(kind, argument, where[foreign][0], owner[foreign][0], verb))
        mine = {"load": shadow.loader, "store": shadow.storer, "atomic": shadow.updater}[kind]
        owner = mine[where]
        mine[where] = np.where((owner == NOBODY) | (owner == program), program, SEVERAL)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _program() -> int:
    """Number of the running program."""
    (x, y, z), (_, ny, nz) = stock.interpreter_builder.grid_idx, stock.interpreter_builder.grid_dim
    return (x * ny + y) * nz + z


def _program_index(number: int) -> str:
    if number == SEVERAL:
        return "several programs"
    return f"program {tuple(int(i) for i in np.unravel_index(number, stock.interpreter_builder.grid_dim))}"


def _out_of_bounds(kind: str, argument: Argument, addresses: np.ndarray, size: int) -> str:
    first = int(addresses[0])
    if first < argument.start:
        distance = f"{-((first - argument.start) // size)} before its first"
    else:
        distance = f"{(first - argument.stop) // size + 1} behind its last"
    return (
        f"{kind} outside {argument.name} {argument.shape}: {addresses.size} active lane(s) of "
        f"{_program_index(_program())}, the first {distance} element, {_site()}"
    )


def _race(kind: str, argument: Argument, granule: int, owner: int, verb: str) -> str:
    offset = argument.shadow.base + int(granule) * argument.shadow.granule - argument.start
    verbs = {"load": "loads", "store": "stores to", "atomic": "updates"}
    who = _program_index(int(owner))
    return (
        f"race on byte {offset} of {argument.name} {argument.shape}: {_program_index(_program())} {verbs[kind]} it, "
        f"{who} {verb if owner != SEVERAL else verb[:-1]} it in the same launch, {_site()}"
    )


def _site() -> str:
    """file:line of the kernel that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(MACHINERY):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@contextlib.contextmanager
def watch(races: bool = True) -> Iterator[Seen]:
    """Count and check every launch inside. Faults are raised out of the launching call, as KernelFault.

    Without ``races`` only bounds are checked. Raises RuntimeError where kernels are not interpreted.
    """
    repair()  # before our own patches, which are taken off again
    seen = Seen(races)
    builder = stock.InterpreterBuilder
    patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (stock.GridExecutor, "__call__", _launch),
        (stock, "_implicit_cvt", _argument),
        (builder, "create_masked_load", _access("load", mask=1)),
        (builder, "create_masked_store", _access("store", mask=2)),
        (builder, "create_atomic_rmw", _access("atomic", pointers=1, mask=3)),
        (builder, "create_atomic_cas", _access("atomic", mask=None)),
        (builder, "create_dot", _dot),
        (builder, "create_exp", _exponential),
        (builder, "create_exp2", _exponential),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for (owner, name, patch), (_, _, original) in zip(patches, originals, strict=True):
        setattr(owner, name, patch(seen, original))
    try:
        yield seen
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _launch(seen: Seen, original: Callable[..., Any]) -> Callable[..., Any]:
    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.begin(self, args, kwargs)
        try:
            result = original(self, *args, **kwargs)
        except stock.InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, KernelFault):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None
        seen.end()
        return result

    return launch


def _argument(seen: Seen, original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(argument: Any) -> Any:
        converted = original(argument)
        if isinstance(argument, torch.Tensor):
            seen.tagged(argument, converted.handle)
        return converted

    return convert


def _access(kind: str, pointers: int = 0, mask: int | None = 1) -> Callable[..., Callable[..., Any]]:
    """Of a builder's method whose arguments number ``pointers`` and ``mask`` are those."""

    def build(seen: Seen, original: Callable[..., Any]) -> Callable[..., Any]:
        def access(self: Any, *args: Any, **kwargs: Any) -> Any:
            bare = seen.access(kind, args[pointers], None if mask is None else args[mask])
            return original(self, *args[:pointers], bare, *args[pointers + 1 :], **kwargs)

        return access

    return build


def _dot(seen: Seen, original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        kind, precision = a.dtype.scalar.name, input_precision.name.lower()
        key = precision if kind == "fp32" and precision != "ieee" else kind
        seen._now.dot_flops[key] += 2 * d.data.size * a.data.shape[-1]
        return original(self, a, b, d, input_precision, *rest)

    return create_dot


def _exponential(seen: Seen, original: Callable[..., Any]) -> Callable[..., Any]:
    def exponential(self: Any, arg: Any) -> Any:
        seen._now.exponentials += arg.data.size
        return original(self, arg)

    return exponential
