"""Views of some clips on a page, as training makes them: real draws, and what each of them does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.page.clips import spread
from fastmc.page.motion import pack
from fastmc.views.clips import PackedClips
from fastmc.views.draw import BASIC_KEY, STRONG, AugmentConfig, ViewParams, draw_params
from fastmc.views.make import make_views
from fastmc.views.words import ViewOfClip, explained

MOST_BYTES = 2_000_000
VIEWS = {"basic": BASIC_KEY, "strong": STRONG}


@dataclass(frozen=True)
class Augmentation:
    """How the views of a page are made: as `train.run` makes those of a run with these settings."""

    config: AugmentConfig = field(default_factory=AugmentConfig)
    frames: int = 64
    seed: int = 0
    clips: int = 8
    draws: int = 12


def views_content(store: PackedStore, ids: np.ndarray, augmentation: Augmentation) -> dict[str, Any]:
    """``views`` of some of the page's clips, a sentence for each transform, and the settings."""
    config, frames = augmentation.config, augmentation.frames
    chosen = spread([store.label[ids], store.num_bodies[ids]], augmentation.clips, augmentation.seed)
    placed = ResidentStore(store)
    return {
        "views": [_views_of(placed, int(ids[n]), int(n), augmentation) for n in chosen],
        "explained": [list(each) for each in explained(config, frames)],
        "augment": [[name, str(value)] for name, value in vars(config).items()],
    }


def _views_of(placed: ResidentStore, clip: int, place: int, augmentation: Augmentation) -> dict[str, Any]:
    """Of one clip, which is at ``place`` among those of the page: the draws of its views, and their motions."""
    sample, skeleton = torch.tensor([clip]), placed.skeleton
    clips = placed.select(sample)
    frames, size, joints = int(clips.num_frames), augmentation.frames, skeleton.joint_names
    draws, motions = [], []
    for step in range(augmentation.draws):
        params, plain = (_drawn(clips, sample, step, strong, augmentation) for strong in ((STRONG,), ()))
        made = make_views(clips, params, skeleton, size=size)
        for row, name in enumerate(VIEWS):
            of_clip = ViewOfClip(params, row, frames, size, name == "strong", plain=plain, joints=joints)
            parameters = [[change.name, change.text] for change in of_clip.changes()]
            draws.append({"name": name, "draw": step, "parameters": parameters, "crop": list(of_clip.crop)})
            view = made[row, 0].unflatten(1, (len(joints), placed.max_bodies, 3)).transpose(1, 2)
            motions.append(view[:, : int(clips.num_bodies)].numpy())
    return {
        "clip": place,
        "frames": frames,
        "draws": draws,
        "motion": pack(motions, skeleton, most_bytes=MOST_BYTES // augmentation.clips),
    }


def _drawn(
    clips: PackedClips, sample: torch.Tensor, step: int, strong: tuple[int, ...], augmentation: Augmentation
) -> ViewParams:
    """The random choices of a step for `VIEWS`, of which ``strong`` get the strong augmentation."""
    return draw_params(
        augmentation.config,
        clips.num_frames,
        clips.num_joints,
        views=tuple(VIEWS.values()),
        strong=strong,
        seed=augmentation.seed,
        step=step,
        sample=sample,
        size=augmentation.frames,
    )
