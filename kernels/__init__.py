"""Triton kernels and their launchers. Importing this package imports neither Triton nor a driver.

draw.py     views.py                          random choices of views; the views
attack.py                                     what surrounds the encoder's passes in the attack
update.py                                     SGD, key encoder and half-precision copies in one pass
mc.py       launch.py                         the MC loss: what the library calls, and its launches
prepare.py  sweep.py  combine.py  bank.py     one step of the MC loss each, in this order
products.py rows.py   tiles.py                what they share: split products, blocks of rows, sizes by target
ranges.py                                     names of a step's parts, for profilers; no Triton in it
"""

from __future__ import annotations

import math
import os
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch
from torch.autograd import profiler

OLDEST_TRITON = (3, 4)
"""The first with triton.knobs."""
MAX_DIM = 512
"""The widest features whose blocks fit a program."""
MAX_VIEW = 4096
"""Frames of a view times bodies times joints, each rounded up to a power of two, that fit a program."""
MAX_FRAMES = 256
"""Frames of a view whose filter a program holds, a product of T x T: at 512 a thread spills 2.4 kB, at 1,024 79 kB."""
MAX_JOINTS = 256
"""Joints whose choices a program draws, in an order that it compares V x V numbers for: at 300 a thread spills 18 kB,
and the compiler does not come to an end at 543."""


def view_reason(frames: int, bodies: int, joints: int) -> str | None:
    """Why views of this size cannot be made, their choices included, as the end of a sentence; None if they can."""
    held = math.prod(1 << (n - 1).bit_length() for n in (frames, bodies, joints))
    if held > MAX_VIEW:
        what = f"{frames} frames of {bodies} bodies of {joints} joints"
        return (
            f"a program holds at most {MAX_VIEW} joints of a view, and {what} take {held}, rounded up to powers of two"
        )
    if frames > MAX_FRAMES:
        return f"a program filters views of at most {MAX_FRAMES} frames, and these have {frames}"
    return draw_reason(joints)


def draw_reason(joints: int) -> str | None:
    """Why the choices of views cannot be drawn for bodies of so many joints, as the end of a sentence; None if they
    can."""
    if joints <= MAX_JOINTS:
        return None
    return f"a program draws for bodies of at most {MAX_JOINTS} joints, and these have {joints}"


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run for tensors on ``device``, as the end of a sentence; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not importable (on Linux with an NVIDIA GPU: pip install triton)"
    if (reason := too_old_reason()) is not None:
        return reason
    if device.type == "cpu":
        return _not_interpreted_reason()
    if device.type != "cuda":
        return f"the tensors are on {device}, not on a GPU"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"{torch.cuda.get_device_name(device)} has no bfloat16 tensor cores (compute capability 8.0 or later has)"
        )
    return no_launcher_reason()


def _not_interpreted_reason() -> str | None:
    """Why a CPU cannot run the kernels, as the end of a sentence; None under an interpreter that has been repaired."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on the CPU, not on a GPU"
    from triton.runtime.interpreter import interpreter_builder

    if "bf16x3" in interpreter_builder.options.allowed_dot_input_precisions:
        return None
    return "Triton's interpreter computes bfloat16 wrongly (a clone has the repair: docs/kernels.md)"


@cache
def too_old_reason() -> str | None:
    """Why this Triton cannot take the kernels, as the end of a sentence; None if it can."""
    import triton

    release = tuple(int(number) for number in triton.__version__.split(".")[:2])
    if release < OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old (3.4 or later is needed; PyTorch 2.8 and later bring it)"
    return None


@cache
def no_launcher_reason() -> str | None:
    """Why Triton cannot build what launches a kernel, as the end of a sentence; None if it can. It is a C file that
    Triton compiles on the machine itself."""
    if not (os.environ.get("CC") or which("clang") or which("gcc")):
        return "Triton finds no C compiler (on Debian: apt-get install gcc; or name one in CC)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton looks for it
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    if not header.exists():
        return f"Triton needs {header}, which is not there (on Debian: apt-get install python3-dev)"
    return None


def launching_on(device: torch.device, what: str) -> AbstractContextManager[object]:
    """Within, Triton launches on ``device``: it takes the current device, which need not be the tensors'.

    PyTorch's profiler counts a kernel to the operator that launched it, and Triton's launches are none: while it
    records, the operator ``what`` stands around them, as around those of torch.compile.
    """
    there: AbstractContextManager[object] = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    return _as_operator(f"fastmc::{what}", there) if profiler._is_profiler_enabled else there


@contextmanager
def _as_operator(name: str, within: AbstractContextManager[object]) -> Iterator[None]:
    with torch._C._profiler._RecordFunctionFast(name), within:
        yield
