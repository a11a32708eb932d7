"""A sharded model on two processes (gloo), compared with an unsharded one."""

import re
import shutil
import sys

import pytest
import torch

from bootmae_mm.visualization import read_scalars
from tests.conftest import ROOT, run_config, tiny_config
from tests.tools.test_tools import free_port, shell

SHARDED = "model_wrapper_cfg = dict(_delete_=True, type='bootmae_mm.FullyShardedDataParallel')\n"


# A ranking does not depend on them: their gradients are rounding noise, which AdamW scales up.
WITHOUT_GRADIENT = (
    'neck.decoders.difficulty.norm.bias',
    'difficulty_head.projection.bias',
    'masking.decoder.norm',
    'masking.projection.bias',
)


def launch(config, work_dir, *arguments):
    status, out, err = shell(
        ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', work_dir, *arguments, PORT=free_port()
    )
    assert status == 0, err[-3000:]
    return out


def assert_same_states(one, other):
    """Compare weights and optimizer states of two checkpoints as full tensors."""
    one, other = (torch.load(path, weights_only=False) for path in (one, other))
    for name, value in one['state_dict'].items():
        if name.startswith(WITHOUT_GRADIENT):
            continue
        torch.testing.assert_close(other['state_dict'][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']
    for index, values in one['optimizer']['state'].items():
        for name, value in values.items():
            torch.testing.assert_close(other['optimizer']['state'][index][name], value, rtol=1e-3, atol=1e-7, msg=name)


def all_kinds() -> dict:
    """A model with clusters and contrast, which look at all processes, several blocks of the teacher, and HPM."""
    model = tiny_config(masking=dict(type='bootmae_mm.PredictedErrorMasking', share=0.5))
    decoders = dict(
        difficulty=dict(width=8, depth=1, context_block=None), cluster=dict(depth=1), contrast=dict(depth=1)
    )
    model['neck'].update(decoders)
    model['feature_head']['target'] = dict(type='bootmae_mm.TeacherTarget', top_k=2)
    target, loss = dict(type='bootmae_mm.ErrorTarget'), dict(type='bootmae_mm.PatchRanking')
    model['difficulty_head'] = dict(type='bootmae_mm.BootMAEHead', target=target, loss=loss)
    target = dict(type='bootmae_mm.ClusterTarget', clusters=6)
    model['cluster_head'] = dict(type='bootmae_mm.ClusterHead', target=target)
    # A norm over a batch of two images would scale rounding up.
    model['contrast_head'] = dict(
        type='bootmae_mm.ContrastiveHead', hidden=16, dims=8, norm_cfg=dict(type='LN'), temperature=0.2
    )
    return model


@pytest.mark.program
@pytest.mark.skipif(torch.cuda.is_available(), reason='runs gloo processes on a machine without GPUs')
def test_sharded_training_equals_unsharded_training(tmp_path, image_folder):
    whole = run_config(tmp_path / 'whole.py', image_folder, all_kinds(), batch_size=2, accumulate=1)
    text = whole.read_text().replace('scale=(32, 48)', 'scale=(36, 52)', 1)
    flip = "dict(type='bootmae_mm.RandomFlip'"
    text = text.replace(flip, f"dict(type='bootmae_mm.ShiftedView', size=(32, 48)),\n    {flip}", 1)
    text = text.replace('crop_size=(48, 32)), train', 'crop_size=(48, 32)), train_pipeline[2], train')
    whole.write_text(text.replace('min_block=2, max_block=6, roll=4', "strategy='random'"))
    sharded = tmp_path / 'sharded.py'
    sharded.write_text(whole.read_text() + SHARDED)
    launch(whole, tmp_path / 'whole')
    # With activation checkpointing, blocks are gathered a second time in the backward pass.
    checkpointing = ['--cfg-options', 'model.backbone.with_cp=True', 'model.neck.with_cp=True']
    said = launch(sharded, tmp_path / 'sharded', *checkpointing)
    here, everywhere = re.search(r'([\d,]+) of ([\d,]+) weights', said).groups()
    share = int(here.replace(',', '')) / int(everywhere.replace(',', ''))
    assert 0.45 < share < 0.6  # the first dimension of small tensors does not divide evenly
    for a, b in zip(read_scalars(tmp_path / 'whole'), read_scalars(tmp_path / 'sharded'), strict=True):
        losses = [name for name in a if name.endswith('loss')]
        assert len(losses) == 7, losses  # five branches, the clusters' own, and the sum
        for name in (*losses, 'feature_target_norm', 'grad_norm', 'lr', 'ema_decay'):
            assert b[name] == pytest.approx(a[name], rel=1e-4), (a['step'], name)
    assert_same_states(tmp_path / 'whole/epoch_3.pth', tmp_path / 'sharded/epoch_3.pth')
    pictures = sorted(path.name for path in (tmp_path / 'whole').rglob('reconstruction*.png'))
    assert pictures and pictures == sorted(path.name for path in (tmp_path / 'sharded').rglob('reconstruction*.png'))

    # A sharded run resumes from an unsharded checkpoint. (The other direction needs no test: both have equal content.)
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole/epoch_2.pth', tmp_path / 'resumed')
    launch(sharded, tmp_path / 'resumed', '--resume')
    assert_same_states(tmp_path / 'whole/epoch_3.pth', tmp_path / 'resumed/epoch_3.pth')

    # Evaluation on one process.
    status, _, err = shell(
        sys.executable, ROOT / 'tools/test.py', sharded, tmp_path / 'sharded/epoch_3.pth', '--work-dir', tmp_path / 'c'
    )
    assert status == 0, err[-2000:]
