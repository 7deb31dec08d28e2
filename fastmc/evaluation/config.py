"""Settings of the evaluations. The defaults are those of paper section 4.2."""

from __future__ import annotations

from dataclasses import dataclass

from fastmc.checks import Count, NotNegative, Positive, Share, Whole, check_ranges


@dataclass(frozen=True)
class EvalConfig:
    """kNN and linear evaluation, paper section 4.2."""

    knn_k: Count = 1
    """Neighbours of the kNN classifier, by cosine similarity."""
    linear_epochs: Count = 80
    """Epochs of the linear classifier."""
    linear_lr: Positive = 0.1
    """Initial learning rate of the linear classifier."""
    linear_milestones: tuple[Whole, ...] = (50, 70)
    """Epochs at which that learning rate drops to a tenth."""
    linear_batch_size: Count = 64
    """Clips per step of the linear classifier."""
    train_crops: Count = 8
    """Random temporal crops of each training clip whose features the linear classifier draws from, one per epoch."""
    train_crop_min: Share = 0.5
    """Shortest of these crops, as a share of the clip. Source: released code of this family, [0.5, 1]."""
    test_crop: Share = 0.95
    """Centre crop of a test clip, as a share of it. Source: the same."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of encoder and classifier, paper section 4.2: semi-supervised evaluation and transfer learning.

    What the paper leaves open is as in the released code of CMD (action_classification_cmd_semi.py), whose evaluation
    the paper follows: no weight decay, no dropout, one learning rate for encoder and classifier, SGD with momentum 0.9.
    AimCLR's differs: weight decay 1e-4 and Nesterov momentum.
    """

    epochs: Count = 80
    """Epochs of fine-tuning."""
    lr: Positive = 0.01
    """Initial learning rate of encoder and classifier."""
    milestones: tuple[Whole, ...] = (50, 70)
    """Epochs at which it drops to a tenth."""
    batch_size: Count = 64
    """Most clips per step; an epoch's batches are of equal size, as far as its clips can be divided."""
    weight_decay: NotNegative = 0.0
    """Weight decay of encoder and classifier. Source: released code of CMD."""
    train_crop_min: Share = 0.5
    """Shortest random temporal crop of a training clip, as a share of it. Source: the same, [0.5, 1]."""
    test_crop: Share = 0.95
    """Centre crop of a test clip, as a share of it. Source: the same."""

    def __post_init__(self) -> None:
        check_ranges(self)
