"""The boundary around whatever reads a file: any failure becomes the project's error, which names the file.

A damaged or hostile file may raise anything: AttributeError where a member of an archive is no array, MemoryError where
a header asks for terabytes, ValueError where a message would show an integer of 5,000 digits. Readers raise errors of
their own for the faults they know, and this boundary stands for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fastmc.files import open_file

LISTED, LISTED_LETTERS = 20, 60  # names that are listed, and letters of each
LONGEST = 300  # characters of a fault that are shown: what it quotes may be of any length
OBJECTS = "it holds Python objects, which are never loaded; save plain numbers or strings"
"""In place of numpy's words, which advise to load them unsafely."""
SAYS_ENOUGH = (ValueError, OSError, BadZipFile)  # their messages are sentences


@contextmanager
def reading(
    fault: str, error: Callable[[str], Exception], *, remedy: str = "", passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Within: any exception becomes ``error("FAULT: what went wrong; REMEDY")``, its cause.

    What is no `Exception` (Ctrl-C) passes, and so do the kinds ``passing``: errors that name the file themselves.

    Args:
        fault: begins the message and names the file, such as "set.npz is not a readable .npz file".
    """
    try:
        yield
    except passing:
        raise
    except Exception as failure:
        raise error(f"{fault}: {explain(failure)}" + (f"; {remedy}" if remedy else "")) from failure


def explain(failure: BaseException) -> str:
    """A failure in one line of bounded length."""
    try:
        text = str(failure)
    except Exception as unprintable:
        text = str(unprintable)
    if isinstance(failure, ValueError) and ("allow_pickle" in text or "Python objects in dtype" in text):
        return OBJECTS
    text = writable(" ".join(text[: 2 * LONGEST].split()))
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    if isinstance(failure, KeyError):
        return f"{text} is missing"
    if isinstance(failure, MemoryError):
        return text or "it takes more memory than there is"
    return text if text and isinstance(failure, SAYS_ENOUGH) else f"{type(failure).__name__}: {text}"


def writable(text: str) -> str:
    """A text with escapes in the place of half characters, which no file and no terminal takes: Python puts them where
    the name of a file is no UTF-8, and files may hold some."""
    return text.encode("utf-8", "backslashreplace").decode()


def load_array(path: str | Path) -> np.ndarray | np.lib.npyio.NpzFile:
    """The array of a .npy file, memory-mapped, or the arrays of a .npz file. To be called within `reading`: a damaged
    file may raise anything, and one of objects raises numpy's advice to load it unsafely."""
    open_file(Path(path)).close()  # what is no file is refused, and not waited for
    return np.load(path, mmap_mode="r", allow_pickle=False)


def shown(value: object) -> str:
    """`repr` of what a file holds, for a message: of bounded length, and of any integer."""
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:LONGEST]) if isinstance(value, str | bytes) else _repr(value)
    return f"{text[:LONGEST]}..." if len(text) > LONGEST else text


def listed(names: Sequence[str]) -> str:
    """Names that a file holds, for a message: of bounded length, however many there are."""
    more = len(names) - LISTED
    text = writable(", ".join(name[:LISTED_LETTERS] for name in names[:LISTED]))
    return f"{text} and {more:,} more" if more > 0 else text


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__}"
