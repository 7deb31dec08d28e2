"""Files of ``torch.save``: how all of them are written and read.

Reading one runs nothing that it brings along, waits for no pipe, and trusts no number in it: its checksums are
compared, and what its tensors claim to hold is bounded by what the file has.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastmc.files import CHUNK, NotAFile, Sum, open_file, sum_of, summed_file

ZIP = b"PK\x03\x04"
NEVER_NEGATIVE = ("running_var", "exp_avg_sq")
"""Last part of the name of tensors that are variances."""


class TensorFileError(ValueError):
    """A file cannot be read, is damaged, or holds what it may not; the message names it and has no remedy.

    Attributes:
        forbidden: what the file holds that could run a program, if that is why it was not read.
    """

    def __init__(self, message: str, forbidden: str | None = None) -> None:
        super().__init__(message)
        self.forbidden = forbidden


def write_tensors(path: Path, content: Any, *, zipped: bool = True) -> Sum:
    """Write a new file and wait until it is on disk. Unzipped, PyTorch before 1.6 reads it, and it has no checksums.

    Raises:
        WriteError: it cannot be written; then ``path`` holds a part of it.
    """
    with summed_file(path) as file:
        torch.save(content, file, _use_new_zipfile_serialization=zipped)  # type: ignore[arg-type]  # it has what it needs
    return file.sum


def read_tensors(path: Path, *, expected: Sum | None = None, allowed: Sequence[Any] = (), mapped: bool = False) -> Any:
    """The content of a file, on the CPU: tensors, plain values, and instances of the ``allowed`` classes.

    Args:
        expected: what `write_tensors` returned; where it is not known, the checksums within the file are compared.
        mapped: leave the tensors in the file where its format can.

    Raises:
        TensorFileError: it is not there, no file, damaged, or holds more than that.
    """
    try:
        with open_file(path) as file, torch.serialization.safe_globals(list(allowed)):
            zipped = file.read(len(ZIP)) == ZIP
            file.seek(0)
            if expected is not None:
                _compare(sum_of(file), expected)
            elif zipped:
                _check_archive(file)
            file.seek(0)
            mapped = mapped and zipped
            content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        _check_claims(content)
    except NotAFile as error:
        raise TensorFileError(str(error)) from error
    except OSError as error:
        raise TensorFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises many kinds for a damaged file
        forbidden = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise TensorFileError(_why(path, error, forbidden), forbidden and forbidden[1]) from error
    return content


def tensors_of(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts, lists and tuples, with their names, such as ``model.query.norm.running_var``."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (dict, list, tuple)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from tensors_of(value, f"{name}.{key}" if name else str(key))


def check_values(content: Any, path: Path) -> None:
    """TensorFileError, naming file and tensor, if a number is not finite or a variance negative: no encoder computes
    anything from such, and nothing of ours writes it."""
    for name, tensor in tensors_of(content):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        least, most = tensor.detach().aminmax()  # NaN is both; one pass, and no mask as large as the tensor
        if not (torch.isfinite(least) and torch.isfinite(most)):
            raise TensorFileError(f"{path} is damaged: {name} is not finite")
        if name.rpartition(".")[2] in NEVER_NEGATIVE and least < 0:
            raise TensorFileError(f"{path} is damaged: {name} is a variance, and negative")


class _Fault(Exception):
    """What is wrong with a file."""


def _compare(found: Sum, expected: Sum) -> None:
    if found.size != expected.size:
        raise _Fault(f"it has {found.size} bytes, {expected.size} were written")
    if found.crc != expected.crc:
        raise _Fault(f"its CRC-32 is {found.crc:08x}, that of what was written {expected.crc:08x}")


def _check_archive(file: BinaryIO) -> None:
    """Compare the checksum of each member; PyTorch does not."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if claimed > size:
            raise _Fault(f"its parts claim {claimed} bytes, it has {size}")
        for member in members:
            with archive.open(member) as content:
                while content.read(CHUNK):
                    pass


def _check_claims(content: Any) -> None:
    """A tensor of a few bytes may claim a shape of any size, which the first operation on it would allocate."""
    for name, tensor in tensors_of(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise _Fault(f"{name} is a tensor of layout {tensor.layout} on {tensor.device}")
        claimed, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if claimed > there:
            raise _Fault(f"{name} claims {tuple(tensor.shape)} numbers, {claimed} bytes, and has {there}")


def _why(path: Path, error: Exception, forbidden: re.Match[str] | None) -> str:
    if forbidden is not None:
        return f"{path} holds {forbidden[1]}, and reading that could run any program, so it is not read"
    if isinstance(error, _Fault):
        return f"{path} is damaged: {error}"
    # The first sentence: in the others PyTorch advises to read it in a way that could run any program.
    says = str(error).splitlines()[0].partition(". ")[0] if str(error) else "the file ends too early"
    says = "it holds more than tensors and plain values" if "weights_only" in says else says
    return f"{path} is damaged, or no checkpoint ({type(error).__name__}: {says[:200]})"
