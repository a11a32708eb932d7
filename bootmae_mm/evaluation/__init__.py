"""Evaluation: held-out losses, and probes of frozen features."""

from .metrics import PretrainLoss
from .probes import knn_accuracies, knn_accuracy, linear_accuracy, pooled_features, ridge_accuracy

__all__ = ['PretrainLoss', 'knn_accuracies', 'knn_accuracy', 'linear_accuracy', 'pooled_features', 'ridge_accuracy']
