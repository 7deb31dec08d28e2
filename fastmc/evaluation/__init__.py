"""Evaluation of a trained encoder (paper section 4.2): kNN and linear classification of frozen features, fine-tuning
with all or few labels, and the fusion of several streams."""

from fastmc.evaluation.cache import FeatureCache
from fastmc.evaluation.config import EvalConfig, FinetuneConfig
from fastmc.evaluation.digest import weights_digest
from fastmc.evaluation.features import FeatureSource, FrozenFeatures, Represents, frozen_features, represent
from fastmc.evaluation.finetune import finetune, finetuned_scores, labelled_sample
from fastmc.evaluation.fusion import check_weights, fuse
from fastmc.evaluation.knn import knn_evaluate, knn_predict
from fastmc.evaluation.linear import linear_evaluate, linear_scores, train_linear
from fastmc.evaluation.scores import Predictions

__all__ = [
    "EvalConfig",
    "FeatureCache",
    "FeatureSource",
    "FinetuneConfig",
    "FrozenFeatures",
    "Predictions",
    "Represents",
    "check_weights",
    "finetune",
    "finetuned_scores",
    "frozen_features",
    "fuse",
    "knn_evaluate",
    "knn_predict",
    "labelled_sample",
    "linear_evaluate",
    "linear_scores",
    "represent",
    "train_linear",
    "weights_digest",
]
