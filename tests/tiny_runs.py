"""Finished runs of a few steps, made once for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from once import made_once

from train import run

ETA = 0.75  # metres
TINY = (
    *("--dataset", "small", "--preset", "tiny", "--frames", "4", "--encoder", "1x8", "--batch-size", "8"),
    *("--bank-size", "16", "--epochs", "2", "--milestones", "2", "--warmup-epochs", "1", "--probe-every", "1"),
    *("--linear-epochs", "1", "--train-crops", "1", "--device", "cpu", "--attack-norm", str(ETA)),
)
OF_EACH = {"a2mc": (), "b1": ("--method", "b1"), "a2mc_seed1": ("--seed", "1")}


def tiny_runs(factory: pytest.TempPathFactory, data_root: Path) -> dict[str, Path]:
    """Folders of runs on the store ``small``: of two methods, and one of another seed."""

    def train(root: Path) -> None:
        for name, flags in OF_EACH.items():
            assert run.main([*TINY, *flags, "--data-root", str(data_root), "--out", str(root / f"run_{name}")]) == 0

    root = made_once(factory, "tiny-runs", train)
    return {name: root / f"run_{name}" for name in OF_EACH}
