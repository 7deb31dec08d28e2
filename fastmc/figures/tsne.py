"""Figure 4 of the paper: t-SNE of the features of ten classes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from fastmc.figures.style import CLASS_COLOURS, DOUBLE, MARKERS, head, style

PERPLEXITY = 30.0
FEWEST = 3
LEGEND = 1.7  # inches


@dataclass(frozen=True)
class Embedding:
    """Features of N clips in two dimensions, and how well the classes are told apart by the features themselves.

    Attributes:
        points: (N, 2) float32.
        knn: percent of the clips whose nearest other clip has their class, by cosine.
        silhouette: mean silhouette score by cosine, -1 to 1; None where it is not defined (one class, as many classes
            as clips, or equal features).
        perplexity: of the t-SNE.
    """

    points: np.ndarray
    knn: float
    silhouette: float | None
    perplexity: float

    @property
    def collapsed(self) -> bool:
        """Whether all features are equal."""
        return not self.points.any()


def choose_classes(labels: np.ndarray, count: int = 10, seed: int = 0) -> np.ndarray:
    """At most ``count`` random ones of the classes that occur in ``labels``, increasing."""
    there = np.unique(labels)
    return np.sort(np.random.default_rng(seed).permutation(there)[:count])


def embed(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Embedding:
    """t-SNE of features (N, H) of clips with these labels (N,): scikit-learn's, from the principal components.

    The perplexity is 30, or a third of the other clips where there are few. Equal features, those of an encoder that
    has collapsed, all lie at the origin: scikit-learn's t-SNE would end the process.

    Raises:
        ValueError: fewer than three clips.
    """
    from sklearn.manifold import TSNE  # here, since it takes a second to import

    if len(features) < FEWEST:
        raise ValueError(f"a t-SNE needs {FEWEST} clips at least, got {len(features)}")
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    features = features.astype(np.float32)
    if not np.ptp(features, axis=0).any():
        return Embedding(np.zeros((len(features), 2), np.float32), loo_knn(features, labels), None, perplexity)
    tsne = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed)
    points = tsne.fit_transform(features)
    return Embedding(points, loo_knn(features, labels), _silhouette(features, labels), perplexity)


def loo_knn(features: np.ndarray, labels: np.ndarray) -> float:
    """Percent of clips whose nearest other clip, by cosine, has their label."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return 100.0 * float((labels[similarity.argmax(axis=1)] == labels).mean())


def _silhouette(features: np.ndarray, labels: np.ndarray) -> float | None:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) <= len(labels) - 1:
        return None
    return float(silhouette_score(features, labels, metric="cosine"))


@style()
def draw_embeddings(
    panels: Mapping[str, Embedding], labels: np.ndarray, class_names: Sequence[str], *, title: str = ""
) -> Figure:
    """Panels side by side, a marker a clip; colour and shape tell its class, and the legend names it.

    Args:
        panels: by heading, embeddings of the same N clips.
        labels: (N,) indices into ``class_names``.
    """
    across = len(panels) if len(panels) <= 3 else (2 if len(panels) == 4 else 3)
    down = -(-len(panels) // across)
    side = (DOUBLE - LEGEND) / across - 0.2
    figure = Figure(figsize=(DOUBLE, 0.3 + down * (side + 0.55)), layout="constrained")
    head(figure, title)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    size = float(np.clip(3000 / len(labels), 5, 18))  # points squared: many markers are small
    for axes, (heading, embedding) in zip(grid, panels.items(), strict=False):
        for i, c in enumerate(np.unique(labels)):
            points = embedding.points[labels == c]
            colour, marker = CLASS_COLOURS[i % len(CLASS_COLOURS)], MARKERS[i % len(MARKERS)]
            name = textwrap.fill(class_names[c], 28)
            axes.scatter(*points.T, s=size, color=colour, marker=marker, label=name, alpha=0.85, linewidths=0)
        axes.set_title("\n".join([*textwrap.wrap(heading, int(side * 17)), scores_in_words(embedding)]))
        axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        axes.set_box_aspect(1)
        axes.spines[["top", "right"]].set_visible(True)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, handletextpad=0.2, markerscale=1.4)
    return figure


def scores_in_words(embedding: Embedding) -> str:
    """1-NN accuracy and, where it is defined, silhouette."""
    if embedding.collapsed:
        return "collapsed: all features are equal"
    silhouette = "" if embedding.silhouette is None else f", silhouette {embedding.silhouette:.2f}"
    return f"1-NN {embedding.knn:.1f} %{silhouette}"
