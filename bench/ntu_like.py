"""Clips with the lengths and bodies of NTU RGB+D 60, for benchmarks: nobody here has the data set itself.

Modelled on what is published of it: "more than 56 thousand" clips of "4 million frames" (Shahroudy et al., CVPR 2016),
a mean above 70; 56,880 files of which 302 lack their skeletons; clips of about 30 to 300 frames; and 11 of the 60
classes are done by two people. Lengths are log-normal here, with mean 82. What a clip shows is smooth random motion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmc.data.store import PackedStore, StoreWriter
from fastmc.skeleton import NTU25

CLIPS = 56_880 - 302
SHORTEST, LONGEST = 30, 300
MEDIAN, SPREAD = 75.0, 0.42  # frames, and the standard deviation of their logarithm
WITH_TWO = 11 / 60
SLOWEST = 40.0  # frames per radian of the motion


def lengths(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and bodies of so many clips, (clips,) int64 each."""
    frames = np.rint(rng.lognormal(np.log(MEDIAN), SPREAD, clips)).astype(np.int64)
    return frames.clip(SHORTEST, LONGEST), 1 + (rng.random(clips) < WITH_TWO)


def motion(rng: np.random.Generator, frames: int, bodies: int) -> np.ndarray:
    """A clip (frames, bodies, 25, 3) float32 in metres. A second body is missing, all zero, in up to a quarter of the
    frames, at the end."""
    pose, swing, phase = rng.normal(scale=0.5, size=(3, bodies, 25, 3))
    speed = rng.uniform(1, 8, size=(bodies, 25, 3)) / SLOWEST
    clip = pose + swing * np.sin(speed * np.arange(frames)[:, None, None, None] + 2 * np.pi * phase)
    clip[frames - int(0.25 * rng.random() * frames) :, 1:] = 0
    return clip.astype(np.float32)


def write_ntu_like(path: Path, clips: int, seed: int = 0, *, test: int = 0) -> PackedStore:
    """A store of such clips; all train but the last ``test``."""
    rng = np.random.default_rng(seed)
    num_frames, num_bodies = lengths(rng, clips)
    num_bodies[0] = 2  # the padded form has two bodies in any case
    with StoreWriter(
        path,
        name="ntu-like",
        skeleton=NTU25,
        fps=30.0,
        class_names=["motion"],
        protocols={"all": {"field": "subject", "train": [1]}},
    ) as writer:
        for n in range(clips):
            clip = motion(rng, int(num_frames[n]), int(num_bodies[n]))
            writer.add(clip, name=f"clip{n:06d}", label=0, subject=1 + (n >= clips - test))
    return PackedStore.open(path)


def padded(store: PackedStore, longest: int = LONGEST) -> np.ndarray:
    """The store in the form that this field's loaders read: (N, 3, longest, V, 2) float32, zero where nothing is."""
    clips = np.zeros((len(store), 3, longest, store.skeleton.num_joints, 2), np.float32)
    for n in range(len(store)):
        clip = store.clip(n)
        clips[n, :, : len(clip), :, : clip.shape[1]] = clip.transpose(3, 0, 2, 1)
    return clips
