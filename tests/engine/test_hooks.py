"""The hooks in runs of mmengine's Runner."""

import json
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

from bootmae_mm.engine.hooks import BootMAEEMAHook, FeatureWeightHook, MaskingScheduleHook, ReconstructionHook
from bootmae_mm.engine.hooks.teacher import ema_update
from bootmae_mm.engine.launch import prepare, read_config
from bootmae_mm.engine.runner import Runner
from bootmae_mm.engine.schedules import feature_weight, piecewise_linear
from bootmae_mm.models import BootMAEDataPreprocessor
from bootmae_mm.validation import ConfigError
from bootmae_mm.visualization import read_scalars
from tests.conftest import build, run_config, tiny_config


def make_runner(tmp_path, image_folder, options=None, **changes):
    config = run_config(tmp_path / 'config.py', image_folder, **changes)
    cfg = read_config(str(config), options or {}, str(tmp_path / 'work'))
    cfg.experiment_name = tmp_path.name
    prepare(cfg)
    return Runner.from_cfg(cfg)


class Witness(Hook):
    """Computes the expected teacher from the student after each optimizer step."""

    priority = 'HIGHEST'  # before the EMA hook

    def __init__(self):
        self.steps, self.log = 0, []

    def before_train(self, runner):
        self.teacher = {k: v.clone() for k, v in runner.model.backbone.state_dict().items()}
        runner.optim_wrapper.optimizer.register_step_post_hook(self.stepped)
        self.model = runner.model
        self.fresh = False

    def stepped(self, *_):
        self.steps += 1
        self.fresh = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        epoch = runner.epoch
        if self.fresh:
            decay = piecewise_linear(epoch, [(0, 0.5), (2, 0.9)])
            for name, value in self.model.backbone.state_dict().items():
                self.teacher[name] = decay * self.teacher[name] + (1 - decay) * value
            self.fresh = False
        self.log.append((epoch, self.model.feature_weight))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_teacher_moves_after_optimizer_steps_only(tmp_path, image_folder, accumulate):
    runner = make_runner(tmp_path, image_folder, accumulate=accumulate)
    witness = Witness()
    runner.register_hook(witness)
    runner.train()
    assert witness.steps == 6 / accumulate  # 8 images, batches of 4, 3 epochs
    teacher = runner.model.teacher.state_dict()
    for name, value in witness.teacher.items():
        torch.testing.assert_close(teacher[name], value, rtol=1e-5, atol=1e-7)
    assert not torch.equal(teacher['layers.0.attn.qkv.weight'], runner.model.backbone.layers[0].attn.qkv.weight)
    for epoch, weight in witness.log:
        assert weight == pytest.approx(feature_weight(epoch, 3, 0.7, 0.5))
    # The checkpoint holds student and teacher.
    state = torch.load(tmp_path / 'work/epoch_3.pth', weights_only=True)['state_dict']
    assert torch.equal(state['teacher.cls_token'], runner.model.teacher.cls_token)


def test_teacher_is_a_copy_of_loaded_weights_at_a_fresh_start(tmp_path, image_folder):
    source = build(tiny_config())
    state = {k: v for k, v in source.state_dict().items() if not k.startswith('teacher.')}
    torch.save(dict(state_dict=state), tmp_path / 'student.pth')
    runner = make_runner(tmp_path, image_folder, dict(load_from=str(tmp_path / 'student.pth')), epochs=2)
    seen = {}

    class Look(Hook):
        priority = 'LOW'

        def before_train(self, runner):
            seen.update({k: v.clone() for k, v in runner.model.teacher.state_dict().items()})

    runner.register_hook(Look())
    runner.train()
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(seen[name], value), name


def test_ema_update_is_exact_where_both_are_equal():
    teacher, student = (
        [torch.tensor([1.0, 2.0]), torch.tensor([[0.3]])],
        [torch.tensor([3.0, 2.0]), torch.tensor([[0.3]])],
    )
    ema_update(teacher, student, 0.9)
    torch.testing.assert_close(teacher[0], torch.tensor([1.2, 2.0]))
    assert torch.equal(teacher[1], student[1])


def resumed(tmp_path, image_folder, workers, accumulate):
    whole = make_runner(tmp_path, image_folder, workers=workers, accumulate=accumulate)
    whole.train()
    (tmp_path / 'work/epoch_1.pth').rename(tmp_path / 'stopped.pth')
    runner = make_runner(
        tmp_path,
        image_folder,
        dict(resume=True, load_from=str(tmp_path / 'stopped.pth')),
        workers=workers,
        accumulate=accumulate,
    )
    torch.manual_seed(1234)  # random numbers must not matter
    runner.train()
    return whole, runner


@pytest.mark.parametrize(('workers', 'accumulate'), [(0, 1), (2, 2)])
def test_resumed_run_is_bit_identical_to_the_uninterrupted_one(tmp_path, image_folder, workers, accumulate):
    whole, runner = resumed(tmp_path, image_folder, workers, accumulate)
    assert runner.iter == whole.iter == 6
    ours, theirs = runner.model.state_dict(), whole.model.state_dict()
    assert any(name.startswith('teacher.') for name in ours)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    a, b = runner.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict()
    assert a['param_groups'] == b['param_groups']
    for index, state in b['state'].items():
        for key, value in state.items():
            assert torch.equal(a['state'][index][key], value), (index, key)
    for one, other in zip(runner.param_schedulers, whole.param_schedulers, strict=True):
        assert one.state_dict() == other.state_dict()


def test_iteration_based_run_shorter_than_an_epoch(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder, batch_size=2)
    cfg = read_config(str(config), {}, str(tmp_path / 'work'))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=100)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.log_processor = dict(by_epoch=False)
    cfg.experiment_name = tmp_path.name
    prepare(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert [entry['step'] for entry in read_scalars(tmp_path / 'work')] == [1, 2, 3]
    assert (tmp_path / 'work/iter_2.pth').exists()
    assert len(list((tmp_path / 'work').glob('*/vis_data/vis_image/reconstruction_*'))) == 1
    assert runner.model.feature_weight == 0.7  # (0 + 1) / (0.5 * 3 / 4) is more than 1


def test_pictures_do_not_change_the_random_state(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.model.init_weights()
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    wanted = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    ReconstructionHook()._draw(runner, step=1)
    assert wanted == (random.random(), np.random.rand(), torch.rand(1))


def test_pictures_during_training(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, summary=True)
    runner.train()
    pictures = sorted(path.name for path in (tmp_path / 'work').glob('*/vis_data/vis_image/*'))
    wanted = ['features_2.png', 'features_3.png', 'reconstruction_2.png', 'reconstruction_3.png']
    assert pictures == wanted
    assert (tmp_path / 'work/report.html').read_text().count('<img') == 5  # and the curves
    assert (tmp_path / 'work/curves.png').stat().st_size > 10_000
    assert runner.model.training


def test_curves_that_cannot_be_written_do_not_end_the_run(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, summary=True)
    (tmp_path / 'work/curves.png').mkdir()
    runner.train()
    assert (tmp_path / 'work/epoch_3.pth').is_file()


def test_evaluation_on_held_out_images(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.model.init_weights()
    metrics = runner.test()
    assert set(metrics) >= {'pretrain/pixel_loss', 'pretrain/feature_loss'}
    batches = list(runner.test_dataloader)
    losses = [
        runner.model(**runner.model.data_preprocessor(batch), mode='loss')['pixel_loss'].item() for batch in batches
    ]
    assert metrics['pretrain/pixel_loss'] == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ('hook', 'options', 'message'),
    [
        (BootMAEEMAHook, dict(decay=[(0, 1.2)]), r'^decay\.0\.1 must be less than or equal to 1, but is 1.2$'),
        (BootMAEEMAHook, dict(decay=[(5, 0.5), (3, 0.6)]), '^(decay|milestones).*increasing epochs'),
        (FeatureWeightHook, dict(weight=-1), '^weight must be greater than or equal to 0, but is -1$'),
        (ReconstructionHook, dict(interval=0), '^interval must be greater than or equal to 1, but is 0$'),
    ],
)
def test_impossible_options(hook, options, message):
    with pytest.raises(ConfigError, match=message):
        hook(**options)


def test_hooks_do_nothing_without_a_momentum_teacher(tmp_path, image_folder):
    config = tiny_config(feature_head=None)
    config['neck']['feature'] = None
    runner = make_runner(tmp_path, image_folder, model=config, epochs=2)
    runner.train()
    entry = read_scalars(tmp_path / 'work')[-1]
    assert 'ema_decay' not in entry and 'feature_weight' not in entry
    assert json.dumps(entry)


def channels_config(tmp_path, channels):
    """Config of a run on images with 1 or 4 channels, and their folder."""
    from PIL import Image

    folder = tmp_path / 'images'
    folder.mkdir()
    rng = np.random.RandomState(0)
    for index in range(8):
        img = rng.randint(0, 255, (40, 60, channels)).astype(np.uint8)
        Image.fromarray(img.squeeze()).save(folder / f'{index}.png')
    model = tiny_config()
    model['backbone']['in_channels'] = channels
    model['data_preprocessor'] |= dict(mean=[127.5] * channels, std=[127.5] * channels)
    config = run_config(tmp_path / 'config.py', folder, model=model, epochs=2)
    config.write_text(config.read_text().replace("LoadImage')", f"LoadImage', channels={channels})"))
    return config, folder


@pytest.mark.parametrize('channels', [1, 4])
def test_runs_on_other_channels_draw_pictures(tmp_path, channels, run_tool):
    config, folder = channels_config(tmp_path, channels)
    status, _, message = run_tool('train.py', config, '--work-dir', tmp_path / 'work')
    assert status == 0, message
    assert list((tmp_path / 'work').glob('*/vis_data/vis_image/reconstruction_*.png'))
    arguments = [tmp_path / 'work/epoch_2.pth', folder, '--out', tmp_path / 'out.png']
    status, out, message = run_tool('reconstruct.py', *arguments)
    assert status == 0, message
    assert '8 images' in out and (tmp_path / 'out.png').is_file()


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(tmp_path, image_folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('no font')

    monkeypatch.setattr('bootmae_mm.engine.hooks.pictures.draw_panels', fail)
    runner = make_runner(tmp_path, image_folder, epochs=2)
    runner.train()
    assert (tmp_path / 'work/epoch_2.pth').is_file() and runner.model.training
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'no picture could be drawn, training continues: RuntimeError: no font' in log


def test_images_with_other_channels_than_the_preprocessor():
    preprocessor = BootMAEDataPreprocessor()
    with pytest.raises(ConfigError, match=r'mean and std .* have 3 channels, but are \(2, 4, 8, 8\)'):
        preprocessor(dict(inputs=torch.zeros(2, 4, 8, 8, dtype=torch.uint8)))


def test_sixteen_bits_are_flipped_and_normalized():
    values = torch.arange(8, dtype=torch.float32).view(1, 1, 1, 8) * 1000
    preprocessor = BootMAEDataPreprocessor(mean=[0.0], std=[1000.0])
    batch = dict(inputs=values.to(torch.uint16), flip=torch.tensor([True]))
    assert preprocessor(batch)['inputs'].flatten().tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_decay_and_ramp_of_a_run_by_iterations(tmp_path, image_folder):
    """Both change in every iteration, with positions in iterations: four batches per epoch, six iterations."""
    options = {
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=6),
        'default_hooks.ema.decay': [(0, 0.5), (4, 0.9)],
        'default_hooks.feature_weight.weight': 1.0,
    }
    runner = make_runner(tmp_path, image_folder, options, batch_size=2)
    found = []

    class Look(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            ema = next(hook for hook in runner.hooks if isinstance(hook, BootMAEEMAHook))
            found.append((round(ema.decay, 6), round(runner.model.feature_weight, 6)))

    runner.register_hook(Look())
    runner.train()
    assert found == [(0.5, 0.333333), (0.6, 0.666667), (0.7, 1.0), (0.8, 1.0), (0.9, 1.0), (0.9, 1.0)]


class OneRunner:
    """What the hooks of schedules ask of a Runner."""

    def __init__(self, model, max_iters, batches):
        self.model, self.max_iters, self.train_dataloader, self.iter = model, max_iters, range(batches), 0
        self.message_hub = self

    def update_scalar(self, name, value):
        self.logged = name, value


def test_hardness_of_masks_rises_to_its_end():
    config = tiny_config(masking=dict(type='bootmae_mm.PredictedErrorMasking'))
    config['neck']['difficulty'] = dict(width=8, context_block=None)
    target, loss = dict(type='bootmae_mm.ErrorTarget'), dict(type='bootmae_mm.PatchRanking')
    config['difficulty_head'] = dict(type='bootmae_mm.BootMAEHead', target=target, loss=loss)
    runner = OneRunner(build(config), max_iters=10, batches=4)  # two and a half epochs
    hook = MaskingScheduleHook(end=0.5)
    hook.before_train(runner)
    shares = []
    for runner.iter in range(10):
        hook.before_train_iter(runner, 0)
        shares.append(runner.model.masking.share)
    assert shares == pytest.approx([0.2] * 4 + [0.4] * 4 + [0.5] * 2)
    assert runner.logged == ('train/masking_share', 0.5)


def test_hooks_without_their_part_are_refused():
    runner = OneRunner(build(tiny_config()), 10, 4)
    with pytest.raises(ConfigError, match='MaskingScheduleHook needs a PredictedErrorMasking in model.masking'):
        MaskingScheduleHook().before_train(runner)
    with pytest.raises(ConfigError, match=r"branch 'typo' must be one of the branches \['pixel', 'feature'\]"):
        FeatureWeightHook(branch='typo').before_train(runner)
    FeatureWeightHook(branch='pixel').before_train(runner)
