"""Counter-based random numbers: Philox4x32-10 in torch integer arithmetic.

A number depends on its key and counter alone, never on how many were drawn before it. A view is therefore the same
whatever the device, the order of the samples, the split into batches or a resume. The block function is the one behind
``triton.language.philox``.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

Word: TypeAlias = Tensor | int

_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_WEYL_A, _WEYL_B = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def _multiply(word: Word, constant: int) -> tuple[Word, Word]:
    """High and low 32 bits of word * constant. An int64 product wraps modulo 2^64, so its 64 bits are right, and the
    mask takes away what the arithmetic shift brings in from the sign."""
    product = word * constant
    return (product >> 32) & _MASK, product & _MASK


def philox(seed: int, c0: Word, c1: Word, c2: Word, c3: Word) -> Tensor:
    """Philox4x32-10 blocks.

    Args:
        seed: the 64-bit key.
        c0, c1, c2, c3: the four counter words in [0, 2^32), int64 tensors that broadcast together, or ints; at least
            one is a tensor. Ints stay ints: nothing is copied to the device.

    Returns:
        int64 tensor (..., 4) of 32-bit words.
    """
    a, b, c, d = (word & _MASK for word in (c0, c1, c2, c3))
    key_a, key_b = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high_a, low_a = _multiply(a, _MULTIPLIER_A)
        high_c, low_c = _multiply(c, _MULTIPLIER_B)
        a, b, c, d = high_c ^ b ^ key_a, low_c, high_a ^ d ^ key_b, low_a
        key_a, key_b = (key_a + _WEYL_A) & _MASK, (key_b + _WEYL_B) & _MASK
    return torch.stack(torch.broadcast_tensors(a, b, c, d), dim=-1)


def keyed_generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator for draws that belong to (seed, number), such as an epoch's or a step's."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def key_default_generators(device: torch.device, *key: int | str) -> None:
    """Have PyTorch's default generators, of the CPU and of this device, begin anew where the key says.

    What draws by itself, such as dropout, draws from these. A CUDA graph reads where its generator stands each time
    that it is replayed, so that this must come before, and not be captured.
    """
    # A generator of a CPU takes 32 bits of its seed: those of neighbouring keys have to differ.
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little")
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


@contextmanager
def default_generators_kept(device: torch.device) -> Iterator[None]:
    """Within: whatever is drawn from PyTorch's default generators, of the CPU and of this device, or done to them, they
    stand afterwards where they stood."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def uniform(words: Tensor) -> Tensor:
    """32-bit words to float32 in [0, 1): the upper 24 bits, each value exactly representable."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def normal(words: Tensor, count: int = 4) -> Tensor:
    """Blocks (..., 4) of words to (..., count) standard normal float32, count <= 4, by two Box-Muller pairs."""
    u = uniform(words)
    radius = torch.sqrt(-2.0 * torch.log(1.0 - u[..., 0::2]))  # 1 - u lies in (0, 1]: the log is finite
    angle = u[..., 1::2] * (2.0 * math.pi)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)[..., :count]
