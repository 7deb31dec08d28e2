"""From a sound input to a damaged one: bytes, numbers and lines of any file, and what lies under checksums."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

Files = dict[str, bytes]
MAX_BYTES = 1 << 20  # of a damaged file; what a small one may cost is the question
NUMBERS = (
    *(b"0", b"-1", b"1e39", b"3.4e38", b"1e400", b"1e-320", b"nan", b"-inf", b"12345678901234567890", b"1_0"),
    *(b"", b"x", b"1e4", b"9999", b"999999999", b"1" * 5000, b"0x10", "é".encode(), b"\0", b"2147483648"),
)
WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf"), 3.4e38, -0.5),
    *("", "x", "\ud800", "\0", "a/../b", "x" * 300, [], {}, [[]], [{}], {"x": {}}, [None], [[1], [1, 2]]),
)
OPCODES = (
    *(b"r\xff\xff\xff\x7f", b"q\x00", b"h\x00", b"j\x01\x00\x00\x00", b"p999999999\n", b"\x94", b"2", b"0", b"("),
    *(b"]", b"}", b")", b"\x8f", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"b", b"R", b"\x81", b"\x85", b"\x86"),
    *(b"B\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00", b"\x96" + b"\xff" * 8, b"Q", b"\x93", b"."),
    *(b"X\x02\x00\x00\x00U9", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"I9\n", b"L" + b"9" * 30 + b"L\n", b"N"),
)


def damaged(files: Files, random: Random) -> Files:
    """The files with one to three faults, all of them in one file."""
    files = dict(files)
    path = random.choice(sorted(files))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        files[path] = _damaged(files[path], PurePath(path).suffix, random)[:MAX_BYTES]
    if random.random() < 0.02:
        del files[path]
    return files


def _damaged(content: bytes, suffix: str, random: Random) -> bytes:
    own = _BY_SUFFIX.get(suffix)
    if own is not None and random.random() < 0.7:
        try:
            return own(content, random)
        except Exception:  # it is damaged already, and no longer of its kind
            pass
    return random.choice(_PLAIN)(content, random)


# ---- any file


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _splice(content: bytes, random: Random) -> bytes:
    """A piece is repeated, left out, or put elsewhere."""
    first, last = sorted(random.randrange(len(content) + 1) for _ in range(2))
    last = min(last, first + random.choice((1, 4, 8, 64, 1 << 20)))
    at = random.choice((first, random.randrange(len(content) + 1)))
    times = random.choice((0, 0, 1, 2, 100))
    rest = content[:first] + content[last:]
    return rest[:at] + content[first:last] * times + rest[at:]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _word(content: bytes, random: Random) -> bytes:
    """A number of four or eight bytes becomes one that is telling."""
    form = random.choice(["<I", "<H", "<Q", "<B", ">I", ">i", "<d", "<f"])
    value = random.choice(WORDS)
    size = struct.calcsize(form)
    if form[-1] in "df":
        word = struct.pack(form, random.choice((float("nan"), float("inf"), 3.4e38, -1.0, 1e5)))
    else:
        word = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little" if form[0] == "<" else "big")
    at = random.randrange(len(content) + 1)
    return content[:at] + word + content[at + size :]


_PLAIN: tuple[Callable[[bytes, Random], bytes], ...] = (_flip, _splice, _truncate, _word)


# ---- text


def _text(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    what = random.random()
    if what < 0.6:
        separator = b"," if b"," in lines[at] else b" "
        tokens = lines[at].split(separator)
        tokens[random.randrange(len(tokens))] = random.choice(NUMBERS)
        lines[at] = separator.join(tokens)
    elif what < 0.7:
        del lines[at]
    elif what < 0.8:
        lines.insert(random.randrange(len(lines)), lines[at])
    elif what < 0.9:
        lines[at] += random.choice((b" 1", b",1", b"\r", b"\t", b"\0", b" "))
    else:
        lines[at:at] = [random.choice((b"", b"0", b"1"))] * random.choice((1, 10, 10_000))
    return b"\n".join(lines)


def _json(content: bytes, random: Random) -> bytes:
    if random.random() < 0.05:
        return b"[" * 100_000
    holder = [json.loads(content)]
    node: Any = holder
    key: Any = 0
    while isinstance(node[key], (dict, list)) and node[key] and random.random() < 0.85:
        node = node[key]
        key = random.choice(sorted(node)) if isinstance(node, dict) else random.randrange(len(node))
    what = random.random()
    if what < 0.15 and isinstance(node, dict):
        del node[key]
    elif what < 0.25 and isinstance(node, dict):
        node[random.choice(("x", "", "name"))] = random.choice(VALUES)
    else:
        node[key] = random.choice(VALUES)
    text = json.dumps(holder[0])
    return (text.replace("2147483648", "9" * 5000) if random.random() < 0.3 else text).encode()


# ---- under checksums


def _npz(content: bytes, random: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(sorted(members))
    what = random.random()
    if what < 0.75:
        members[name] = _npy(members[name], random)
    elif what < 0.8:
        members[name] = random.choice((b"", b"text", b"\x93NUMPY", pickle.dumps({}), b"0" * (1 << 22)))
    elif what < 0.87:
        del members[name]
    elif what < 0.94:
        members[random.choice(sorted(members))] = members[name]
    else:
        members[random.choice((name.removesuffix(".npy"), "x", "../x.npy", "é.npy"))] = members[name]
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice(methods)) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return file.getvalue()


def _npy(content: bytes, random: Random) -> bytes:
    size = 10 + int.from_bytes(content[8:10], "little")
    header, data = content[10:size], content[size:]
    what = random.random()
    if what < 0.5:
        return content[:size] + random.choice((_flip, _word, _splice))(data, random)
    if what < 0.7:
        return content[:10] + _flip(header, random) + data
    old, new = random.choice(
        (
            *((b"'<f4'", b"'<f8'"), (b"'<f4'", b"'|O'"), (b"'<f4'", b"'<f2'"), (b"'<f4'", b"'<c8'"), (b"<i8", b"<u8")),
            *((b"(3", b"(99999999999"), (b"(2", b"(-1"), (b"(", b"(0, "), (b"False", b"True"), (b"<U", b"<U9999999")),
            *((b"<i8", b"<M8"), (b"(", b"(" * 99), (b"4,", b"40000000,"), (b"(3", b"(3" + b"0" * 30)),
        )
    )
    header = header.replace(old, new, 1)
    return content[:8] + len(header).to_bytes(2, "little") + header + data


def _mat(content: bytes, random: Random) -> bytes:
    kind, size = struct.unpack_from("<II", content, 128)
    if kind != 15:
        return content[:128] + random.choice(_PLAIN)(content[128:], random)
    inflate = zlib.decompressobj()
    element = inflate.decompress(content[136 : 136 + size], MAX_BYTES)
    if not inflate.eof:
        raise ValueError("it is a small file that says that it is large already")
    packer = zlib.compressobj()
    packed = packer.compress(random.choice(_PLAIN)(element, random))
    zeros = random.choice((0, 0, 0, 0, 0, 0, 0, 0, 200))  # MB; this process must not hold them at once
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(zeros)) + packer.flush()
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed + content[136 + size :]


def _pickle(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    piece = b"".join(random.choice(OPCODES) for _ in range(random.choice((1, 2, 3))))
    return content[:at] + piece * random.choice((1, 1, 1, 1000, 100_000)) + content[at:]


_BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    **dict.fromkeys((".skeleton", ".txt", ".csv"), _text),
    ".json": _json,
    ".npz": _npz,
    ".npy": _npy,
    ".mat": _mat,
    ".pkl": _pickle,
}
