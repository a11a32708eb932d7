"""Iterations of the Runner, compared with a separate implementation of the authors' training loop."""

import copy
import math

import pytest
import torch
from mmengine.hooks import Hook

from tests.engine.test_checkpoint import make_runner

EPOCHS, LENGTH, PEAK, LOW = 4, 4, 1e-3, 1e-5


class Record(Hook):
    """Records the preprocessed batches of a run, and the initial model."""

    priority = 'LOWEST'

    def __init__(self):
        self.batches = []

    def before_train(self, runner):
        self.model = copy.deepcopy(runner.model)
        preprocess = runner.model.data_preprocessor.forward

        def forward(data, training=False):
            data = preprocess(data, training)
            self.batches.append({key: data[key].clone() for key in ('inputs', 'ids_keep', 'ids_mask')})
            return data

        runner.model.data_preprocessor.forward = forward


def learning_rate(iteration):
    """Learning rate by ``cosine_scheduler`` of the authors' utils.py, with a warm-up of one epoch."""
    if iteration < LENGTH:
        return PEAK * iteration / (LENGTH - 1)
    progress = (iteration - LENGTH) / (EPOCHS * LENGTH - LENGTH)
    return LOW + 0.5 * (PEAK - LOW) * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_run_equals_the_authors_training_loop(tmp_path, image_folder, accumulate):
    runner = make_runner(
        tmp_path,
        image_folder,
        {
            'default_hooks.reconstruction': None,
            # In the paper, the feature loss ramps up over a quarter of the run; here, over half of four epochs.
            'default_hooks.feature_weight': dict(type='bootmae_mm.FeatureWeightHook', weight=1.0, ramp=0.5),
        },
        batch_size=2,
        epochs=EPOCHS,
        accumulate=accumulate,
        workers=1,
    )
    record = Record()
    runner.register_hook(record)
    runner.train()
    model = record.model.train()
    batches = record.batches
    assert len(batches) == EPOCHS * LENGTH

    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    plain = {name for name in names if model.get_parameter(name).dim() <= 1 or name.endswith(('.bias', 'cls_token'))}
    groups = [sorted(names - plain), sorted(plain)]
    optimizer = torch.optim.AdamW(
        [
            dict(params=[model.get_parameter(name) for name in group], weight_decay=decay)
            for group, decay in zip(groups, (0.05, 0.0), strict=True)
        ],
        lr=PEAK,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    student, teacher = dict(model.backbone.named_parameters()), dict(model.teacher.named_parameters())
    for iteration, batch in enumerate(batches):
        epoch = iteration // LENGTH
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(iteration)
        losses = model.loss(**batch)
        total = losses['pixel_loss'] + min((epoch + 1) / (0.5 * EPOCHS), 1) * losses['feature_loss']
        (total / accumulate).backward()
        if (iteration + 1) % accumulate:
            continue
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.5 + 0.2 * epoch, 0.9)  # 0.5 -> 0.9 over two epochs
        with torch.no_grad():
            for name, value in teacher.items():
                value.copy_(decay * value + (1 - decay) * student[name])

    wanted, found = model.state_dict(), runner.model.state_dict()
    assert set(wanted) == set(found)
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 2e-5 * max(float(value.abs().max()), 1e-3), name
