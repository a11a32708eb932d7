"""An interrupted epoch resumes at the next batch; the epochs after it are complete."""

import multiprocessing

import pytest
import torch
from mmengine.hooks import Hook

from bootmae_mm.data import ImageFolder, LoadImage
from bootmae_mm.engine.launch import prepare, read_config
from bootmae_mm.engine.runner import Runner
from tests.conftest import run_config
from tests.engine.test_checkpoint import make_runner

BY_ITERATION = {
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
}


def seen(runner):
    """Train; return the mean pixel of each image, by iteration."""
    batches = []
    step = runner.model.train_step

    def train_step(data, optim_wrapper):
        batches.append([round(float(image.float().mean()), 3) for image in data['inputs']])
        return step(data, optim_wrapper)

    runner.model.train_step = train_step
    runner.train()
    return batches


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('iteration', [3, 4])
def test_resumed_inside_and_at_the_end_of_an_epoch(tmp_path, image_folder, iteration, workers):
    """Four iterations per epoch: the same batches and the same weights."""
    options = {**BY_ITERATION}
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=3, workers=workers))
    assert len(whole) == 12
    wanted = torch.load(tmp_path / 'work/iter_12.pth', weights_only=False)['state_dict']
    options |= {'load_from': str(tmp_path / f'work/iter_{iteration}.pth'), 'resume': True}
    runner = make_runner(tmp_path, image_folder, options, batch_size=2, epochs=3, workers=workers)
    assert seen(runner) == whole[iteration:]
    assert all(torch.equal(value, wanted[name]) for name, value in runner.model.state_dict().items())


@pytest.mark.parametrize('by_epoch', [True, False])
def test_no_worker_outlives_a_run_even_one_that_fails(tmp_path, image_folder, by_epoch):
    """The garbage collector would wait five seconds for each."""

    class Fail(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            assert len(multiprocessing.active_children()) == 2
            raise RuntimeError('stop here')

    options = {} if by_epoch else by_iteration()
    runner = make_runner(tmp_path, image_folder, options, batch_size=2, epochs=1, workers=2)
    runner.register_hook(Fail())
    with pytest.raises(RuntimeError, match='stop here') as kept:
        runner.train()
    assert not multiprocessing.active_children() and kept.tb


def test_a_run_with_another_sampler_resumes_mid_epoch(tmp_path, image_folder):
    """The batches already seen are skipped with any sampler."""
    sampler = {'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True, seed=3)}
    options = {**BY_ITERATION, **sampler}
    # This sampler gives no seeds, so random crops would differ from run to run.
    crop = dict(type='CenterCrop', crop_size=(48, 32))
    options['train_dataloader.dataset.pipeline'] = [
        dict(type='bootmae_mm.LoadImage'),
        crop,
        dict(type='bootmae_mm.PackImage'),
    ]
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=2))
    options |= {'load_from': str(tmp_path / 'work/iter_3.pth'), 'resume': True}
    assert seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=2)) == whole[3:]


def by_iteration(**changes):
    return {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=11), **BY_ITERATION, **changes}


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_by_iterations_resumes_exactly_and_loads_nothing_twice(tmp_path, image_folder, workers):
    """Four batches per epoch, eleven iterations; the run resumes in the middle of the second epoch."""
    whole = seen(make_runner(tmp_path, image_folder, by_iteration(), batch_size=2, workers=workers))
    assert len(whole) == 11 and sorted(sum(whole[:4], [])) != sorted(sum(whole[4:8], []))  # other crops
    wanted = torch.load(tmp_path / 'work/iter_11.pth', weights_only=False)['state_dict']
    options = by_iteration(load_from=str(tmp_path / 'work/iter_6.pth'), resume=True)
    runner = make_runner(tmp_path, image_folder, options, batch_size=2, workers=workers)
    dataset = runner.train_dataloader.dataset
    assert seen(runner) == whole[6:]
    assert all(torch.equal(value, wanted[name]) for name, value in runner.model.state_dict().items())
    if not workers:  # two batches of the second epoch, three of the third, and those drawn by ReconstructionHook
        assert int(dataset._seen.sum()) <= 8


def test_an_endless_sampler_is_skipped_without_loading(tmp_path, image_folder, monkeypatch):
    options = by_iteration(**{'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True, seed=3)})
    options['train_dataloader.dataset.pipeline'] = [
        dict(type='bootmae_mm.LoadImage'),
        dict(type='CenterCrop', crop_size=(48, 32)),
        dict(type='bootmae_mm.PackImage'),
    ]
    options['default_hooks.reconstruction'] = None
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2))
    options |= {'load_from': str(tmp_path / 'work/iter_9.pth'), 'resume': True}
    runner = make_runner(tmp_path, image_folder, options, batch_size=2)
    loads = []
    transform = LoadImage.transform
    monkeypatch.setattr(LoadImage, 'transform', lambda self, results: loads.append(1) or transform(self, results))
    assert seen(runner) == whole[9:] and len(loads) == 4


def test_intervals_of_checkpoints_and_pictures_are_scaled_in_a_run_by_iterations(tmp_path, image_folder):
    """A config with ten checkpoints and two pictures in 100 epochs writes as many in 20 iterations."""
    config = run_config(tmp_path / 'config.py', image_folder, epochs=100)
    config.write_text(
        config.read_text()
        .replace('interval=1, max_keep', 'interval=10, max_keep')
        .replace('interval=2, n', 'interval=50, n')
    )
    options = {'train_cfg.by_epoch': False, 'train_cfg.max_iters': 20}
    cfg = read_config(str(config), options, str(tmp_path / 'work'))
    cfg.experiment_name = tmp_path.name
    prepare(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert len(list((tmp_path / 'work').glob('iter_*.pth'))) == 10
    assert len(list((tmp_path / 'work').glob('*/vis_data/vis_image/reconstruction_*.png'))) == 2
    lr = runner.optim_wrapper.get_lr()['lr'][0]
    assert lr == pytest.approx(1e-5, rel=0.7)  # near the end of the schedule, not in its warm-up


@pytest.mark.parametrize(
    'wrapper',
    [
        lambda dataset: dict(type='RepeatDataset', dataset=dataset, times=2),
        lambda dataset: dict(type='ConcatDataset', datasets=[dataset, dataset]),
        lambda dataset: dict(
            type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dataset, dataset])
        ),
    ],
)
def test_wrapped_datasets_keep_the_seeds(tmp_path, image_folder, wrapper):
    config = run_config(tmp_path / 'config.py', image_folder, batch_size=2)
    inner = read_config(str(config)).train_dataloader.dataset
    options = {**BY_ITERATION, 'train_dataloader.dataset': {'_delete_': True, **wrapper(inner)}}
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=1))
    options |= {'load_from': str(tmp_path / 'work/iter_3.pth'), 'resume': True}
    assert seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=1)) == whole[3:]


def test_a_class_balanced_dataset_keeps_the_seeds(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr(ImageFolder, 'get_cat_ids', lambda self, idx: [int(idx) % 3], raising=False)
    monkeypatch.setattr(ImageFolder, 'METAINFO', dict(classes=('a', 'b', 'c')))
    config = run_config(tmp_path / 'config.py', image_folder, batch_size=2)
    inner = read_config(str(config)).train_dataloader.dataset
    wrapper = dict(_delete_=True, type='ClassBalancedDataset', oversample_thr=0.4, dataset=inner)
    options = {**BY_ITERATION, 'train_dataloader.dataset': wrapper}
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=1))
    options |= {'load_from': str(tmp_path / 'work/iter_3.pth'), 'resume': True}
    assert seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=1)) == whole[3:]
