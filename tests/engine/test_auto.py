"""Values that are 'auto': the rules with numbers worked out by hand, and the memory that they count on."""

import pytest
import torch

from bootmae_mm.config import load_config
from bootmae_mm.engine.auto import KEYS, Machine, choose, memory_of
from bootmae_mm.engine.launch import read_config
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT

AUTO = ROOT / 'configs/pretrain/bootmae_auto.py'
H100 = 80 * 2**30


def chosen(images, machine, options=None):
    return {choice.key: choice for choice in choose(load_config(AUTO, options), images, machine)}


def values(images, machine, *keys, **options):
    found = chosen(images, machine, options.get('options'))
    return [found[key].value for key in keys]


LEARNING = (
    'train_dataloader.batch_size',
    'optim_wrapper.accumulative_counts',
    'optim_wrapper.optimizer.lr',
    'train_cfg.max_epochs',
)


@pytest.mark.parametrize(
    'images, processes, expected',
    [
        (1_281_167, 8, [512, 1, 2.4e-3, 800]),  # the paper's run
        (1_000, 1, [64, 1, 3e-4, 800]),  # 4096 * sqrt(1000 / 1281167) = 114
        (100_000, 1, [512, 2, 1.2e-3, 800]),  # 1144 -> 1024
        (10_000_000, 16, [256, 1, 2.4e-3, 102]),
        (40, 1, [32, 1, 2.12e-4, 800]),
    ],
)
def test_length_batch_and_lr_by_the_number_of_images(images, processes, expected):
    assert values(images, Machine(processes, processes, 96, H100), *LEARNING) == expected


def test_without_a_gpu_it_is_a_trial():
    machine = Machine(1, 1, 2, None)
    assert values(367, machine, *LEARNING) == [32, 1, 2.12e-4, 14]
    assert values(367, machine, 'optim_wrapper.dtype', 'env_cfg.num_threads', 'train_dataloader.num_workers') == [
        'float32',
        2,
        0,
    ]
    assert 'trial' in chosen(367, machine)['train_cfg.max_epochs'].reason
    assert values(367, Machine(2, 2, 16, None), 'env_cfg.num_threads', 'train_dataloader.num_workers') == [4, 4]


def test_the_teacher_averages_over_the_papers_shares_of_the_run():
    (decay,) = values(1_281_167, Machine(8, 8, 96, H100), 'default_hooks.ema.decay')
    for (place, value), (papers_place, papers_value) in zip(decay, [(0, 0.999), (100, 0.9999), (400, 0.99999)]):
        assert place == papers_place and value == pytest.approx(papers_value, rel=1e-5)
    (short,) = values(1_000, Machine(1, 1, 8, H100), 'default_hooks.ema.decay', options={'train_cfg.max_epochs': 100})
    # 15 iterations an epoch, 1,500 steps: averages over 6, 60 and 600 of them.
    assert short == [
        (0, pytest.approx(5 / 6, rel=1e-5)),
        (12.5, pytest.approx(59 / 60)),
        (50, pytest.approx(599 / 600)),
    ]


def test_the_batch_fits_the_memory():
    fixed, each = memory_of(load_config(AUTO, {'model.backbone.arch': 'l'}))
    (batch,) = values(
        10**7, Machine(8, 8, 96, 24 * 2**30), 'train_dataloader.batch_size', options={'model.backbone.arch': 'l'}
    )
    assert fixed + batch * each <= 0.7 * 24 * 2**30 < fixed + 2 * batch * each


@pytest.mark.parametrize('arch', ['t', pytest.param('b', marks=pytest.mark.long)])
def test_memory_is_what_autograd_keeps(arch):
    cfg = load_config(AUTO, {'model.backbone.arch': arch})
    model = MODELS.build(cfg.model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    counts = []
    for batch in (2, 4):
        kept = {}

        def note(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        ids = torch.rand(batch, 196).argsort(dim=1)
        with (
            torch.autocast('cpu', torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            model.loss(torch.randn(batch, 3, 224, 224), ids[:, :49], ids[:, 49:])
        counts.append(sum(size for size, _ in kept.values()))
    assert memory_of(cfg)[1] == pytest.approx((counts[1] - counts[0]) / 2, rel=0.03)


def test_every_auto_is_replaced_and_logged(image_folder, tmp_path):
    cfg = read_config(str(AUTO), {'data_root': str(image_folder), 'train_cfg.max_epochs': 20})
    text = cfg.pretty_text
    assert "='auto'" not in text.replace("backend='auto'", '')
    assert cfg.train_cfg.max_epochs == 20 and cfg.train_dataloader.batch_size == 8
    # The schedules of the paper, for 20 of 800 epochs; the decay is for 20 already.
    assert [scheduler.end for scheduler in cfg.param_scheduler] == [1, 20]
    assert cfg.param_scheduler[1].eta_min == pytest.approx(1e-4 * 1.06e-4 / 2.4e-3, rel=1e-2)
    assert [place for place, _ in cfg.default_hooks.ema.decay] == [0, 2.5, 10]


def test_values_of_a_child_config_are_kept(image_folder, tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = {str(AUTO)!r}\ntrain_cfg = dict(max_epochs=30)\ntrain_dataloader = dict(batch_size=3)\n'
        'default_hooks = dict(checkpoint=dict(interval=7))\n'
    )
    cfg = read_config(str(child), {'data_root': str(image_folder)})
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (30, 3)
    assert cfg.default_hooks.checkpoint.interval == 7
    assert [place for place, _ in cfg.default_hooks.ema.decay] == [0, 3.75, 15]


def test_a_run_by_iterations(image_folder):
    options = {'data_root': str(image_folder), 'train_cfg.by_epoch': False, 'train_cfg.max_iters': 100}
    cfg = read_config(str(AUTO), options)
    assert cfg.train_cfg == dict(by_epoch=False, max_iters=100)
    assert [place for place, _ in cfg.default_hooks.ema.decay] == [0, 12.5, 50]
    assert cfg.param_scheduler[1].end == 100 and cfg.default_hooks.checkpoint.interval == 5


@pytest.mark.parametrize('name', ['hivit', 'cmae', 'bootmae_vitl'])
def test_other_configs_may_say_auto(name):
    cfg = load_config(ROOT / f'configs/pretrain/{name}.py', {'train_dataloader.batch_size': 'auto'})
    (choice,) = choose(cfg, 100_000, Machine(1, 1, 8, H100))
    assert choice.key == 'train_dataloader.batch_size' and choice.value in (64, 128, 256, 512)


def test_a_batch_of_another_task_is_not_chosen():
    cfg = load_config(ROOT / 'configs/cls/bootmae_vitb_ft_100e.py', {'train_dataloader.num_workers': 'auto'})
    (choice,) = choose(cfg, 1000, Machine(1, 1, 8, H100))
    assert choice.value == 7
    cfg.train_dataloader.batch_size = 'auto'
    with pytest.raises(ConfigError, match="batch_size='auto' is for pretraining"):
        choose(cfg, 1000, Machine(1, 1, 8, H100))


def test_auto_elsewhere_is_refused(image_folder):
    from bootmae_mm.engine.checks import check_settings

    cfg = read_config(str(AUTO), {'data_root': str(image_folder), 'train_dataloader.timeout': 'auto'})
    with pytest.raises(ConfigError, match=r"train_dataloader\.timeout must be .* but is 'auto'"):
        check_settings(cfg)


def test_the_log_file_has_the_table_and_the_console_has_less(image_folder, tmp_path, capfd):
    from bootmae_mm import pretrain

    last = pretrain(image_folder, tmp_path / 'run', epochs=2, options=tiny_options())
    console = capfd.readouterr().out
    (log,) = (tmp_path / 'run').rglob('*.log')
    text = log.read_text()
    assert last == tmp_path / 'run/epoch_2.pth'
    for key in set(KEYS) - {'train_cfg.max_epochs'}:
        assert key in text
    assert ' - DEBUG - ' not in text and 'chosen for 8 images, no GPU' in text
    assert 'Hooks will be executed' in text and 'Hooks will be executed' not in console
    assert 'Exp name' in text and 'Exp name' not in console
    assert 'Epoch(train) [2]' in console


def tiny_options() -> dict:
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    return {
        'model.backbone.arch': arch,
        'model.neck.pixel.width': 16,
        'img_size': 32,
        'patch_size': 8,
        'visualizer.vis_backends': [dict(type='bootmae_mm.LocalVisBackend')],
        'default_hooks.curves': None,
        'default_hooks.report': None,
    }
