"""Pre-training methods, one file each: `fastmc.methods.base` says what a method is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fastmc.registry import find

if TYPE_CHECKING:
    from fastmc.methods.base import Method, MethodConfig, Setup

METHODS = {
    "a2mc": "fastmc.methods.a2mc:A2MC",
    "b1": "fastmc.methods.a2mc:B1",
    "b2": "fastmc.methods.a2mc:B2",
    "b3": "fastmc.methods.a2mc:B3",
    "skeletonclr": "fastmc.methods.skeletonclr:SkeletonCLR",
    "ascal": "fastmc.methods.ascal:ASCAL",
    "aimclr": "fastmc.methods.aimclr:AimCLR",
    "hiclr": "fastmc.methods.hiclr:HiCLR",
    "cpm": "fastmc.methods.cpm:CPM",
    "hico": "fastmc.methods.hico:HiCo",
}
OF_RELEASED = "b1"
"""What a checkpoint of another code of this family is read as: one query, and a bank first in, first out."""


def find_method(name: str, allow: Collection[str] = ()) -> type[Method]:
    """The class of a method by its name; ``allow`` and errors as of `fastmc.registry.find`."""
    from fastmc.methods.base import Method

    return find("method", name, Method, METHODS, allow)


def build_method(kind: type[Method], config: MethodConfig, setup: Setup) -> Method:
    """A method with fresh weights on the CPU, which depend on the setup's seed alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(setup.seed)  # and not that of a GPU, which nothing would set back
        return kind(config, setup)
