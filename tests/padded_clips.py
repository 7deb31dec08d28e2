"""Padded arrays of clips, as other codes write them."""

from __future__ import annotations

import numpy as np

FRAMES = 8


def padded(clips=4, joints=25, bodies=2, seed=0):
    """(N, 3, T, V, M): clip n has n + 1 of 8 frames, and the second body in every other one."""
    x = np.random.default_rng(seed).standard_normal((clips, 3, FRAMES, joints, bodies)).astype(np.float32)
    for n in range(clips):
        x[n, :, n + 1 :] = 0
        x[n, ..., 1 + n % 2 :] = 0
    return x


def unpadded(x, n):
    """Clip n of `padded`, by a plain loop: (T, M, V, 3)."""
    frames, bodies = n + 1, min(x.shape[4], 1 + n % 2)
    clip = np.zeros((frames, bodies, x.shape[3], 3), np.float32)
    for t in range(frames):
        for m in range(bodies):
            for v in range(x.shape[3]):
                clip[t, m, v] = x[n, :, t, v, m]
    return clip
