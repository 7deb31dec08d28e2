"""The ledger's piece "data": what `fastmc.methods.a2mc.A2MC.features` launches around the encoders' passes.

The passes themselves are the network's and not counted; tensors of their shapes stand for what they give the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench import ntu_like
from bench.aot import compile_launches
from bench.counting import count_operators
from bench.ledger_rows import (
    H100,
    MB,
    SUMS,
    instruction_cells,
    launch_rows,
    plain_cells,
    resource_cells,
    table,
    time_cells,
    total,
    traffic_cells,
)
from fastmc.arguments import check_choice
from fastmc.backends import ATTACK
from fastmc.checks import check_number
from fastmc.methods.a2mc import OF_ATTACKED, OF_CLIPS, A2MCConfig
from fastmc.skeleton import NTU25
from fastmc.views.clips import STREAMS, DenseClips, PackedClips, Stream
from fastmc.views.draw import AugmentConfig, ViewParams, draw_params, identity_params
from fastmc.views.make import make_views, whole_clips
from kernels import view_reason

ViewDtype = Literal["float32", "bfloat16"]
JOINTS = NTU25.num_joints
THINGS = (
    "choices for x0, x3",
    "x0, x3",
    "x of eq. 5",
    "gradient of the logits",
    "attacked x, eq. 6",
    "choices for x1, x2",
    "x1, x2",
)
"""What is made, in this order, by a launch each."""


@dataclass(frozen=True)
class DataStep:
    """The data part of a step with hard positives, of clips with the lengths and bodies of bench/ntu_like.py.

    Attributes:
        batch: B, clips.
        frames, bodies: T and M, of a view.
        dtype, stream: of the views.
    """

    batch: int
    frames: int
    bodies: int
    dtype: ViewDtype
    stream: Stream

    def __post_init__(self) -> None:
        for name in ("batch", "frames", "bodies"):
            check_number(name, getattr(self, name), at_least=1)
        check_choice("dtype", self.dtype, get_args(ViewDtype))
        check_choice("stream", self.stream, STREAMS)
        reason = view_reason(self.frames, self.bodies, JOINTS)
        if reason is not None:
            raise ValueError(f"frames: {reason}")

    def __str__(self) -> str:
        sizes = f"B = {self.batch}, T = {self.frames}, V = {JOINTS}, M = {self.bodies}"
        return f"data of a step, {sizes}; views in {self.dtype}, stream {self.stream}"

    def launch(self, device: str) -> None:
        self.make(device, "triton", lambda call: call())

    def make(self, device: str, impl: str, each: Callable[[Callable[[], Any]], Any]) -> None:
        """Make ``THINGS``: ``each`` is given what makes one, and returns what that returns."""
        # The library knows that no kernel runs on a device without memory; to be compiled they need none.
        with mock.patch("kernels.unavailable_reason", return_value=None):
            self._make(device, impl, each)

    def _make(self, device: str, impl: str, each: Callable[[Callable[[], Any]], Any]) -> None:
        clips, sample = self.clips(device), torch.arange(self.batch, device=device)
        x = torch.empty(4, self.batch, self.frames, self.width, dtype=self.torch_dtype, device=device)
        views: dict[str, Any] = {"size": self.frames, "stream": self.stream, "dtype": x.dtype, "impl": impl}
        choices = each(lambda: self.draw(clips.num_frames, sample, OF_CLIPS, impl))
        each(lambda: make_views(clips, choices, NTU25, out=x[:2], **views))

        attack, config = ATTACK.module(impl), A2MCConfig()
        whole = each(lambda: whole_clips(clips, NTU25, self.frames, impl=impl))
        logits, gradient = torch.ones(self.batch, config.attack_classes, device=device), torch.ones_like(whole)
        each(lambda: attack.logit_gradient(logits))
        attacked = each(lambda: attack.limited_step(whole, gradient, self.bodies, config.attack_lr, config.attack_norm))

        hard = each(lambda: self.draw(clips.num_frames, sample, OF_ATTACKED, impl))
        each(lambda: make_views(DenseClips(attacked, clips.num_bodies, self.bodies), hard, NTU25, out=x[2:], **views))

    def draw(self, num_frames: Tensor, sample: Tensor, views: tuple[int, ...], impl: str) -> ViewParams:
        resized_to = self.frames if views == OF_ATTACKED else None
        key: dict[str, Any] = {"views": views, "seed": 0, "step": 1, "sample": sample, "resized_to": resized_to}
        return draw_params(AugmentConfig(), num_frames, JOINTS, **key, impl=impl)

    def clips(self, device: str) -> PackedClips:
        return ntu_like_clips(self.batch, self.bodies, device)

    @property
    def width(self) -> int:
        """Numbers of a frame."""
        return JOINTS * self.bodies * 3

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def compulsory(self) -> list[int]:
        """Bytes that each of ``THINGS`` costs in any implementation that makes one after the other.

        choices: each clip's id and number of frames read, the table written. views: `bytes_of_views`. attack: logits
        read, their gradient written; x and its gradient read, the attacked x written.
        """
        clips, sample = self.clips("cpu"), torch.arange(self.batch)
        whole = identity_params(torch.zeros_like(clips.num_frames), clips.num_frames, JOINTS)
        drawn, hard = (self.draw(clips.num_frames, sample, views, "torch") for views in (OF_CLIPS, OF_ATTACKED))
        ids, logits = 2 * 8 * self.batch, self.batch * A2MCConfig.attack_classes
        return [
            ids + 4 * drawn.table.numel(),
            self.bytes_of_views(drawn, clips, self.torch_dtype),
            self.bytes_of_views(whole, clips, torch.float32),
            2 * 4 * logits,
            3 * 4 * self.batch * self.frames * self.width,
            ids + 4 * hard.table.numel(),
            self.bytes_of_views(hard, clips, self.torch_dtype),
        ]

    def bytes_of_views(self, params: ViewParams, clips: PackedClips, dtype: torch.dtype) -> int:
        """The float32 frames that each view needs, of the bodies that its clip has, read once; the views, with all
        their bodies, written once. The table, the ids and the first rows are not in it."""
        frames = frames_needed(params.column("crop_length"), self.frames) * clips.num_bodies
        return 4 * JOINTS * 3 * int(frames.sum()) + frames.numel() * self.frames * self.width * dtype.itemsize

    def operators(self, impl: str) -> list[dict[str, int]]:
        """PyTorch's operators for each of ``THINGS``, one kernel each, on tensors without memory."""
        counts = []

        def count(call: Callable[[], Any]) -> Any:
            results = []
            counts.append(count_operators(lambda: results.append(call())))
            return results[0]

        self.make("meta", impl, count)
        return counts

    def measure(self, target: str, plain: bool) -> dict[str, Any]:
        """Counts and machine code of every launch beside its compulsory bytes, their sums, and the form in PyTorch."""
        rows = launch_rows(self, target)
        for row, made, needed in zip(rows, THINGS, self.compulsory(), strict=True):
            row |= {"makes": made, "compulsory_bytes": needed}
        with compile_launches(target):
            beside = self.operators("triton")
        sums = total(rows, (*SUMS, "compulsory_bytes"))
        for row in (*rows, sums):
            row["ratio"] = (row["load_bytes"] + row["store_bytes"]) / row["compulsory_bytes"]
        return {
            "case": str(self),
            "target": target,
            "kernels": rows,
            "total": sums,
            "beside": dict(zip(THINGS, beside, strict=True)),
            "plain": dict(zip(THINGS, self.operators("torch"), strict=True)) if plain else {},
            "ceiling": H100.name,
        }


def ntu_like_clips(batch: int, max_bodies: int, device: str) -> PackedClips:
    """Whole clips, one behind the other."""
    rng = np.random.default_rng(0)
    frames, bodies = ntu_like.lengths(rng, batch)
    bodies = bodies.clip(max=max_bodies)
    rows = [ntu_like.motion(rng, *sizes).reshape(-1, JOINTS, 3) for sizes in zip(frames, bodies, strict=True)]
    start = np.cumsum(frames * bodies) - frames * bodies
    packed, first, *sizes = (torch.from_numpy(a).to(device) for a in (np.concatenate(rows), start, frames, bodies))
    return PackedClips(packed, first, sizes[0], sizes[1], max_bodies)


def frames_needed(length: Tensor, size: int) -> Tensor:
    """Of how many frames of a crop of ``length`` (...) frames a view of ``size`` is made, (...) int64: each of its
    frames lies at one or between two of the crop, and each of these counts once."""
    crop = length[..., None].double()
    place = ((torch.arange(size) + 0.5) * crop / size - 0.5).clamp_min(0)
    before = place.floor().minimum(crop - 1)
    frames = torch.cat([before, (before + 1).minimum(crop - 1)], dim=-1).sort(dim=-1).values
    return 1 + (frames.diff(dim=-1) > 0).sum(dim=-1)


def render(found: dict[str, Any]) -> str:
    """As markdown."""
    sums, beside = found["total"], {made: counts for made, counts in found["beside"].items() if counts["launches"]}
    requested = (sums["load_bytes"] + sums["store_bytes"]) / MB
    others = ", ".join(f"{counts['launches']} for {made}" for made, counts in beside.items()) or "none"
    lines = [
        f"{found['case']}; compiled for {found['target']}.",
        "",
        table([_row(row) for row in (*found["kernels"], sums)]),
        "",
        f"Requested: {requested:.1f} MB in all, of which {sums['first_touch_bytes'] / MB:.1f} MB are first touches, "
        "which must come from memory or go there. Compulsory: of views, the source frames that each view needs, once, "
        "and the views; of choices, ids and numbers of frames, and the table; of the attack, all operands and results. "
        f"Operators of PyTorch beside the launches: {others}.",
        "",
        table([resource_cells(row) | instruction_cells(row) for row in found["kernels"]]),
        "",
        f"A MODEL, not a measurement, of an {found['ceiling']}: at least {sums['seconds_at_least'] * 1e6:.1f} us for "
        f"these kernels one after the other, each bounded by first-touched bytes / {H100.memory / 1e12:.2f} TB/s or "
        f"exponentials / {H100.exponentials / 1e12:.2f} T/s. Launches, latencies, caches and the rest of the "
        "arithmetic are not in it.",
    ]
    if found["plain"]:
        plain = found["plain"] | {
            "all": total(found["plain"].values(), ("launches", "load_bytes", "store_bytes", "flops"))
        }
        lines += ["", table([plain_cells(made, counts) for made, counts in plain.items()])]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> dict[str, str]:
    needed = {
        "MB compulsory": f"{row['compulsory_bytes'] / MB:.2f}",
        "requested / compulsory": f"{row['ratio']:.3f}",
    }
    cells = traffic_cells(row)
    return {"kernel": cells.pop("kernel"), "makes": row.get("makes", "")} | cells | needed | time_cells(row)
