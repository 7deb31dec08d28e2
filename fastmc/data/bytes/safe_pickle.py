"""Pickles of plain data, read without running anything that they name.

A pickle is a program: what it names is imported and called. Here every name is answered with a stand-in of this module,
and only those that arrays and bytes of plain types need are known; all else is an error. numpy's own functions are not
called either, since they trust the sizes that a pickle gives them.

Nor does a small file take much memory. Before it is read its instructions are gone through one by one: every length
must be there, and every number of the unpickler's memo, which is as long as the highest one, must be below the file's.
What is made of a text or bytes, which a pickle may name any number of times, is counted against the file's length.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.files import read_bytes
from fastmc.reading import explain, shown

_DTYPE = re.compile(r"[?bhilqpBHILQPefdg]|[biufSU]\d+")
_OBJECTS = ("O", "O4", "O8")
_SCALARS = (str, bytes, int, float, bool, type(None), np.generic)
MAX_FILE = 1 << 28  # bytes; names and labels of a million clips are a quarter of that
MAX_AXES = 32
COPIES = 16  # bytes made by calls per byte of the file; a sound file makes one
SMALL = 1 << 20  # bytes that may be made in any case
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
SHOWN = 100  # letters of a name
_SETS = ("EMPTY_SET", "FROZENSET")  # an empty one is one byte of the file, and 216 of memory
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class SafePickleError(ValueError):
    """A file is no pickle of plain data; the message names the fault, and the class where one is not allowed."""


def load_plain(path: str | Path, most: int = MAX_FILE) -> Any:
    """What a pickle holds: lists, tuples, dicts, str, bytes, int, float, bool, None, numpy arrays and scalars.

    Pickles of Python 2 are read too; their strings become ``str`` (as Latin-1). Arrays are of numbers, booleans or
    strings; object and structured arrays are refused.

    Args:
        most: bytes of the file; reading takes some times its size of memory.

    Raises:
        SafePickleError: the pickle names anything else, is broken or larger.
        OSError: the file cannot be read.
    """
    if Path(path).stat().st_size > most:
        raise SafePickleError(f"it has more than {most >> 20} MB, which is no file of names and labels")
    return plain_of(read_bytes(Path(path)))


def plain_of(content: bytes, *, objects: bool = False) -> Any:
    """The same of a pickle's bytes.

    Args:
        objects: read an array of objects too, of plain data and of no axes: as its one element.
    """
    content = _without_text_mode(content)
    try:
        _check_sizes(content)
        return _Finish().value(_PlainUnpickler(content, objects).load())
    except SafePickleError:
        raise
    except Exception as error:  # the documentation of pickle: a broken one may raise any exception
        raise SafePickleError(f"not a readable pickle: {type(error).__name__}: {explain(error)}") from error


def _without_text_mode(content: bytes) -> bytes:
    """A pickle of protocol 0, which is text, as it was before Windows wrote every line feed of it as CR LF."""
    ends = content.count(b"\n")
    is_text = ends > 0 and not content.startswith(pickle.PROTO) and content.count(b"\r\n") == ends
    return content.replace(b"\r\n", b"\n") if is_text else content


def _check_sizes(content: bytes) -> None:
    """An error if reading the pickle would take memory that the file's length does not explain, or it is broken."""
    file = io.BytesIO(content)
    while code := file.read(1):
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise SafePickleError(f"not a readable pickle: byte {file.tell() - 1} is {code!r}, no instruction")
        argument: Any = None
        if opcode.name == "STRING":  # bytes of Python 2, which pickletools takes for ASCII
            file.readline()
        elif opcode.arg is not None:
            argument = opcode.arg.reader(file)
        if opcode.name.endswith("PUT") and argument >= len(content):
            raise SafePickleError(f"it numbers what it holds up to {shown(argument)}, in {len(content)} bytes")
        if opcode.name in _SETS:
            raise SafePickleError("it holds a set, which is not plain data")
        if code == pickle.STOP:
            return
    raise EOFError("it has no end")


class _Room:
    """Bytes that the calls of a pickle may still make, and whether an array may be of objects."""

    __slots__ = ("_left", "objects")

    def __init__(self, content: bytes, objects: bool) -> None:
        self._left = COPIES * len(content) + SMALL
        self.objects = objects

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise SafePickleError("it makes much more of its texts than the file holds")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, objects: bool) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._room = _Room(content, objects)

    def find_class(self, module: str, name: str) -> Any:
        make = _NAMES.get(name) if module in _HOMES.get(name, ()) else None
        if make is None:
            raise SafePickleError(
                f"it holds {module[:SHOWN]}.{name[:SHOWN]}, which is not plain data and is never loaded; "
                "save lists, strings, numbers and arrays of numbers"
            )
        return _StandIn(partial(make, self._room))


class _StandIn:
    """A function that a pickle may call, and that it cannot change (a pickle may set the attributes of what it has)."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise SafePickleError("it changes a function")


class _Dtype:
    """Stands in for ``numpy.dtype`` until its byte order is known."""

    __slots__ = ("dtype",)

    def __init__(self, room: _Room, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        known = isinstance(code, str) and (_DTYPE.fullmatch(code) or (room.objects and code in _OBJECTS))
        if not known:
            raise SafePickleError(f"it holds an array of dtype {shown(code)}; numbers, booleans and strings are read")
        self.dtype = np.dtype(code)
        if not self.dtype.itemsize:
            raise SafePickleError("it holds an array of strings without room for a letter")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, subarray, names, fields = state[1:5]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if (subarray, names, fields) != (None, None, None):
            raise SafePickleError("it holds a structured array; numbers, booleans and strings are read")
        if order not in ("<", ">", "=", "|"):
            raise SafePickleError(f"it holds an array of byte order {shown(order)}")
        self.dtype = np.dtype(order + self.dtype.str[1:])


class _Array:
    """Stands in for an array until its content is known."""

    __slots__ = ("array", "room")

    def __init__(self, room: _Room, *_: Any) -> None:
        self.room = room
        self.array: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, fortran_order, content = state
        if isinstance(dtype, _Dtype) and dtype.dtype.hasobject:
            if shape != () or not isinstance(content, list) or len(content) != 1:
                raise SafePickleError(f"it holds an array of objects of shape {shown(shape)}")
            self.array = content[0]
            return
        self.array = _array(self.room, content, dtype, shape, "F" if fortran_order else "C")


def _array(room: _Room, content: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise SafePickleError("it holds an array without a dtype")
    if not isinstance(content, str | bytes | bytearray):  # bytes(n) of a number would make n of them
        raise SafePickleError(f"it makes an array of a {type(content).__name__}")
    content = _as_bytes(room, content)
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(isinstance(n, int) for n in shape):
        raise SafePickleError(f"it holds an array of shape {shown(shape)}")
    if max(shape, default=0) > len(content) > 0:
        raise SafePickleError(f"it holds an array {dtype.dtype} {shown(shape)} of {len(content)} bytes")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise SafePickleError(f"it holds an array {dtype.dtype} {shape} of {len(content)} bytes")
    values = np.frombuffer(content, dtype.dtype) if content else np.empty(math.prod(shape), dtype.dtype)
    return values.reshape(shape, order="F" if order == "F" else "C")


def _as_bytes(room: _Room, content: str | bytes | bytearray) -> bytes:
    if isinstance(content, bytes):
        return content
    room.take(len(content))
    return content.encode("latin1") if isinstance(content, str) else bytes(content)  # str: from Python 2


def _scalar(room: _Room, dtype: Any, content: Any = b"") -> Any:
    value = _array(room, content, dtype, ())[()]
    room.take(value.nbytes)
    return value


def _encode(room: _Room, text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in the protocols of Python 2."""
    if encoding != "latin1":
        raise SafePickleError(f"it encodes text as {shown(encoding)}")
    return _as_bytes(room, text)


def _bytes(room: _Room, *content: Any) -> bytes:
    if content:
        raise SafePickleError("it makes bytes of something")
    return b""


_NAMES: dict[str, Any] = {
    "dtype": _Dtype,
    "ndarray": _Array,
    "_reconstruct": _Array,
    "_frombuffer": _array,
    "scalar": _scalar,
    "encode": _encode,
    "bytes": _bytes,
}
_HOMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dtype", "ndarray", "_reconstruct", "_frombuffer", "scalar"), _NUMPY),
    "encode": ("_codecs",),
    "bytes": ("builtins", "__builtin__"),
}


def numpy_scalars() -> list[Callable[..., Any]]:
    """What ``torch.load(weights_only=True)`` needs to read numpy's scalars: stand-ins under numpy's names, for
    ``torch.serialization.safe_globals``."""
    room = _Room(b"", objects=False)

    class Dtype(_Dtype):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(room, *arguments)

    def scalar_of(module: str) -> Callable[..., Any]:
        def scalar(*arguments: Any) -> Any:
            return _scalar(room, *arguments)

        return _named(scalar, module, "scalar")

    homes = (home for home in _NUMPY if home.endswith("multiarray"))
    return [_named(Dtype, "numpy", "dtype"), *map(scalar_of, homes)]


def _named(stand_in: Any, module: str, name: str) -> Any:
    """Not as a pair with its name, which PyTorch takes from 2.7 on."""
    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
    return stand_in


class _Finish:
    """Puts the arrays in the place of their stand-ins, and lets nothing pass that is not plain."""

    def __init__(self) -> None:
        # By identity, original and result: a small pickle can name one list at exponentially many places.
        self._done: dict[int, tuple[Any, Any]] = {}
        self._open: list[tuple[Any, ...]] = []  # tuples that are being converted

    def value(self, value: Any) -> Any:
        if isinstance(value, _SCALARS):
            return value
        if id(value) not in self._done:
            if not isinstance(value, tuple | _Array):
                self._done[id(value)] = value, value  # for a list that holds itself
            self._done[id(value)] = value, self._converted(value)
        return self._done[id(value)][1]

    def _converted(self, value: Any) -> Any:
        if isinstance(value, _Array) and value.array is not None:
            return self.value(value.array)
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, tuple):
            if any(value is open_ for open_ in self._open):
                raise SafePickleError("it holds a tuple that holds itself")
            self._open.append(value)
            items = tuple(self.value(item) for item in value)
            self._open.pop()
            return items
        if isinstance(value, list):
            value[:] = [self.value(item) for item in value]
            return value
        if isinstance(value, dict) and all(isinstance(key, _SCALARS) for key in value):
            value.update({key: self.value(item) for key, item in value.items()})
            return value
        what = {_Array: "an array without content", _Dtype: "a dtype", _StandIn: "a class or function"}
        named = what.get(type(value), f"a {type(value).__name__}")
        raise SafePickleError(f"it holds {named}, which is not plain data")
