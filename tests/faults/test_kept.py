"""Checkpoints that a run keeps."""

import pytest

from tests.conftest import run_config, write_images
from tests.faults.runs import run


@pytest.mark.fault
def test_the_newest_the_milestones_and_the_best_are_kept(tmp_path):
    folder = write_images(tmp_path / 'images', 8)
    config = run_config(tmp_path / 'config.py', folder, epochs=7)
    config.write_text(
        config.read_text() + 'val_dataloader = test_dataloader\nval_evaluator = test_evaluator\nval_cfg = dict()\n'
    )
    kept = ['max_keep_ckpts=2', 'keep_every=3', 'save_best=pretrain/pixel_loss', 'rule=less']
    options = [f'default_hooks.checkpoint.{option}' for option in kept]
    status, said = run(config, tmp_path / 'work', options=options)
    assert status == 0, said[-3000:]
    names = {path.name for path in (tmp_path / 'work').glob('*.pth')}
    best = {name for name in names if name.startswith('best_')}
    assert names - best == {'epoch_3.pth', 'epoch_6.pth', 'epoch_7.pth'} and len(best) == 1, names
    assert (tmp_path / 'work/last_checkpoint').read_text().endswith('epoch_7.pth')
