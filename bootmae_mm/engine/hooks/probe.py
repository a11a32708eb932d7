"""Probes of the encoder on labeled images during pretraining."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dataset import Compose
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from bootmae_mm.evaluation import knn_accuracy, ridge_accuracy
from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import Count, require, validated

from ..sharding import gathered_parameters, is_sharded, unwrapped


@HOOKS.register_module()
class ProbeHook(Hook):
    """Classifies labeled images by the student's features: at the start, at even distances and at the end of the run.

    Two probes on the mean patch token: k nearest neighbors by cosine, and a ridge regression of the labels. The
    accuracies go to the log, the visualizer (``probe_knn`` and ``probe_linear``, in percent) and ``curves.png``. The
    images pass the test pipeline of the config. Nothing of the training changes.

    Args:
        data_root: Folder with a folder for each class, or with ``train`` and ``test`` (or ``val``) of such folders;
            :func:`bootmae_mm.data.class_folders.class_folders`. None for no probes.
        times: Number of probes in a run, after the one of the weights it starts from.
        max_per_class: Number of images of a class to use at most, in each of the two sets.
        k: Number of neighbors.
        batch_size: Images at a time.
    """

    priority = 'LOW'

    @validated
    def __init__(
        self,
        data_root: str | None = None,
        times: Count = 10,
        max_per_class: Count = 200,
        k: Count = 20,
        batch_size: Count = 64,
    ) -> None:
        self.data_root = data_root
        self.times = times
        self.max_per_class = max_per_class
        self.k = k
        self.batch_size = batch_size
        self._sets: list = []
        self._pipeline: Any = None

    def before_train(self, runner: Runner) -> None:
        """Find the images, and probe the weights that the run starts from.

        Raises:
            ConfigError: If there are none, or the model is of another method.
        """
        if self.data_root is None:
            return
        from bootmae_mm.data.class_folders import class_folders
        from bootmae_mm.models import BootMAE

        model = unwrapped(runner.model)
        require(isinstance(model, BootMAE), f'probe: needs a BootMAE, but the model is {type(model).__name__}')
        self._sets = list(class_folders(self.data_root, self.max_per_class))
        self._pipeline = Compose(runner.cfg.test_dataloader.dataset.pipeline)
        train, test = self._sets
        runner.logger.info(
            f'probe: {len(train.paths)} labeled and {len(test.paths)} held-out images of {len(train.classes)} classes '
            f'in {self.data_root}'
        )
        if runner.iter == 0:
            self._probe(runner, 0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Probe where a further share of the run is done."""
        done, total = runner.iter + 1, runner.max_iters
        if self._sets and done * self.times // total > (done - 1) * self.times // total:
            self._probe(runner, done)

    @torch.no_grad()
    def _probe(self, runner: Runner, step: int) -> None:
        model = unwrapped(runner.model)
        if not (is_main_process() or is_sharded(model)):  # a sharded model needs all ranks
            return
        from bootmae_mm.data.samplers import preserved_random_state

        was_training = model.training
        try:
            model.eval()
            with preserved_random_state(), gathered_parameters(model), torch.compiler.set_stance('force_eager'):
                (train, labels), (test, test_labels) = (self._features(model, images) for images in self._sets)
        finally:
            model.train(was_training)
        if not is_main_process():
            return
        found = dict(
            probe_knn=100 * knn_accuracy(train, labels, test, test_labels, min(self.k, len(labels))),
            probe_linear=100 * ridge_accuracy(train, labels, test, test_labels),
        )
        runner.visualizer.add_scalars(found, step=step)
        chance = 100 / len(self._sets[0].classes)
        runner.logger.info(
            f'probe: kNN {found["probe_knn"]:.1f} %, linear {found["probe_linear"]:.1f} % (chance {chance:.1f} %)'
        )

    def _features(self, model: nn.Module, images: Any) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,)."""
        from bootmae_mm.data.decoding import UnreadableImageError
        from bootmae_mm.data.transforms import collate

        features, labels = [], []
        for start in range(0, len(images.paths), self.batch_size):
            samples = []
            for path, label in list(zip(images.paths, images.labels, strict=True))[start : start + self.batch_size]:
                try:
                    samples.append(self._pipeline(dict(img_path=path)))
                    labels.append(label)
                except UnreadableImageError as error:
                    print_log(f'probe: unreadable image left out: {error}', logger='current', level=30)
            if samples:
                inputs = model.data_preprocessor(collate(samples))['inputs']  # (B, C, H, W)
                features.append(model.extract_feat(inputs)[0].float().cpu())
        require(features, f'no image of {self.data_root} can be read')
        return torch.cat(features), torch.tensor(labels)
