"""An epoch that was interrupted goes on where it was, and the next ones are whole."""

import pytest
import torch

from tests.engine.test_checkpoint import make_runner

BY_ITERATION = {
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
}


def seen(runner):
    """Names of the images of each iteration, as the run goes."""
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
    """Four iterations an epoch: the same batches, and the same weights."""
    options = {**BY_ITERATION}
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=3, workers=workers))
    assert len(whole) == 12
    wanted = torch.load(tmp_path / 'work/iter_12.pth', weights_only=False)['state_dict']
    options |= {'load_from': str(tmp_path / f'work/iter_{iteration}.pth'), 'resume': True}
    runner = make_runner(tmp_path, image_folder, options, batch_size=2, epochs=3, workers=workers)
    assert seen(runner) == whole[iteration:]
    assert all(torch.equal(value, wanted[name]) for name, value in runner.model.state_dict().items())


def test_another_sampler_is_skipped_through(tmp_path, image_folder):
    """It has no start to set; its batches are loaded and dropped."""
    sampler = {'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True, seed=3)}
    options = {**BY_ITERATION, **sampler}
    # Crops differ from run to run, for no seeds come from this sampler; so the middle of each image, whole.
    crop = dict(type='CenterCrop', crop_size=(48, 32))
    options['train_dataloader.dataset.pipeline'] = [
        dict(type='bootmae_mm.LoadRGB'),
        crop,
        dict(type='bootmae_mm.PackImage'),
    ]
    whole = seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=2))
    options |= {'load_from': str(tmp_path / 'work/iter_3.pth'), 'resume': True}
    assert seen(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=2)) == whole[3:]
