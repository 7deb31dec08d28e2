"""Where the frames of a store are kept while a run uses them: on the device, or on the host and streamed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastmc.data.placed.resident import PlacedStore, ResidentStore
from fastmc.data.placed.streamed import AHEAD, StreamedStore
from fastmc.data.store import PackedStore

Placement = Literal["auto", "device", "pinned", "mapped"]
Place = Literal["device", "pinned", "mapped"]
FramesDtype = Literal["float32", "float16", "bfloat16"]
SHARE = 0.5  # of the free memory that auto gives to the frames; the rest is for the step


@dataclass(frozen=True)
class DataConfig:
    """Where the frames of the training set are kept, and in which numbers."""

    placement: Placement = "auto"
    """device: whole on the training device, the fastest. pinned: whole in page-locked memory of the host; mapped: left
    in the store's file, read through a memory map. From both, the next batches are gathered and copied while a step
    runs, and every batch has the same bits. auto: device if the frames take at most half of its free memory, or else
    pinned if they take at most half of the host's, or else mapped."""
    frames_dtype: FramesDtype = "float32"
    """float16 takes half the memory and rounds coordinates of 2 to 4 m by at most 1 mm; bfloat16 by at most 8 mm. The
    largest error in the data at hand is logged."""
    verify: Literal["auto", "on", "off"] = "auto"
    """Read all frames first and compare them with their checksum, so that no damaged file is trained on. auto: where
    they take at most 512 MB."""

    @property
    def dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.frames_dtype]


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that are free on the training device and on the host; the same memory where the device is the CPU."""

    device: int
    host: int


def free_memory(device: torch.device) -> FreeMemory:
    """What is free now. The limit of a container on the host's memory is not read."""
    host = _available_host_memory()
    return FreeMemory(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


def _available_host_memory() -> int:
    """Bytes that programs can get without swapping, the file cache included; no limit where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    if not hasattr(os, "sysconf"):  # on Windows
        return sys.maxsize
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def place_store(
    store: PackedStore,
    device: torch.device | str,
    config: DataConfig | None = None,
    *,
    free: FreeMemory | None = None,
) -> tuple[PlacedStore, str]:
    """The store, placed as the config says, and one line for the log: where, the memory it takes, why, rounding error.

    Args:
        free: by default what `free_memory` finds.

    Raises:
        ValueError: a placement that was asked for does not fit, or a coordinate is too large for the dtype.
    """
    device, config = torch.device(device), config or DataConfig()
    needed = needed_memory(store, device, config)
    place, why = choose_place(config, needed, free or free_memory(device), device)
    placed: PlacedStore
    if place == "device":
        placed = ResidentStore(store, device, config.dtype)
    else:
        placed = StreamedStore(store, device, config.dtype, in_memory=place == "pinned")
    rounding = "" if config.frames_dtype == "float32" else f"; largest rounding error {placed.rounding_error:.3g} m"
    return placed, f"frames: {_describe(store, place, needed[place], device, config)}; {why}{rounding}"


def needed_memory(store: PackedStore, device: torch.device, config: DataConfig) -> dict[Place, int]:
    """Bytes that the frames take in each place."""
    size = store.frames.size * config.dtype.itemsize
    # torch rounds page-locked memory up to a power of two
    return {"device": size, "pinned": 1 << (size - 1).bit_length() if device.type == "cuda" else size, "mapped": 0}


def choose_place(
    config: DataConfig, needed: dict[Place, int], free: FreeMemory, device: torch.device
) -> tuple[Place, str]:
    """The place, and why. ValueError if the one that was asked for does not fit."""
    room: dict[Place, int] = {"device": free.device, "pinned": free.host}
    if config.placement == "auto":
        return _choose_automatically(needed, room, device)
    place = config.placement
    if place != "mapped" and needed[place] > room[place]:
        where = device if place == "device" else "the host"
        others = "pinned or mapped" if place == "device" else "mapped"
        smaller = ", or --frames-dtype float16 for half of it" if config.frames_dtype == "float32" else ""
        raise ValueError(
            f"placement = {place!r} needs {_mb(needed[place])} for the frames, and {where} has {_mb(room[place])} "
            f"free. Give --placement auto, {others}{smaller}"
        )
    return place, f"--placement {place}"


def _choose_automatically(needed: dict[Place, int], room: dict[Place, int], device: torch.device) -> tuple[Place, str]:
    fits = {place: needed[place] <= SHARE * room[place] for place in room}
    on_device = f"{SHARE:.0%} of the {_mb(room['device'])} free on {device}"
    on_host = f"{SHARE:.0%} of the {_mb(room['pinned'])} free on the host"
    if fits["device"]:
        return "device", f"they take at most {on_device}"
    if fits["pinned"]:
        return "pinned", f"they would take more than {on_device}, and take at most {on_host}"
    return "mapped", f"they would take more than {on_device} and than {on_host}"


def _describe(store: PackedStore, place: Place, needed: int, device: torch.device, config: DataConfig) -> str:
    """Where the frames are and the memory that they take."""
    kept = f"{_mb(needed)} of {config.frames_dtype}"
    if place == "device":
        is_map = device.type == "cpu" and config.frames_dtype == "float32"
        return f"{kept} on {device}{', its file mapped without a copy' if is_map else ''}"
    ahead = f"{AHEAD} batches fetched ahead"
    if place == "pinned":
        return f"{kept} in {'page-locked' if device.type == 'cuda' else 'host'} memory, {ahead}"
    return f"no memory, {_mb(store.frames.nbytes)} of float32 stay in the file, {ahead} as {config.frames_dtype}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
