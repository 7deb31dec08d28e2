"""Kernels for CPUs in C++: compiled on the machine itself when they are first wanted, called through ctypes.

pool.h  pool.cpp    threads of our own, and what Python hands over
blas.h              matrix products, by PyTorch's BLAS
gru.cpp  gates.h    a layer of a GRU, forwards and back
contrast.cpp exp2.h passes over the bank for loss, gradients and bank step

They see pointers and sizes alone: neither PyTorch's headers nor its library are compiled or linked against, which would
take a minute and be right for one version of it. Python makes the tensors, checks them, and knows the gradients; ctypes
gives the interpreter's lock back during a call.

What has been compiled is kept in the folder of PyTorch's extensions ($TORCH_EXTENSIONS_DIR, else
~/.cache/torch_extensions), under a name made of the sources and this CPU's instructions. The environment variable
FASTMC_CPU_KERNELS=0 switches the kernels off: PyTorch's operators then compute the same, slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from shutil import which

import torch
from torch import Tensor

log = logging.getLogger("fastmc")

SWITCH = "FASTMC_CPU_KERNELS"
HERE = Path(__file__).resolve().parent
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC"),
    *("-shared", "-fvisibility=hidden", "-pthread"),
)
"""-fopenmp-simd takes the pragmas for vectors of a thread, and links no OpenMP."""
X86_FLAGS = ("-mprefer-vector-width=512",)
"""GCC refuses them for any other machine."""


_threads: int | None = None


class NoKernels(RuntimeError):
    """The kernels cannot run here; the message says why, as the end of a sentence."""


def unavailable_reason() -> str | None:
    """Why the kernels cannot run, as the end of a sentence; None if they can. Compiles them if nobody has before."""
    return _found()[1]


def library() -> ctypes.CDLL:
    """The compiled kernels. NoKernels where they cannot run."""
    found, reason = _found()
    if found is None:
        raise NoKernels(reason or "")
    return found


def place() -> Path:
    """Where the compiled kernels are kept."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path("~/.cache/torch_extensions").expanduser()
    return Path(root, "fastmc", f"cpu-{_key()}.so")


def threads() -> int:
    """How many threads a call takes: those of PyTorch's operators, as they were before `one_thread_for_operators`."""
    return _threads or torch.get_num_threads()


@contextmanager
def one_thread_for_operators() -> Iterator[None]:
    """Within: PyTorch's operators take one thread, and the kernels here as many as those did before.

    For work whose large parts are kernels: an operator's threads wait for each other by spinning, and beside another
    program cost more than they bring.
    """
    global _threads
    before, outer = torch.get_num_threads(), _threads
    _threads = threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads = outer


def product(a: Tensor, b: Tensor, share: int) -> tuple[Tensor, Tensor]:
    """A product whose rows are shared out, to see that threads and BLAS serve: `fastmc.doctor` and the tests call it.

    Args:
        a: (R, K) and b: (K, N), float32, contiguous.
        share: rows of a unit.

    Returns:
        a b (R, N), and for each unit whether a worker has done it, not the caller (int8).
    """
    (rows, k), n = a.shape, b.shape[1]
    c, by = a.new_empty(rows, n), torch.full((-(-rows // share),), -1, dtype=torch.int8)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c)]
    sizes = [ctypes.c_int64(size) for size in (rows, n, k, share)]
    library().fastmc_product(*pointers, *sizes, threads(), ctypes.c_void_p(by.data_ptr()))
    return c, by


@cache
def _found() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get(SWITCH) == "0":
        return None, f"the environment variable {SWITCH} is 0"
    try:
        loaded = ctypes.CDLL(str(_built()))
        loaded.fastmc_initialise(*_blas())
    except (NoKernels, OSError, ImportError) as error:  # fcntl is not there on Windows
        return None, str(error)
    return loaded, None


def _blas() -> list[ctypes.c_void_p]:
    """Products in float32 and float64, and how many threads those of the calling thread take."""
    files = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    if len(files) != 1:  # a distribution's PyTorch has it elsewhere
        raise NoKernels(f"beside {torch.__file__} there are {len(files)} files lib/libtorch_cpu.*, not one with a BLAS")
    of_torch = files[0]
    found = ctypes.CDLL(str(of_torch))  # and what it is linked to
    try:
        products = [found.sgemm_, found.dgemm_]
    except AttributeError:
        raise NoKernels(f"{of_torch.name} has no BLAS that others may call") from None
    for name in ("MKL_Set_Num_Threads_Local", "openblas_set_num_threads_local"):
        if hasattr(found, name):
            return [ctypes.cast(function, ctypes.c_void_p) for function in (*products, getattr(found, name))]
    raise NoKernels("PyTorch's BLAS cannot be told to take one thread (MKL can, and OpenBLAS from 0.3.27 on)")


def _built() -> Path:
    """The compiled kernels' file, made if it is not there."""
    path = place()
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_suffix(".lock")):
        if not path.exists():
            _compile(path)
    return path


def _compile(path: Path) -> None:
    compiler = _compiler()
    log.info("compiling the kernels for this CPU, once, into %s", path)
    start, temporary = time.perf_counter(), path.with_suffix(f".{os.getpid()}")
    command = [*compiler, *_flags(), *(str(source) for source in sorted(HERE.glob("*.cpp"))), "-o", str(temporary)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            wrong = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
            raise NoKernels(f"{shlex.join(compiler)} cannot compile them ({wrong.strip()})")
        temporary.replace(path)  # whoever finds the file finds all of it
    finally:
        temporary.unlink(missing_ok=True)
    log.info("compiled in %.1f s", time.perf_counter() - start)


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if which(command[0]):
            return command
    missing = f"{named[0]}, which CXX names, is not there" if named else "there is no C++ compiler"
    raise NoKernels(f"{missing} (on Debian: apt-get install g++)")


def _flags() -> tuple[str, ...]:
    """The compiler's, for this machine."""
    return (*FLAGS, *X86_FLAGS) if platform.machine().lower() in ("x86_64", "amd64") else FLAGS


def _key() -> str:
    """What the compiled code depends on; the same compiler is taken for granted."""
    digest = hashlib.sha256(" ".join((*_flags(), platform.machine(), *platform.libc_ver(), _instructions())).encode())
    for source in sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _instructions() -> str:
    """What this CPU can do, as Linux lists it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Within: no other process is within."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
