"""Figure 3 of the paper: what attack-augmentation does to a clip and to the distribution of its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastmc.data.placed.resident import PlacedStore
from fastmc.methods.a2mc import A2MC, X1, X2
from fastmc.methods.base import Batch, Method, Setup
from fastmc.views.clips import PackedClips
from fastmc.views.draw import ViewParams
from fastmc.views.layout import to_stream
from fastmc.views.words import ViewOfClip

STATES = ("before", "after attack", "weak att-aug", "strong att-aug")
TOP = 5
DRAWS_TRIED = 64


@dataclass(frozen=True)
class AttackStates:
    """A clip before and after the attack, and its two augmentations after it, in the order of `STATES`.

    Attributes:
        joints: (4, T, M, V, 3) float32, metres: joint coordinates, whatever the run's stream is.
        distribution: (4, C) float32, softmax(FC(encoder(x))) of eq. 5, in the run's stream.
        rho_norm, limit: metres, the L2 norm of the perturbation rho of eq. 6, and eta.
        notes: of each state, what was done to it.
        draw: number of the random choices.
    """

    joints: np.ndarray
    distribution: np.ndarray
    rho_norm: float
    limit: float
    notes: tuple[str, ...]
    draw: int


def attacking(model: Method) -> A2MC:
    """The model, if its method has an attack that can be drawn; else ValueError."""
    if not isinstance(model, A2MC):
        raise ValueError(f"{type(model).__name__} has no attack to draw; name other pictures with --only")
    return model


def attack_states(model: A2MC, clips: PackedClips, sample: Tensor, *, draw: int | None = None) -> AttackStates:
    """The four states of one clip as a pre-training step makes them (paper sections 3.1 and 3.2).

    Args:
        clips: one clip. sample: (1,) int64, its id, which keys the random choices together with ``draw``.
        draw: the step whose random choices are made; by default `visible_draw`.

    Raises:
        ValueError: ``clips`` is not one clip.
    """
    if len(clips) != 1:
        raise ValueError(f"clips must be one clip, got {len(clips)}")
    draw = visible_draw(model, clips, sample) if draw is None else draw
    setup = replace(model.setup, stream="joint")
    batch = Batch(setup, A2MC.views, clips, sample, draw)
    x, attacked, params = batch.whole(), model.attacked(batch), batch.params(X1, X2)
    states = torch.cat([x, attacked, *batch.make(X1, X2, of=attacked)])
    rho = torch.linalg.vector_norm((attacked - x).double())
    frames = int(clips.num_frames[0])
    whole = f"whole clip, {frames} frame{'s' * (frames > 1)} as {setup.frames}"
    limit = model.config.attack_norm
    return AttackStates(
        joints=_joints(states, setup),
        distribution=distribution(model, states).cpu().numpy(),
        rho_norm=float(rho),
        limit=limit,
        notes=(whole, f"‖ρ‖ = {float(rho):.3g} m (η = {limit:g} m)")
        + tuple(describe_view(params, row, setup.frames) for row in range(2)),
        draw=draw,
    )


@torch.no_grad()
def distribution(model: A2MC, x: Tensor) -> Tensor:
    """softmax(FC(encoder_q(x))) of eq. 5, (B, C), for joint coordinates (B, T, V * M * 3); the encoder's input norm
    uses its running statistics, as the attack does."""
    with model.query.fixed():
        h = model.query.represent(to_stream(x, model.setup.stream, model.setup.skeleton))
    return model.attack_head(h.to(model.attack_head.weight.dtype)).softmax(dim=-1)


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats of distributions (..., C): (...,); ln C at most."""
    p = p.astype(np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)


def top_classes(p: np.ndarray, k: int = TOP) -> np.ndarray:
    """Indices of the k largest of (C,), the largest first; of equal ones the first comes first."""
    return np.argsort(-p, kind="stable")[:k]


@dataclass(frozen=True)
class AttackStrengths:
    """Clips under the attack's perturbation at several lengths.

    Attributes:
        x: (N, T, M, V, 3) float32, metres: the whole clips, as T frames. rho: the same of the perturbation of eq. 6 at
            length 1 m; zero where the attack leaves a clip as it is.
        norms: (S,) metres, ``own`` (N,) those that the attack itself takes.
        entropy: (N, S) nats, of softmax(FC(encoder(x + rho))) at each of the norms.
    """

    x: np.ndarray
    rho: np.ndarray
    norms: np.ndarray
    own: np.ndarray
    entropy: np.ndarray


def attack_strengths(model: A2MC, store: PlacedStore, ids: Tensor, shares: Sequence[float]) -> AttackStrengths:
    """Clips (N,) int64 attacked as training attacks them, and their perturbations scaled to ``shares`` of eta.

    The direction is that of the one step of the attack: at another length it is not what another eta would give, for
    eta does nothing but scale it, but what that step would give if it went so far.
    """
    batch = Batch(replace(model.setup, stream="joint"), A2MC.views, store.select(ids), ids, 0)
    x = batch.whole()
    rho = model.attacked(batch) - x
    own = torch.linalg.vector_norm(rho.flatten(1).double(), dim=1).to(rho.dtype)[:, None, None]
    unit = torch.where(own > 0, rho / own, 0)
    norms = [share * model.config.attack_norm for share in shares]
    found = [entropy(distribution(model, x + norm * unit).cpu().numpy()) for norm in norms]
    return AttackStrengths(
        x=_joints(x, model.setup),
        rho=_joints(unit, model.setup),
        norms=np.array(norms),
        own=own.flatten().cpu().numpy(),
        entropy=np.stack(found, axis=1),
    )


def _joints(x: Tensor, setup: Setup) -> np.ndarray:
    """(N, T, V * M * 3) as (N, T, M, V, 3)."""
    return x.unflatten(2, (setup.shape.joints, setup.shape.bodies, 3)).transpose(2, 3).cpu().numpy()


def entropy_change(
    model: A2MC,
    store: PlacedStore,
    ids: Tensor,
    *,
    batch_size: int = 64,
    advance: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Entropies (N,) in nats of the distributions of these clips (N,) int64 before and after the attack.

    ``advance`` is told how many clips each batch had.
    """
    before, after = [], []
    for batch in ids.split(batch_size):
        clips = Batch(model.setup, A2MC.views, store.select(batch), batch, 0)
        before.append(entropy(distribution(model, clips.whole()).cpu().numpy()))
        after.append(entropy(distribution(model, model.attacked(clips)).cpu().numpy()))
        if advance is not None:
            advance(len(batch))
    return np.concatenate(before), np.concatenate(after)


def visible_draw(model: A2MC, clips: PackedClips, sample: Tensor) -> int:
    """The first draw from 0 on whose strong view masks no axis of the clip; 0 if there is none among 64.

    A masked axis flattens a skeleton, which hides in a picture what the other augmentations do.
    """
    for draw in range(DRAWS_TRIED):
        params = Batch(model.setup, A2MC.views, clips, sample, draw).params(X1, X2)
        if bool((params.column("axis_scale") == 1).all()):
            return draw
    return 0


def describe_view(params: ViewParams, row: int, frames: int) -> str:
    """What a view does to the first clip, in words: its crop of ``frames`` frames, and its transforms."""
    strong = params.views[row] == X2.number
    crop, *others = ViewOfClip(params, row, frames, frames, strong).changes()
    return f"{crop.short}; " + ", ".join(change.short for change in others)
