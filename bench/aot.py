"""Compile Triton kernels for a GPU that is not here, through the launchers that would launch them.

    with compile_launches("cuda:90") as launches:
        contrast_forward(*meta_tensors, ...)
    print(report(launches[0]))

A stand-in driver names the target, and every launch goes through Triton's own binder with the arguments it was given,
so a kernel is specialised exactly as that launch would be: a size that is a multiple of 16, an argument equal to 1, the
alignment of a pointer. What comes after the binder is replaced: nothing runs, and no output holds a value.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from bench.resources import Report, resources

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
"""What the kernels are compiled for: A100, H100/H200, B200, MI300."""


@dataclass(frozen=True)
class Launch:
    """One launch that was compiled instead of run."""

    name: str
    """Name of the kernel."""
    kernel: CompiledKernel
    """Intermediate forms in ``kernel.asm``, options in ``kernel.metadata``; one object for equal specialisations."""
    grid: tuple[int, int, int]
    """Programs along each axis."""
    arguments: dict[str, Any]
    """What the kernel was given, by the names of its parameters."""
    seconds: float
    """What the compiler took; 0 where an earlier launch of this session had compiled it."""
    cached: bool
    """The kernel came from the cache on disk (``seconds`` then is the time to read it)."""


def parse_target(name: str) -> GPUTarget:
    """``cuda:90`` or ``hip:gfx942`` as Triton's target."""
    backend, _, arch = name.partition(":")
    if backend == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if backend == "hip" and arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ValueError(f"target: {name!r} is not of the form cuda:90 or hip:gfx942")


class StandInDriver(DriverBase):
    """Answers what Triton asks before a launch, for a device that does not exist.

    Triton keeps compiled kernels by device, so the target itself is the device: kernels for two targets never meet, nor
    do they meet those of a real GPU.
    """

    def __init__(self, target: GPUTarget, session: object) -> None:
        self.target, self.session = target, session

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> object:
        return self.session

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Callable[..., list[float]]:
        return lambda call, quantiles: [0.0] * len(quantiles)


@contextlib.contextmanager
def compile_launches(target: str, fresh: bool = False) -> Iterator[list[Launch]]:
    """Every launch inside is compiled for ``target`` instead of run; the list fills with one entry per launch.

    Launchers may be called with CPU tensors or, which costs no memory, with tensors on the meta device. What they
    return holds no values. With ``fresh`` the cache on disk is not read: ``seconds`` is then the time of the compiler.
    Raises RuntimeError under TRITON_INTERPRET=1: kernels are then never compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("compile_launches: TRITON_INTERPRET=1 is set, so kernels are interpreted and never compiled")
    launches: list[Launch] = []
    session = object()
    run = JITFunction.run

    def compile_instead(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> CompiledKernel:
        known = set(map(id, self.device_caches[session][0].values()))
        heard.clear()
        start = time.perf_counter()
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        seconds = 0.0 if id(kernel) in known else time.perf_counter() - start
        if not warmup:
            given = _bound(self, args, kwargs)
            launches.append(Launch(self.__name__, kernel, _sizes(grid, given), given, seconds, heard == [True]))
        return kernel

    heard: list[bool] = []

    def listener(*, cache_hit: bool, **_: Any) -> None:
        heard.append(cache_hit)

    driver = triton.runtime.driver
    active = driver._active
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile = fresh or triton.knobs.compilation.always_compile
        triton.knobs.compilation.listener = listener
        driver.set_active(StandInDriver(parse_target(target), session))
        JITFunction.run = compile_instead
        try:
            yield launches
        finally:
            JITFunction.run = run
            driver._active = active


def _bound(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = kernel.signature.bind(*args, **{k: v for k, v in kwargs.items() if k in kernel.signature.parameters})
    bound.apply_defaults()
    return dict(bound.arguments)


def _sizes(grid: Any, arguments: dict[str, Any]) -> tuple[int, int, int]:
    sizes = tuple(int(n) for n in (grid(arguments) if callable(grid) else grid)) + (1, 1)
    return sizes[0], sizes[1], sizes[2]


def report(launch: Launch) -> Report:
    """Registers, spills, shared memory, occupancy and instruction counts of a compiled launch."""
    return resources(launch.kernel, launch.seconds, launch.cached)
