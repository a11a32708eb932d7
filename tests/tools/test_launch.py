import pytest
import torch
from mmengine import Config

from bootmae_mm.engine.launch import prepare, read_config, use_amp
from tests.conftest import ROOT, run_config


def test_data_root_reaches_every_dataset(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), dict(data_root='/other'))
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == '/other'
    folder = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb_folder.py'), dict(data_root='/mine'))
    assert folder.train_dataloader.dataset.data_root == '/mine' and folder.train_dataloader.dataset.folder == ''
    assert folder.work_dir == 'work_dirs/bootmae_vitb_folder'


def test_a_dataset_with_a_root_of_its_own_keeps_it(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), {'test_dataloader.dataset.data_root': '/held', 'data_root': '/other'})
    assert cfg.test_dataloader.dataset.data_root == '/held'


def test_unknown_keys_and_files(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    with pytest.raises(ValueError, match="unknown key 'data_rot'.*did you mean 'data_root'"):
        read_config(str(config), dict(data_rot='/x'))
    with pytest.raises(FileNotFoundError, match='no config nowhere.py'):
        read_config('nowhere.py', {})


def test_none_switches_a_hook_off(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), {'default_hooks.curves': None})
    assert 'curves' not in cfg.default_hooks and 'ema' in cfg.default_hooks


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without a GPU')
def test_float16_without_a_gpu_is_an_error(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), {'optim_wrapper.type': 'AmpOptimWrapper'})
    with pytest.raises(ValueError, match='AmpOptimWrapper needs a GPU'):
        prepare(cfg)


def test_amp_option_means_bfloat16():
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD'))))
    use_amp(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('bootmae_mm.AutocastOptimWrapper', 'bfloat16')
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
