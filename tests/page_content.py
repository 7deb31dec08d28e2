"""The content of pages, for tests: people of sticks that walk, wave, clap and bow, and two runs that have seen them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmc.figures.skeletons import front_of, side_of
from fastmc.page.motion import pack
from fastmc.skeleton import NTU25, Skeleton

CLASSES = ("walk", "wave one hand", "clap hands", "bow", "kick", "walk towards each other")
FPS = 30
DIFFERENT = 240

# Metres: across (left is +), up, forward.
REST = {
    "spine base": (0, 0.95, 0), "spine mid": (0, 1.2, 0), "neck": (0, 1.5, 0), "head": (0, 1.66, 0.02),
    "spine shoulder": (0, 1.42, 0),
    "left shoulder": (0.19, 1.4, 0), "left elbow": (0.25, 1.13, -0.02), "left wrist": (0.27, 0.9, 0.04),
    "left hand": (0.27, 0.82, 0.06), "left hand tip": (0.27, 0.74, 0.08), "left thumb": (0.24, 0.8, 0.1),
    "left hip": (0.1, 0.93, 0), "left knee": (0.11, 0.5, 0.02), "left ankle": (0.11, 0.09, -0.02),
    "left foot": (0.13, 0.03, 0.12),
}  # fmt: skip


def rest_pose() -> np.ndarray:
    """(25, 3): a person who stands, of `REST` and its mirror image."""
    pose = np.zeros((NTU25.num_joints, 3))
    for name, place in REST.items():
        pose[NTU25.index(name)] = place
        if name.startswith("left "):
            pose[NTU25.index(name.replace("left", "right"))] = np.multiply(place, (-1, 1, 1))
    return pose


def turned(pose: np.ndarray, joints: list[str], about: str, angle: np.ndarray, plane: tuple[int, int]) -> np.ndarray:
    """Poses (T, 25, 3) whose ``joints`` are turned about another by angles (T,) in the plane of two axes."""
    at = [NTU25.index(joint) for joint in joints]
    centre = pose[:, [NTU25.index(about)]]
    arm = pose[:, at] - centre
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = plane
    moved = arm.copy()
    moved[..., first] = cos * arm[..., first] - sin * arm[..., second]
    moved[..., second] = sin * arm[..., first] + cos * arm[..., second]
    pose = pose.copy()
    pose[:, at] = centre + moved
    return pose


def limb(side: str, first: str) -> list[str]:
    """What hangs on a joint of one side, outwards."""
    arm, leg = ["elbow", "wrist", "hand", "hand tip", "thumb"], ["knee", "ankle", "foot"]
    chain = arm if first == "shoulder" or first in arm else leg
    return [f"{side} {joint}" for joint in chain[chain.index(first) + 1 if first in chain else 0 :]]


def person(action: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(T, 25, 3): somebody does it, in a way of their own."""
    time = np.arange(frames) / FPS
    pose = np.broadcast_to(rest_pose(), (frames, 25, 3))
    beat = np.sin(2 * np.pi * (rng.uniform(0.8, 1.2) * time + rng.uniform()))
    size = rng.uniform(0.8, 1.2)
    if action.startswith("walk"):
        for side, sign in (("left", 1), ("right", -1)):
            pose = turned(pose, limb(side, "shoulder"), f"{side} shoulder", 0.5 * size * sign * beat, (2, 1))
            pose = turned(pose, limb(side, "hip"), f"{side} hip", -0.5 * size * sign * beat, (2, 1))
            knee = 0.4 * np.maximum(sign * np.roll(beat, 6), 0)
            pose = turned(pose, limb(side, "knee"), f"{side} knee", knee, (2, 1))
        pose = pose + np.stack([0 * time, 0.03 * np.abs(beat), 0.7 * size * (time - time.mean())], axis=1)[:, None]
    elif action.startswith("wave"):
        raise_ = np.minimum(3 * time, 1)
        pose = turned(pose, limb("right", "shoulder"), "right shoulder", -2.2 * raise_, (0, 1))
        pose = turned(pose, limb("right", "elbow"), "right elbow", 0.7 * size * beat * raise_ - 0.4, (0, 1))
    elif action.startswith("clap"):
        for side, sign in (("left", 1), ("right", -1)):
            pose = turned(pose, limb(side, "shoulder"), f"{side} shoulder", np.full(frames, 1.1), (2, 1))
            pose = turned(pose, limb(side, "elbow"), f"{side} elbow", sign * (0.4 + 0.3 * beat), (0, 2))
    elif action == "bow":
        low = np.sin(np.pi * np.clip(time / time[-1] * 1.2 - 0.1, 0, 1)) ** 2
        upper = [
            name for name in NTU25.joint_names if not any(word in name for word in ("hip", "knee", "ankle", "foot"))
        ]
        pose = turned(pose, [n for n in upper if n != "spine base"], "spine base", -1.1 * size * low, (2, 1))
    else:
        pose = turned(pose, limb("right", "hip"), "right hip", 0.9 * size * np.maximum(beat, 0), (2, 1))
    return pose + rng.normal(scale=0.004, size=(1, 25, 3)) + rng.normal(scale=0.003, size=pose.shape)


def clip_of(action: str, rng: np.random.Generator) -> np.ndarray:
    """(T, M, 25, 3) float32: one person, or two of whom the second comes a little later."""
    frames = int(rng.integers(45, 110))
    first = person(action, frames, rng)
    if "each other" not in action:
        return first[:, None].astype(np.float32)
    second = person(action, frames, rng) * (-1, 1, -1) + (0.5, 0, 0.6)
    second[: frames // 6] = 0
    return np.stack([first - (0.3, 0, 0.6), second], axis=1).astype(np.float32)


def skeleton_content(skeleton: Skeleton, clip: np.ndarray) -> dict[str, Any]:
    front = front_of(clip, skeleton)
    return {
        "name": skeleton.name,
        "joints": list(skeleton.joint_names),
        "bones": [list(bone) for bone in skeleton.bones],
        "sides": [side_of(name) for name in skeleton.joint_names],
        "front": {"across": front.across, "up": front.up, "signs": list(front.signs)},
    }


def store_of(count: int, rng: np.random.Generator, classes: tuple[str, ...] = CLASSES) -> list[np.ndarray]:
    """Clips whose class is their number modulo the classes, each of an action of `CLASSES`.

    Past `DIFFERENT` they come again, moved by noise of millimetres: so far apart that it deflates no better.
    """
    clips: list[np.ndarray] = []
    for number in range(count):
        label = number % len(classes)
        earlier = number - DIFFERENT // len(classes) * len(classes)
        if number >= DIFFERENT and earlier >= 0:
            noise = rng.normal(scale=0.003, size=clips[earlier].shape)
            clips.append(np.where(clips[earlier] == 0, 0, clips[earlier] + noise).astype(np.float32))
        else:
            clips.append(clip_of(CLASSES[label % len(CLASSES)], rng))
    return clips


def clips_content(clips: list[np.ndarray], tests: int, classes: tuple[str, ...]) -> dict[str, Any]:
    count = len(clips)
    return {
        "name": [f"{'test' if n < tests else 'train'}/S{1 + n % 5:03d}C{1 + n % 3:03d}N{n:04d}" for n in range(count)],
        "class": [n % len(classes) for n in range(count)],
        "seconds": [len(clip) / FPS for clip in clips],
        "test": [int(n < tests) for n in range(count)],
        "subject": [1 + n % 5 for n in range(count)],
        "camera": [1 + n % 3 for n in range(count)],
    }


def map_content(labels: np.ndarray, tests: int, noise: float, rng: np.random.Generator) -> dict[str, Any]:
    """A map on which each class is a cloud; nearest neighbours are mostly of the clip's class."""
    turn = 2 * np.pi * labels[:tests] / (labels.max() + 1)
    places = 20 * np.stack([np.cos(turn), 0.8 * np.sin(turn)], axis=1) + rng.normal(
        scale=3 + 12 * noise, size=(tests, 2)
    )
    training = np.arange(tests, len(labels))
    near = []
    for label in labels[:tests]:
        same, others = training[labels[training] == label], training[labels[training] != label]
        wrong = int(rng.random() < 2 * noise)
        near.append([*rng.choice(same, 5 - wrong, replace=len(same) < 5), *rng.choice(others, wrong)])
    return {
        "clip": list(range(tests)),
        "x": places[:, 0].round(3).tolist(),
        "y": places[:, 1].round(3).tolist(),
        "words": "t-SNE, perplexity 30; 1-NN 97.1 %, silhouette 0.41",
        "neighbours": [[int(i) for i in row] for row in near],
        "cosines": [np.sort(rng.uniform(0.8, 0.99, 5))[::-1].round(4).tolist() for _ in near],
    }


def panels_content(epochs: int, ease: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    epoch = list(range(1, epochs + 1))
    share = 1 - np.exp(-ease * np.arange(epochs) / epochs * 4)

    def line(name: str, about: str, values: np.ndarray) -> dict[str, Any]:
        return {"name": name, "help": about, "x": epoch, "y": (values + rng.normal(scale=0.01, size=epochs)).tolist()}

    return [
        {
            "title": "loss (nats)",
            "zero": False,
            "lines": [
                line("loss", "What training makes small: the sum of its parts.", 9 - 3 * share),
                line("L_con", "Of the contrast of a clip's two views with the bank.", 6 - 2 * share),
                line("L_mix", "Of mixed clips.", 3 - share),
            ],
            "mark": None,
        },
        {
            "title": "shares",
            "zero": True,
            "lines": [line("p+", "The share of the softmax that the other view of the clip has.", 0.9 * share)],
            "mark": None,
        },
        {
            "title": "std of the features",
            "zero": True,
            "lines": [line("std", "Whether features still differ from clip to clip; 0 is collapse.", 0.088 * share)],
            "mark": {"y": 0.0884, "text": "1/√D"},
        },
        {
            "title": "probe (%)",
            "zero": False,
            "lines": [
                {
                    "name": "kNN top-1",
                    "help": "Nearest neighbour on test clips.",
                    "x": epoch[::5],
                    "y": (40 + 55 * share[::5]).tolist(),
                }
            ],
            "mark": None,
        },
    ]  # fmt: skip


def attack_content(
    clips: list[np.ndarray], which: list[int], skeleton: Skeleton, rng: np.random.Generator
) -> dict[str, Any]:
    motions = []
    for i in which:
        rho = rng.normal(size=clips[i].shape) * np.sin(np.linspace(0, 9, len(clips[i])))[:, None, None, None]
        rho[clips[i] == 0] = 0
        motions += [clips[i], rho / np.linalg.norm(rho)]
    steps = np.linspace(0, 1, 9)
    return {
        "clips": [
            {"clip": i, "steps": steps.tolist(), "entropy": (2 + 1.5 * np.sqrt(steps)).tolist(), "own": 0.5 / (n + 1)}
            for n, i in enumerate(which)
        ],
        "classes": 128,
        "says": "The entropy of the attacked distribution grows from 2.0 to 3.5 nats on average over 64 clips.",
        "motion": pack(
            motions, skeleton, frames=64, quantum=[0.004, 1e-5] * len(which), centred=[True, False] * len(which)
        ),
    }


def run_content(
    label: str, labels: np.ndarray, tests: int, clips: list[np.ndarray], noise: float, seed: int, attacked: list[int]
) -> dict[str, Any]:
    """A run that takes a share ``noise`` of the test clips for another class, mostly the next one."""
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    wrong = rng.random(tests) < noise
    predicted = np.where(wrong, (labels[:tests] + rng.choice([1, 1, 1, 2, 3], tests)) % classes, labels[:tests])
    accuracy = 100 * float(np.mean(predicted == labels[:tests]))
    return {
        "label": label,
        "folder": f"runs/{label.replace(' ', '-')}",
        "facts": [
            ["method", "A²MC"], ["encoder", "GRU 3×512"], ["data", "sticks, xsub"], ["epochs", "60"],
            ["seed", str(seed)], ["trained", "2026-11-29, in 4 min 12 s on 2 cores"],
        ],
        "settings": [["settings.ema", f"0.99{seed}"], ["settings.bank_size", "1024"], ["optimizer.lr", "0.02"]],
        "command": f"python -m train.run --dataset sticks --preset tiny --seed {seed}",
        "trained": [accuracy - 1.0, accuracy, 99.5],
        "untrained": [61.2, 70.4, 93.0],
        "raw": [72.1, 75.3, 94.2],
        "published": None,
        "published_source": None,
        "panels": panels_content(60, 2 - 3 * noise, rng),
        "bank_full": 9,
        "predictions": {
            "by": "linear classifier",
            "true": labels[:tests].tolist(),
            "predicted": predicted.tolist(),
            "clip": [n if n % 10 else -1 for n in range(tests)],
        },
        "map": map_content(labels, tests, noise, rng),
        "attack": attack_content(clips, attacked, NTU25, rng) if attacked else None,
        "time": {
            "says": "Median of 20 steps of 128 clips, two cores.",
            "unit": "ms a step",
            "parts": [
                {"name": "views", "cpu": 11.2, "gpu": None, "within": None},
                {"name": "attack", "cpu": 30.5, "gpu": None, "within": None},
                {"name": "encoder", "cpu": 24.0, "gpu": None, "within": "attack"},
                {"name": "contrast", "cpu": 19.7, "gpu": None, "within": None},
                {"name": "optimiser", "cpu": 3.1, "gpu": None, "within": None},
            ],
        },
    }  # fmt: skip


def report_content(
    runs: int = 1, tests: int = 90, training: int = 60, classes: tuple[str, ...] = CLASSES, *, play: bool = True
) -> dict[str, Any]:
    """Content of kind report with all of its sections; of three runs the last two differ in their seed alone. Without
    ``play`` it has no motion yet."""
    rng = np.random.default_rng(0)
    clips = store_of(tests + training, rng, classes)
    columns = clips_content(clips, tests, classes)
    labels = np.array(columns["class"])
    names = ["b1", "a2mc seed 0", "a2mc seed 1"][-runs if runs < 3 else 0 :] if runs > 1 else ["a2mc"]
    made = [
        run_content(name, labels, tests, clips, 0.25 if name == "b1" else 0.08 + 0.02 * n, n, [0, 1] if not n else [])
        for n, name in enumerate(names)
    ]
    if runs == 1:
        made[0] |= {"published": [None, 88.0, None], "published_source": "table 2 of the paper"}
    seeds = [{"label": "b1", "runs": [0]}, {"label": "a2mc", "runs": [1, 2]}]
    return {
        "kind": "report",
        "title": "A²MC on sticks" if runs == 1 else f"{runs} runs on sticks",
        "made": "2026-11-29 08:00",
        "by": "fastmc 0.1.0, commit abc1234, python -m train.report --run runs/a2mc --out report.html",
        "notes": [f"{tests} of 400 test clips are shown, drawn by chance (seed 0)."],
        "fields": ["subject", "camera"],
        "skeleton": skeleton_content(NTU25, clips[0]),
        "classes": list(classes),
        "clips": columns,
        "motion": pack(clips, NTU25) if play else None,
        "runs": made,
        "groups": seeds if runs == 3 else [{"label": name, "runs": [n]} for n, name in enumerate(names)],
        "differences": [{"setting": "settings.ema", "values": [run["settings"][0][1] for run in made]}][: runs - 1],
        "accuracies": {
            "rows": ["kNN top-1", "linear top-1", "linear top-5"],
        },
    }  # fmt: skip
