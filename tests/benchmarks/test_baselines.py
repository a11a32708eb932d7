"""Arithmetic of the baselines' steps; their models are not part of this project."""

import pytest
import torch

from benchmarks.baselines import AuthorsStep, MAEStep
from benchmarks.step import TrainingStep
from bootmae_mm.engine.launch import read_config
from bootmae_mm.models.losses import loss_weights
from bootmae_mm.models.tokens import place_patches
from tests.conftest import random_batch, run_config


@pytest.fixture
def step(tmp_path, image_folder):
    cfg = read_config(str(run_config(tmp_path / 'config.py', image_folder)), {})
    return TrainingStep(cfg, 3, torch.device('cpu'), 'float32')


def test_targets_of_the_authors_are_those_of_this_project(step):
    data = random_batch()
    theirs = object.__new__(AuthorsStep)
    theirs.grid, theirs.patch, theirs.num_masked = step.model.backbone.grid_size, 8, data['ids_mask'].shape[1]
    order = torch.cat([data['ids_keep'], data['ids_mask']], dim=1)
    weights, mask, per_patch, target = theirs._targets(data['inputs'], order)
    wanted = loss_weights(data['ids_mask'], theirs.grid)
    torch.testing.assert_close(per_patch[:, :, 0].gather(1, data['ids_mask']), wanted)
    assert mask.mean() == pytest.approx(17 / 24) and (weights > 0).eq(mask > 0).all()
    patches = step.model.pixel_head.target(data['inputs'], data['ids_mask'])
    found = place_patches(torch.zeros_like(target), patches, data['ids_mask'])
    torch.testing.assert_close(target * mask, found, rtol=1e-4, atol=1e-4)


def test_baselines_that_cannot_be_compared(step, tmp_path):
    with pytest.raises(FileNotFoundError, match='is a checkout of'):
        AuthorsStep(tmp_path, step)
    with pytest.raises(ValueError, match='ViT-B/16 at 224 px'):
        MAEStep(step, {})
    (tmp_path / 'models').mkdir()
    (tmp_path / 'models/modeling_pretrain_bootmae.py').write_text('')
    with pytest.raises(ValueError, match='the config has another model'):
        AuthorsStep(tmp_path, step)
