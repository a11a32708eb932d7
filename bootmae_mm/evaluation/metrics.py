"""Metrics for mmengine's evaluator."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from bootmae_mm.registry import METRICS


@METRICS.register_module()
class PretrainLoss(BaseMetric):
    """Mean losses on held-out images, of a model in mode ``'predict'``."""

    default_prefix = 'pretrain'

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the losses of a batch."""
        self.results.extend(dict(sample) for sample in data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Mean over images."""
        total = sum(result['batch_size'] for result in results)
        return {
            name: sum(result[name] * result['batch_size'] for result in results) / total
            for name in results[0]
            if name != 'batch_size'
        }
