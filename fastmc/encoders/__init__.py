"""Skeleton encoders, one file each: `fastmc.encoders.base` says what an encoder is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fastmc.registry import find

if TYPE_CHECKING:
    from fastmc.encoders.base import Encoder

ENCODERS = {
    "bigru": "fastmc.encoders.bigru:BiGRU",
    "agcn": "fastmc.encoders.agcn:AGCN",
    "dstanet": "fastmc.encoders.dstanet:DSTANet",
    "hcn": "fastmc.encoders.hcn:HCN",
    "lstm": "fastmc.encoders.lstm:LSTM",
    "s2s": "fastmc.encoders.s2s:S2S",
    "stgcn": "fastmc.encoders.stgcn:STGCN",
}


def find_encoder(name: str, allow: Collection[str] = ()) -> type[Encoder]:
    """The class of an encoder by its name; ``allow`` and errors as of `fastmc.registry.find`."""
    from fastmc.encoders.base import Encoder

    return find("backbone", name, Encoder, ENCODERS, allow)
