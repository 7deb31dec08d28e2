"""What a finished run leaves: report.json with its accuracies, and curves.png."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import torch

import fastmc
from fastmc import package_folder
from fastmc.config import Config
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.store import PackedStore
from fastmc.doctor import package_versions
from fastmc.figures.history import History
from fastmc.files import whole_file
from fastmc.methods.base import Method, Metric
from fastmc.ranks import ALONE, Alone
from train.engine.record import log, read_metrics
from train.runs.evaluations import Evaluated, Frozen
from train.runs.folder import ACCURACIES, NOT_EVALUATED


def environment(device: torch.device, ranks: int = 1) -> dict[str, Any]:
    """Versions and machine, as a run records them, and how many ranks share it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "commit": commit(),
        "device": str(device),
        "gpu": gpu,
        "began": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "cpu_threads": torch.get_num_threads(),
        "ranks": ranks,
    }


def commit() -> str | None:
    """Hash of the clone's commit, with ``-dirty`` where its files are not as committed; None where this is no clone."""
    root = package_folder("fastmc").parent
    if not (root / ".git").exists():  # it may be installed below somebody else's
        return None
    questions = ("git", "rev-parse", "HEAD"), ("git", "status", "--porcelain", "--untracked-files=no")
    try:
        head, changes = (subprocess.check_output(each, cwd=root, text=True, stderr=DEVNULL) for each in questions)
    except (OSError, subprocess.CalledProcessError):  # there is no git, or it does not trust the folder
        return None
    return head.strip() + ("-dirty" if changes else "")


def check_page(out: Path) -> None:
    """ValueError where ``--out`` is no name of a page."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / 'page.html'}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out} is no name of a page; browsers want {out}.html")


def made_by(command: str) -> dict[str, str]:
    """When a page is made, and of what fastmc by which command: entries of its content."""
    which = f"fastmc {fastmc.__version__}, commit {(commit() or 'unknown')[:12]}"
    return {"made": datetime.now().strftime("%Y-%m-%d %H:%M"), "by": f"{which}, {command}"}


def evaluate_encoder(
    model: Method,
    store: PackedStore,
    placed: PlacedStore,
    config: Config,
    *,
    classifiers: tuple[str, ...] = ("knn", "linear"),
    run_folder: Path | None = None,
    progress: bool = False,
    ranks: Alone = ALONE,
) -> Evaluated:
    """The encoder, frozen, evaluated under the config's protocol. ``run_folder`` keeps the linear classifier as
    classifier.pt, and the features for further evaluations unless the config says otherwise. ``ranks`` share the clips
    out, and each gets all that was found. StoreError if the data were changed since they were opened."""
    store.check_unchanged()
    cache_in = run_folder if config.log.keep_features else None
    frozen = Frozen.of(model, store, placed, config, cache_in=cache_in, progress=progress, ranks=ranks)
    features = frozen.features(config.evaluation.train_crops if "linear" in classifiers else 0)
    found: dict[str, float] = {}
    predictions = None
    if "knn" in classifiers:
        found["knn_top1"] = frozen.knn(features).top1
    if "linear" in classifiers:
        predictions, classifier = frozen.linear(features)
        found |= {"linear_top1": predictions.top(1), "linear_top5": predictions.top(5)}
        if run_folder is not None:
            frozen.save_classifier(run_folder, classifier, predictions.top1)
    return Evaluated(found, features.train, features.test, predictions)


def report_table(report: dict[str, Any]) -> str:
    """The accuracies of report.json, beside those of the untrained encoder; or why there are none."""
    if NOT_EVALUATED in report:
        return f"not evaluated: {report[NOT_EVALUATED]}"
    lines = [f"{'':14}{'pre-trained':>12}{'untrained':>12}"]
    for key, name in ACCURACIES.items():
        if key in report:
            lines.append(f"{name:14}{report[key]:11.1f}%{report['random_init'][key]:11.1f}%")
    return "\n".join(lines)


def plot_curves(metrics_csv: Path, out: Path, metrics: Sequence[Metric], feature_dim: int, title: str = "") -> None:
    """Draw the training curves of metrics.csv; ``metrics`` are those of the run's method."""
    from fastmc.figures.curves import draw_curves  # here, so that nothing else waits for matplotlib

    rows = read_metrics(metrics_csv)
    if not rows:
        log.warning("no epoch is complete yet: %s is not drawn", out)
        return
    figure = draw_curves({title: History(rows, metrics, feature_dim)}, title=title)
    with whole_file(out) as unfinished:
        figure.savefig(unfinished, dpi=130, format="png")
