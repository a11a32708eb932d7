"""mmengine's own Runner, without any tool of this project, trains the same numbers."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner as MMEngineRunner

from bootmae_mm.engine.launch import read_config
from bootmae_mm.engine.training import start, work_dir_of
from tests.conftest import run_config


@pytest.mark.slow
def test_weights_are_bit_equal_after_two_epochs(tmp_path, image_folder):
    options = {'train_cfg.max_epochs': 2}
    config = run_config(tmp_path / 'config.py', image_folder, summary=True, epochs=2)
    cfg = read_config(str(config), options, str(tmp_path / 'ours'))
    with work_dir_of(cfg):
        start(cfg)
    plain = Config.fromfile(config)
    plain.work_dir = str(tmp_path / 'plain')
    MMEngineRunner.from_cfg(plain).train()
    ours, theirs = (torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False) for name in ('ours', 'plain'))
    assert ours['state_dict'].keys() == theirs['state_dict'].keys()
    for name, value in ours['state_dict'].items():
        assert torch.equal(value, theirs['state_dict'][name]), name
    moments = [checkpoint['optimizer']['state'][0]['exp_avg'] for checkpoint in (ours, theirs)]
    assert torch.equal(*moments) and moments[0].abs().max() > 0
