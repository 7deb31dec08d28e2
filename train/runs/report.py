"""What a finished run leaves: report.json with its accuracies, and curves.png."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from fastmc.data.placed.resident import PlacedStore
from fastmc.data.store import PackedStore
from fastmc.doctor import package_versions
from fastmc.files import whole_file
from fastmc.methods.a2mc import A2MC
from train.command.config import Config
from train.engine.record import log, read_metrics
from train.runs.evaluations import Frozen
from train.runs.folder import ACCURACIES


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine, as a run records them."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": str(device),
        "gpu": gpu,
        "cpu_threads": torch.get_num_threads(),
    }


def evaluate_encoder(
    model: A2MC,
    store: PackedStore,
    placed: PlacedStore,
    config: Config,
    *,
    classifiers: tuple[str, ...] = ("knn", "linear"),
    run_folder: Path | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Accuracies in percent of the query encoder, frozen, under the config's protocol: knn_top1, linear_top1 and
    linear_top5. ``run_folder`` keeps the linear classifier as classifier.pt, and the features for further evaluations
    unless the config says otherwise. StoreError if the data were changed since they were opened."""
    store.check_unchanged()
    cache_in = run_folder if config.log.keep_features else None
    frozen = Frozen.of(model, store, placed, config, cache_in=cache_in, progress=progress)
    features = frozen.features(config.evaluation.train_crops if "linear" in classifiers else 0)
    result: dict[str, float] = {}
    if "knn" in classifiers:
        result["knn_top1"] = frozen.knn(features).top1
    if "linear" in classifiers:
        found, classifier = frozen.linear(features)
        result |= {"linear_top1": found.top(1), "linear_top5": found.top(5)}
        if run_folder is not None:
            frozen.save_classifier(run_folder, classifier, found.top1)
    return result


def report_table(report: dict[str, Any]) -> str:
    """The accuracies of report.json, beside those of the untrained encoder."""
    lines = [f"{'':14}{'pre-trained':>12}{'untrained':>12}"]
    for key, name in ACCURACIES.items():
        if key in report:
            lines.append(f"{name:14}{report[key]:11.1f}%{report['random_init'][key]:11.1f}%")
    return "\n".join(lines)


def plot_curves(metrics_csv: Path, out: Path, feature_dim: int, title: str = "") -> None:
    """Draw the training curves of metrics.csv: loss and parts, contrast, collapse measure, kNN probe."""
    from matplotlib.figure import Figure  # here, so that nothing else waits for matplotlib

    rows = read_metrics(metrics_csv)
    if not rows:
        log.warning("no epoch is complete yet: %s is not drawn", out)
        return
    epoch = [row["epoch"] for row in rows]

    def column(name: str) -> list[float]:
        return [row[name] for row in rows]

    figure = Figure(figsize=(9, 6), layout="constrained")
    (loss, contrast), (spread, probe) = figure.subplots(2, 2, sharex=True)
    for name, label in (("loss", "L"), ("l1", "L1"), ("l2", "L2"), ("l3", "L3")):
        loss.plot(epoch, column(name), label=label, linewidth=2 if name == "loss" else 1)
    loss.set_ylabel("loss (nats)")
    contrast.plot(epoch, column("top1"), label="contrastive top-1 of f3")
    contrast.plot(epoch, column("positive_probability"), label="probability of the positive")
    contrast.set(ylabel="share", ylim=(0, 1))
    spread.plot(epoch, column("feature_std"), label="std of feature elements")
    spread.axhline(feature_dim**-0.5, color="grey", linestyle="--", label="1/sqrt(D), no collapse")
    spread.set(ylabel="std", xlabel="epoch", ylim=(0, None))
    probed = [row for row in rows if "knn_top1" in row]
    if probed:
        probe.plot([row["epoch"] for row in probed], [row["knn_top1"] for row in probed], marker="o", label="kNN probe")
    probe.set(ylabel="top-1 accuracy (%)", xlabel="epoch")
    for axes in (loss, contrast, spread, probe):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    with whole_file(out) as unfinished:
        figure.savefig(unfinished, dpi=130)
