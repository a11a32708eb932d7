"""Evaluation: held-out losses, probes of frozen features, and fine-tuning on few labels."""

from .finetuning import FineTuning, finetuned_accuracy
from .metrics import PretrainLoss
from .probes import knn_accuracies, knn_accuracy, linear_accuracy, pooled_features, ridge_accuracy

__all__ = [
    'FineTuning',
    'PretrainLoss',
    'finetuned_accuracy',
    'knn_accuracies',
    'knn_accuracy',
    'linear_accuracy',
    'pooled_features',
    'ridge_accuracy',
]
