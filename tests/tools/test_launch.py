"""From a command line to a Runner: configs, checkpoints, launchers, errors."""

import pickle

import pytest
import torch
from mmengine import Config
from mmengine.runner import Runner
from safetensors.torch import save_file

from bootmae_mm.checkpoints.names import to_timm
from bootmae_mm.engine.checks import check_checkpoint, check_loader, check_same_classes
from bootmae_mm.engine.launch import cause_of, exit_with, finish, launched_rank, prepare, read_config, use_amp
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import ROOT, run_config


@pytest.mark.parametrize(('launcher', 'rank'), [('pytorch', 1), ('slurm', 2), ('mpi', 3), ('none', 0)])
def test_the_rank_is_that_of_the_launcher_in_use(monkeypatch, launcher, rank):
    for name, value in (('RANK', '1'), ('SLURM_PROCID', '2'), ('OMPI_COMM_WORLD_RANK', '3')):
        monkeypatch.setenv(name, value)
    assert launched_rank(launcher) == rank


def test_data_root_applies_to_every_dataset(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), dict(data_root='/other'))
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == '/other'
    folder = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb_folder.py'), dict(data_root='/mine'))
    assert folder.train_dataloader.dataset.data_root == '/mine' and folder.train_dataloader.dataset.folder == ''
    assert folder.work_dir == 'work_dirs/bootmae_vitb_folder'


def test_a_dataset_keeps_its_own_data_root(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), {'test_dataloader.dataset.data_root': '/held', 'data_root': '/other'})
    assert cfg.test_dataloader.dataset.data_root == '/held'


def test_unknown_keys_and_files(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    with pytest.raises(ValueError, match="nothing reads the key 'data_rot'.*did you mean 'data_root'"):
        read_config(str(config), dict(data_rot='/x'))
    with pytest.raises(MissingFileError, match='^no config nowhere.py$'):
        read_config('nowhere.py', {})


def test_none_switches_a_hook_off(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), {'default_hooks.curves': None})
    assert 'curves' not in cfg.default_hooks and 'ema' in cfg.default_hooks
    # A default hook of mmengine: it would be added again if the key were missing.
    cfg = read_config(str(config), {'default_hooks.checkpoint': None}, str(tmp_path / 'work'))
    cfg.experiment_name = tmp_path.name
    names = {type(hook).__name__ for hook in Runner.from_cfg(cfg).hooks}
    assert 'CheckpointHook' not in names and 'BootMAEEMAHook' in names


def runner_of(config, tmp_path):
    cfg = read_config(str(config), {}, str(tmp_path / 'work'))
    cfg.experiment_name = tmp_path.name
    return Runner.from_cfg(cfg)


def test_checkpoints_that_do_not_fit(tmp_path, image_folder):
    runner = runner_of(run_config(tmp_path / 'config.py', image_folder), tmp_path)
    state = runner.model.state_dict()
    path = str(tmp_path / 'x.pth')

    def check(state, complete):
        torch.save(dict(state_dict=state), path)
        check_checkpoint(runner, path, complete)

    check(state, True)
    student = {name: value for name, value in state.items() if not name.startswith('teacher.')}
    check(student, False)  # the teacher will be a copy
    for bad, complete, message in (
        (student, True, r'does not fit.*teacher'),
        ({name.replace('backbone', 'encoder'): value for name, value in state.items()}, True, 'missing'),
        ({'other': torch.zeros(1)}, False, 'missing'),
        ({name: value for name, value in student.items() if 'layers.2' not in name}, False, r'missing.*layers\.2'),
        ({**state, 'backbone.cls_token': torch.zeros(1, 1, 5)}, False, r'1 have another shape.*cls_token \(1, 1, 5\)'),
    ):
        with pytest.raises(ValueError, match=message):
            check(bad, complete)
    with pytest.raises(MissingFileError, match='^no checkpoint .*none.pth$'):
        check_checkpoint(runner, str(tmp_path / 'none.pth'))


def test_classes_in_another_order():
    check_same_classes(None, ['a'], 'two data sets')
    check_same_classes(('a', 'b'), ['a', 'b'], 'two data sets')
    with pytest.raises(ValueError, match="two data sets do not have the same classes: label 1 is 'b' in one and 'c'"):
        check_same_classes(['a', 'b', 'c'], ['a', 'c', 'd'], 'two data sets')
    with pytest.raises(ValueError, match='3 in one and 2 in the other'):
        check_same_classes(['a', 'b', 'c'], ['a', 'b'], 'two data sets')


def test_fewer_images_than_a_batch(tmp_path, image_folder):
    runner = runner_of(run_config(tmp_path / 'config.py', image_folder, batch_size=16), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r'\(0 per epoch\): 8 images .* in batches of train_dataloader.batch_size=16 on each of 1 processes',
    ):
        check_loader(runner)


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without a GPU')
def test_float16_without_a_gpu_is_an_error(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    cfg = read_config(str(config), {'optim_wrapper.type': 'AmpOptimWrapper'})
    with pytest.raises(ValueError, match='AmpOptimWrapper needs a GPU'):
        prepare(cfg)
    prepare(cfg, training=False)  # evaluation builds no optimizer


def test_amp_option_means_bfloat16():
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD'))))
    use_amp(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('bootmae_mm.AutocastOptimWrapper', 'bfloat16')
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


def test_finish_leaves_the_process_group(tmp_path):
    finish()  # does nothing without one
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    finish()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ('error', 'cause'),
    [
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 'signal: Killed'),
        (RuntimeError('DataLoader timed out after 5 seconds'), 'a worker hangs'),
        (EOFError(), 'died while sending a batch'),
        (ConnectionResetError(104, 'Connection reset by peer'), 'died while sending a batch'),
        (RuntimeError('[gloo] Connection closed by peer'), 'another process died'),
        (EOFError('Caught EOFError in DataLoader worker process 0.'), None),
        (RuntimeError('shapes do not fit'), None),
        (ValueError('DataLoader worker'), None),
    ],
)
def test_causes_of_broken_runs(error, cause):
    found = cause_of(error)
    assert found is None if cause is None else cause in found


def test_a_cause_is_found_in_the_chain_of_errors():
    with pytest.raises(SyntaxError) as error:
        try:
            raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')
        except RuntimeError:
            raise SyntaxError('Failed to format the config file')  # noqa: B904
    assert 'signal: Killed' in cause_of(error.value)


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (ConfigError('depth must be at least 1'), 'error: depth must be at least 1'),
        (MissingFileError('no config x.py'), 'error: no config x.py'),
        (OSError(28, 'No space left on device'), 'error: [Errno 28] No space left on device'),
        (FloatingPointError('loss not finite'), 'error: loss not finite'),
        (EOFError(), 'error: a worker of the loader died while sending a batch'),
        (pickle.UnpicklingError('junk'), 'error: a checkpoint does not load safely: it is not a file of torch.save'),
    ],
)
def test_explained_errors_end_a_tool_with_one_line(capsys, error, message):
    with pytest.raises(SystemExit) as end:
        exit_with(error)
    assert end.value.code.startswith(message) and '\n' not in end.value.code
    assert capsys.readouterr().err == ''


def test_other_errors_end_a_tool_with_a_traceback(capsys):
    with pytest.raises(SystemExit, match='^error: invalid literal'):
        try:
            int('no number')
        except ValueError as error:
            exit_with(error)
    assert 'Traceback' in capsys.readouterr().err
    with pytest.raises(MemoryError):
        exit_with(MemoryError())


def test_load_from_of_an_encoder_names_the_options_that_work(tmp_path, image_folder, run_tool):
    """The encoder has timm's names; training works with the options in the message."""
    config = run_config(tmp_path / 'config.py', image_folder, epochs=1)
    runner = runner_of(config, tmp_path)
    runner.model.init_weights()
    runner.model.backbone.layers[0].ln1.bias.data.fill_(0.25)
    torch.save(dict(model=to_timm(runner.model.backbone.state_dict())), tmp_path / 'mae.pth')
    status, _, message = run_tool(
        'train.py', config, '--work-dir', tmp_path / 'one', '--cfg-options', f'load_from={tmp_path / "mae.pth"}'
    )
    assert status == 1 and 'holds an encoder, but load_from needs the whole model' in message
    options = message.split('--cfg-options ')[1].split()
    status, _, message = run_tool('train.py', config, '--work-dir', tmp_path / 'two', '--cfg-options', *options)
    assert status == 0, message
    state = torch.load(tmp_path / 'two/epoch_1.pth', weights_only=False)['state_dict']
    for part in ('backbone', 'teacher'):
        assert state[f'{part}.layers.0.ln1.bias'].mean() == pytest.approx(0.25, abs=0.02)


def test_load_from_a_whole_model_in_safetensors(tmp_path, image_folder, run_tool):
    config = run_config(tmp_path / 'config.py', image_folder, epochs=1)
    state = runner_of(config, tmp_path).model.state_dict()
    state['backbone.layers.0.ln1.bias'] = torch.full((24,), 0.25)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / 'whole.safetensors')
    options = f'load_from={tmp_path / "whole.safetensors"}'
    status, _, message = run_tool('train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', options)
    assert status == 0, message
    trained = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)['state_dict']
    assert trained['teacher.layers.0.ln1.bias'].mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize('wrapper', [None, dict(type='MMDistributedDataParallel', broadcast_buffers=False)])
def test_find_unused_parameters_on_a_cpu(tmp_path, image_folder, monkeypatch, wrapper):
    """mmengine reads the key only if the config has no wrapper."""
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *_, **__: None)
    config = run_config(tmp_path / 'config.py', image_folder)
    options = {'find_unused_parameters': True, 'model_wrapper_cfg': wrapper, 'sync_bn': 'torch'}
    cfg = read_config(str(config), options, launcher='pytorch')
    prepare(cfg)
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model_wrapper_cfg.device_ids is None and cfg.sync_bn is None


def test_erased_pixels_have_the_statistics_of_the_preprocessor():
    options = {'model.data_preprocessor.mean': [1.0, 2.0, 3.0], 'model.data_preprocessor.std': [4.0, 5.0, 6.0]}
    cfg = read_config(str(ROOT / 'configs/cls/bootmae_vitb_ft_100e.py'), options)
    step = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'bootmae_mm.RandomErasing')
    assert (step.mean, step.std) == ([3.0, 2.0, 1.0], [6.0, 5.0, 4.0])  # BGR, the channel order at this step
