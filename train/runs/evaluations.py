"""The evaluation protocols of paper section 4.2, from a trained run to predictions of its test clips."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmc.config import Config, to_plain
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.report import label_notes
from fastmc.data.store import PackedStore
from fastmc.evaluation import (
    EvalConfig,
    FeatureCache,
    FeatureSource,
    FinetuneConfig,
    FrozenFeatures,
    Predictions,
    finetune,
    finetuned_scores,
    fuse,
    knn_predict,
    labelled_sample,
    linear_scores,
    train_linear,
    weights_digest,
)
from fastmc.evaluation.classifier import CLASSIFIER
from fastmc.evaluation.features import compute_features
from fastmc.methods.base import Method
from fastmc.ranks import ALONE, Alone
from fastmc.views.clips import STREAMS
from train.command.evaluation_settings import Semi
from train.engine.record import log
from train.runs.folder import name_of
from train.runs.load import Run
from train.runs.results import Outcome, save_classifier, saved_classifier, variant

DRAWS_APART = 1_000_003


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder and the clips that classifiers of its features learn from and are tested on.

    Attributes:
        cache: where its features are kept; None to compute them each time.
    """

    model: Method
    store: PackedStore
    config: Config
    source: FeatureSource
    cache: FeatureCache | None
    progress: bool = False

    @classmethod
    def of(
        cls,
        model: Method,
        store: PackedStore,
        placed: PlacedStore,
        config: Config,
        *,
        cache_in: Path | None = None,
        role: str = "trained",
        progress: bool = False,
        ranks: Alone = ALONE,
    ) -> Frozen:
        """``cache_in``: run folder in which features are kept. ``ranks`` share the clips out."""
        run = Run(cache_in or Path(), config, model, placed, store)
        train, test = run.split()
        evaluation, frames, seed = config.evaluation, config.frames, config.seed
        source = FeatureSource(
            model.representation, placed, train, test, config.stream, evaluation, frames, seed, ranks
        )
        cache = None
        if cache_in is not None:
            folder, checksum = cache_in / "features", store.content_checksum
            cache = FeatureCache(folder, source, store_checksum=checksum, protocol=run.protocol, role=role)
        return cls(model, store, config, source, cache, progress)

    def features(self, crops: int) -> FrozenFeatures:
        if self.cache is not None and self.source.ranks.size == 1:
            return self.cache.features(crops, progress=self.progress)
        features = compute_features(self.source, crops, progress=self.progress)
        if self.cache is not None:
            self.cache.keep(features)
        return features

    def test_features(self) -> Tensor:
        return self.source.test() if self.cache is None else self.cache.test(progress=self.progress)

    def knn(self, features: FrozenFeatures) -> Predictions:
        """kNN evaluation."""
        found = knn_predict(features.train, features.train_labels, features.test, self.config.evaluation.knn_k)
        return Predictions.of_classes(found, features.test_labels, self.store.class_names)

    def linear(self, features: FrozenFeatures) -> tuple[Predictions, nn.Linear]:
        """Linear evaluation, and the classifier."""
        settings, seed = self.config.evaluation, self.config.seed
        classifier = train_linear(features, self.store.num_classes, settings, seed=seed, progress=self.progress)
        scores = linear_scores(classifier, features.test)
        return Predictions.of_scores(scores, features.test_labels, self.store.class_names), classifier

    def save_classifier(self, folder: Path, classifier: nn.Linear, top1: float, name: str = CLASSIFIER) -> None:
        """Write file ``name`` of the run folder."""
        assert self.config.protocol is not None
        save_classifier(
            folder,
            classifier,
            class_names=self.store.class_names,
            dataset=self.config.dataset,
            protocol=self.config.protocol,
            data=self.store.split_digest(self.config.protocol),
            top1=top1,
            weights=weights_digest(self.model.representation),
            settings=self.config.evaluation,
            seed=self.config.seed,
            name=name,
        )


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a frozen encoder found, for whoever needs it next.

    Attributes:
        accuracies: percent: knn_top1, linear_top1 and linear_top5, as far as they were asked for.
        train, test: (N, H), its features of the centre crops of the labelled clips.
        predictions: of the linear classifier; None where it was not asked for.
    """

    accuracies: dict[str, float]
    train: Tensor
    test: Tensor
    predictions: Predictions | None


def evaluated_again(run: Run, *, progress: bool = False) -> Evaluated:
    """What a finished run's own evaluation found, of the features and the classifier that it has kept: what is not
    there is computed anew."""
    keeps = run.config.log.keep_features
    where = run.folder if keeps else None
    frozen = Frozen.of(run.model, run.store, run.placed, run.config, cache_in=where, progress=progress)
    features = frozen.features(0)
    scores = _linear_scores(run, keeps, progress)
    return Evaluated({}, features.train, features.test, _predictions(run, scores))


def evaluate_knn(run: Run, *, cache: bool = True, progress: bool = False) -> Outcome:
    """Nearest neighbours of the frozen features, beside the same of the untrained encoder."""
    found, before = (frozen.knn(frozen.features(0)) for frozen in _both(run, cache, progress))
    return _outcome(run, "knn", found, run.config.evaluation, more={"random_init": {"top1": before.top1}})


def evaluate_linear(run: Run, *, cache: bool = True, progress: bool = False) -> Outcome:
    """A linear classifier of the frozen features, which is kept, beside the same of the untrained encoder."""
    trained, untrained = _both(run, cache, progress)
    crops = run.config.evaluation.train_crops
    found, classifier = trained.linear(trained.features(crops))
    before, _ = untrained.linear(untrained.features(crops))
    trained.save_classifier(run.folder, classifier, found.top1, name := classifier_name(run))
    log.info("the classifier is %s", run.folder / name)
    random_init = {"top1": before.top1, "top5": before.top5}
    return _outcome(run, "linear", found, run.config.evaluation, more={"random_init": random_init})


def _both(run: Run, cache: bool, progress: bool) -> tuple[Frozen, Frozen]:
    """The encoder, trained and untrained."""
    trained, untrained = (
        Frozen.of(
            model,
            run.store,
            run.placed,
            run.config,
            cache_in=run.folder if cache else None,
            role=role,
            progress=progress,
        )
        for model, role in ((run.model, f"trained{run.at}"), (run.untrained(), "untrained"))
    )
    return trained, untrained


def evaluate_finetuned(
    run: Run, settings: FinetuneConfig, *, kind: str = "finetune", progress: bool = False
) -> Outcome:
    """Encoder and classifier fine-tuned on all training clips: ``kind`` is finetune, or transfer for another set."""
    train, _ = run.split()
    found = _finetune(run, train, settings, run.config.seed, kind, progress)
    name = f"transfer-{name_of(run.config.dataset)}" if kind == "transfer" else kind
    return _outcome(run, kind, found, settings, name=name)


def evaluate_semi(run: Run, settings: FinetuneConfig, share: float, draws: int, *, progress: bool = False) -> Outcome:
    """Encoder and classifier fine-tuned on a share of the labels, over several draws of the labelled clips.

    Per-class accuracy and confusion are of all draws together.
    """
    train, _ = run.split()
    ids = train.cpu().numpy()
    labels, names = run.store.label[ids], run.store.names[ids].tolist()
    each = []
    for draw in range(draws):
        seed = run.config.seed * DRAWS_APART + draw  # no two seeds share a draw
        chosen = labelled_sample(labels, names, share, run.store.num_classes, key=str(seed))
        says = f"{100 * share:g} % of the labels, draw {draw + 1}/{draws}"
        found = _finetune(run, train[torch.from_numpy(chosen).to(train.device)], settings, seed, says, progress)
        log.info("%s: %d labelled clips, top-1 %.2f %%", says, len(chosen), found.top1)
        each.append(found)
    labels_of_all = np.concatenate([p.labels for p in each])
    together = Predictions(labels_of_all, np.concatenate([p.ranked for p in each]), run.store.class_names)
    top1 = [p.top1 for p in each]
    return _outcome(
        run,
        "semi",
        together,
        settings,
        name=f"semi{100 * share:g}",
        variation="" if draws == Semi.draws else f"-draws{draws}",
        more={
            "share": share,
            "labelled": len(chosen),
            "draws": draws,
            "top1_draws": top1,
            "top1_std": statistics.stdev(top1) if draws > 1 else 0.0,
        },
    )


def _finetune(run: Run, train: Tensor, settings: FinetuneConfig, seed: int, what: str, progress: bool) -> Predictions:
    _, test = run.split()
    stream, frames = run.config.stream, run.config.frames
    encoder, classifier = finetune(
        run.model.representation,
        run.placed,
        train,
        run.store.num_classes,
        stream,
        settings,
        frames=frames,
        seed=seed,
        progress=progress,
        what=what,
    )
    return _predictions(run, finetuned_scores(encoder, classifier, run.placed, test, stream, settings, frames=frames))


def evaluate_ensemble(
    runs: Iterable[Run], weights: Sequence[float] | None = None, *, cache: bool = True, progress: bool = False
) -> Outcome:
    """The summed class probabilities of the runs' linear classifiers; see `fastmc.evaluation.fuse`. A classifier that
    was trained before in the same way is used as it is. The outcome is told as the first run's.

    ``runs`` may be a generator, which loads one run after the other.
    """
    scores: dict[str, Tensor] = {}
    alone: dict[str, float] = {}
    digests: list[str] = []
    seen: list[Run] = []
    for run in runs:
        if seen and run.store.split_digest(run.protocol) != seen[0].store.split_digest(run.protocol):
            raise ValueError(f"{seen[0].folder} and {run.folder} are of different data; their scores cannot be summed")
        stream = run.config.stream
        scores[stream] = _linear_scores(run, cache, progress).cpu()
        alone[stream] = _predictions(run, scores[stream]).top1
        digests.append(weights_digest(run.model.representation))
        seen.append(run)
        log.info("%s stream: top-1 %.2f %%", stream, alone[stream])
    first = seen[0]
    together = _predictions(first, fuse(list(scores.values()), weights))
    used = dict(zip(scores, weights or [1.0] * len(scores), strict=True))
    more = {"streams": alone, "runs": [str(run.folder) for run in seen], "fusion_weights": used}
    name = "ensemble" if set(scores) == set(STREAMS) else f"ensemble-{'+'.join(scores)}"
    variation = "" if not weights or set(weights) == {1} else f"-weights{'+'.join(f'{w:g}' for w in weights)}"
    return _outcome(
        first, "ensemble", together, first.config.evaluation, name=name, variation=variation, weights=digests, more=more
    )


def classifier_name(run: Run) -> str:
    """The file of a run's linear classifier: classifier.pt for the run's own protocol and settings."""
    own = run.own.evaluation
    differs = variant(replace(run.config.evaluation, knn_k=own.knn_k), own) + run.at
    is_own = not differs and run.protocol == (run.own.protocol or run.store.protocols[0])
    return CLASSIFIER if is_own else f"{CLASSIFIER.removesuffix('.pt')}-{run.protocol}{differs}.pt"


def _predictions(run: Run, scores: Tensor) -> Predictions:
    """Of scores (N_test, C) of the run's test clips."""
    labels = run.placed.label[run.split()[1]]
    return Predictions.of_scores(scores, labels, run.store.class_names)


def _linear_scores(run: Run, cache: bool, progress: bool) -> Tensor:
    """Scores (N_test, C) of a run's linear classifier, which is trained and kept if there is none."""
    where = run.folder if cache else None
    role = f"trained{run.at}"
    frozen = Frozen.of(run.model, run.store, run.placed, run.config, cache_in=where, role=role, progress=progress)
    classifier = saved_classifier(
        run.folder,
        protocol=run.protocol,
        data=run.store.split_digest(run.protocol),
        weights=weights_digest(run.model.representation),
        settings=run.config.evaluation,
        seed=run.config.seed,
        name=classifier_name(run),
    )
    if classifier is not None:
        return linear_scores(classifier.to(run.placed.device), frozen.test_features())
    features = frozen.features(run.config.evaluation.train_crops)
    found, classifier = frozen.linear(features)
    frozen.save_classifier(run.folder, classifier, found.top1, classifier_name(run))
    return linear_scores(classifier, features.test)


def _outcome(
    run: Run,
    kind: str,
    predictions: Predictions,
    settings: EvalConfig | FinetuneConfig,
    *,
    name: str | None = None,
    variation: str = "",
    weights: list[str] | None = None,
    more: dict[str, Any] | None = None,
) -> Outcome:
    usual: EvalConfig | FinetuneConfig = run.own.evaluation
    if isinstance(settings, FinetuneConfig):
        usual = FinetuneConfig(train_crop_min=usual.train_crop_min, test_crop=usual.test_crop)
    variation = variant(settings, usual) + variation + run.at
    digest = weights_digest(run.model.representation) if weights is None else weights
    notes = label_notes(run.store, run.protocol)
    return Outcome(
        name=f"{name or kind}-{run.protocol}{variation}",
        kind=kind,
        dataset=run.config.dataset,
        protocol=run.protocol,
        seed=run.config.seed,
        predictions=predictions,
        data=run.store.split_digest(run.protocol),
        weights=digest,
        settings=to_plain(settings),
        pretraining=run.pretraining(),
        more={**(more or {}), **({"notes": notes} if notes else {})},
    )


def show_progress() -> bool:
    """Whether there is someone to see it."""
    return sys.stderr.isatty()
