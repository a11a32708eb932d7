"""Any values in a config: a run whose steps are finite, or an error of one line that names an offending key."""

import math
import re
import shutil
import tempfile
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import HOOKS
from mmengine.visualization import Visualizer

from bootmae_mm.engine.launch import chain_of, read_config
from bootmae_mm.engine.training import train as train_config
from bootmae_mm.validation import ConfigError
from tests.conftest import run_config, write_images
from tests.faults.runs import tries

SIDES = [8, 16, 24, 32, 40, 48, 33, 1, 0, -16, 2048, 32.0, 'large', None, True, float('nan'), 10**9]
COUNTS = [1, 2, 3, 4, 7, 0, -1, 2.5, 'two', float('nan'), None, 10**12, 10**400]
WIDTHS = [16, 4, 24, 36, 6, 10, 0, -8, 16.5, 'wide', 10**9]
SHARES = [0.0, 0.25, 0.5, 0.75, 0.99, 1.0, 1e-9, -0.1, 1.5, float('nan'), float('inf'), 'half']
PAIRS = st.one_of(
    st.sampled_from(SIDES),
    st.tuples(st.sampled_from(SIDES[:6]), st.sampled_from(SIDES[:8])).map(list),
    st.lists(st.sampled_from([16, 32]), max_size=3).filter(lambda sides: len(sides) != 2),
)
GRIDS = st.one_of(st.just([4, 6]), st.sampled_from([4, 1, 0, -1, 65, 2.0, 'all', None, [4], [2, 3], [6, 4], [1, 24]]))
BLOCKS = st.sampled_from([0, 1, 2, -1, -3, 3, -4, 99, 1.0, 'last', None])
DECAYS = st.one_of(
    st.sampled_from(SHARES),
    st.lists(st.tuples(st.sampled_from([0, 1, 2, 2, 0.5, -1, 'first']), st.sampled_from(SHARES)).map(list), max_size=3),
    st.just([[0, 0.5], [2, 0.9]]),
)

TARGETS = st.sampled_from(
    [
        dict(type='bootmae_mm.TeacherTarget', top_k=2),
        dict(type='bootmae_mm.TeacherTarget', top_k=9),
        dict(type='bootmae_mm.TeacherTarget', norm='yes'),
        dict(type='bootmae_mm.HOGTarget'),
        dict(type='bootmae_mm.HOGTarget', bins=0),
        dict(type='bootmae_mm.HOGTarget', cells=3),
        dict(type='bootmae_mm.PixelTarget', normalize='layer'),
        dict(type='bootmae_mm.ErrorTarget'),
        dict(type='bootmae_mm.ErrorTarget', branch='feature'),
        dict(type='bootmae_mm.FrozenTarget', encoder=dict(type='TIMMBackbone', model_name='vit'), checkpoint='x'),
        dict(type='bootmae_mm.FrozenTarget', encoder=dict(type='ResNet', depth=18), checkpoint='x'),
        dict(type='bootmae_mm.FrozenTarget', encoder=dict(arch='b'), checkpoint='x'),
        dict(type='bootmae_mm.FrozenTarget'),
        dict(type='bootmae_mm.CodeTarget', tokenizer=dict(type='ResNet', depth=18), checkpoint='x'),
        dict(type='bootmae_mm.ClusterTarget', clusters=5),
        dict(type='bootmae_mm.PatchMSE'),
        dict(type='bootmae_mm.NoTarget'),
        dict(),
        None,
        'pixels',
    ]
)
LOSSES = st.sampled_from(
    [
        dict(type='bootmae_mm.PatchMSE'),
        dict(type='bootmae_mm.PatchSmoothL1', beta=0.5),
        dict(type='bootmae_mm.PatchSmoothL1', beta=0),
        dict(type='bootmae_mm.PatchCosine'),
        dict(type='bootmae_mm.PatchCrossEntropy'),
        dict(type='bootmae_mm.PatchRanking'),
        dict(type='bootmae_mm.PixelTarget'),
        dict(type='CrossEntropyLoss'),
        dict(),
        None,
        'mse',
    ]
)
DEVICE_MASKS = st.sampled_from(
    [
        dict(type='bootmae_mm.AttentionMasking'),
        dict(type='bootmae_mm.AttentionMasking', strategy='hint'),
        dict(type='bootmae_mm.AttentionMasking', strategy='hint', hint_share=1.0, shown_share=1.0),
        dict(type='bootmae_mm.AttentionMasking', strategy='best'),
        dict(type='bootmae_mm.PredictedErrorMasking'),
        dict(type='bootmae_mm.MaskSampling'),
        dict(strategy='high'),
        'high',
    ]
)
MASKS = st.sampled_from(
    [f'bootmae_mm.{name}' for name in ('MaskSampling', 'InverseBlockSampling', 'UniformSampling', 'RandomFlip', 'None')]
)

# Values that a user may give to --cfg-options, good ones and bad ones.
OPTIONS = {
    'model.backbone.img_size': PAIRS,
    'model.backbone.patch_size': st.sampled_from([8, 4, 16, *SIDES]),
    'model.backbone.arch.embed_dims': st.sampled_from([24, 12, 48, *WIDTHS]),
    'model.backbone.arch.num_layers': st.sampled_from(COUNTS),
    'model.backbone.arch.num_heads': st.sampled_from(COUNTS),
    'model.backbone.arch.feedforward_channels': st.sampled_from(WIDTHS),
    'model.backbone.out_indices': st.one_of(BLOCKS, st.lists(BLOCKS, max_size=3)),
    'model.backbone.frozen_stages': BLOCKS,
    'model.backbone.drop_path_rate': st.sampled_from(SHARES),
    'model.neck.pixel.width': st.sampled_from(WIDTHS),
    'model.neck.pixel.depth': st.sampled_from(COUNTS),
    'model.neck.pixel.num_heads': st.sampled_from(COUNTS),
    'model.neck.pixel.context_block': BLOCKS,
    'model.neck.pixel.mlp_ratio': st.sampled_from([4.0, 0.5, 0.01, 2, 0, -1.0, 'big', float('nan')]),
    'model.neck.feature.width': st.sampled_from(WIDTHS),
    'model.neck.feature.depth': st.sampled_from(COUNTS),
    'model.neck.feature.num_heads': st.sampled_from(COUNTS),
    'model.neck.feature.context_block': BLOCKS,
    'model.pixel_head.normalize': st.sampled_from(['channel', 'patch', 'none', 'layer', 1, None]),
    'model.feature_head.eps': st.sampled_from([1e-6, 1e-3, 0.0, -1.0, 'small', float('nan')]),
    'model.feature_head.target': TARGETS,
    'model.feature_head.loss': LOSSES,
    'model.pixel_head.loss': LOSSES,
    'model.feature_head.normalize': st.sampled_from([True, False, 1, 'no']),
    'model.feature_head.type': st.sampled_from(
        [f'bootmae_mm.{name}' for name in ('BootMAEFeatureHead', 'BootMAEPixelHead', 'ClusterHead', 'BootMAENeck')]
    ),
    'model.masking': DEVICE_MASKS,
    'model.neck.extra': st.sampled_from([dict(), dict(width=16), None, 3]),
    'model.extra_head': st.sampled_from([dict(type='bootmae_mm.BootMAEHead'), dict(), None, 'none']),
    'model.extra_weight': st.sampled_from([1.0, -1.0, 'one']),
    'default_hooks.feature_weight.branch': st.sampled_from(['feature', 'pixel', 'featrue', 3]),
    'train_dataloader.dataset.masking.type': MASKS,
    'model.pixel_weight': st.sampled_from([1.0, 0, 0.5, -1.0, float('nan'), float('inf'), 'one']),
    'train_dataloader.dataset.masking.grid_size': GRIDS,
    'train_dataloader.dataset.masking.img_size': PAIRS,
    'train_dataloader.dataset.masking.patch_size': st.sampled_from([8, 4, 16, *SIDES]),
    'train_dataloader.dataset.masking.ratio': st.sampled_from(SHARES),
    'train_dataloader.dataset.masking.strategy': st.sampled_from(['mix', 'random', 'block', 'blocks', 3]),
    'train_dataloader.dataset.masking.num_blocked': st.sampled_from([15, 1, 23, 24, 0, -1, 2.5, 'all']),
    'train_dataloader.dataset.masking.min_block': st.sampled_from([2, 1, 6, 24, 30, 0, -1, 2.5, 'one']),
    'train_dataloader.dataset.masking.max_block': st.sampled_from([6, 2, 1, 24, 100, 0, -1, 2.5, 'all', 10**30]),
    'train_dataloader.dataset.masking.min_aspect': st.sampled_from(SHARES),
    'train_dataloader.dataset.masking.roll': st.sampled_from(COUNTS),
    'train_dataloader.dataset.masking.per_image': st.sampled_from([1, 2, 0, -1, 1.5, 'one', 10**9]),
    'train_dataloader.batch_size': st.sampled_from([1, 4, 8, 9, 0, -1, 2.5, 'all', None]),
    'optim_wrapper.accumulative_counts': st.sampled_from(COUNTS),
    'optim_wrapper.optimizer.lr': st.sampled_from([1e-3, 0.0, 1.0, -1e-3, float('nan'), 'high']),
    'optim_wrapper.optimizer.weight_decay': st.sampled_from([0.05, 0.0, -0.1, float('nan'), 'some']),
    'optim_wrapper.optimizer.betas': st.sampled_from([[0.9, 0.99], [0.9], [1.5, 2], 0.9, 'two', [0.9, None]]),
    'param_scheduler.1.eta_min': st.sampled_from([1e-5, 0.0, 'low', float('nan')]),
    'model.backbone.in_channels': st.sampled_from([3, 1, 0, 'rgb', None]),
    'model.backbone.final_norm': st.sampled_from([True, False]),
    'default_hooks.ema.decay': DECAYS,
    'default_hooks.feature_weight.weight': st.sampled_from([1.0, 0, 0.7, -1.0, float('nan'), 'one']),
    'default_hooks.feature_weight.ramp': st.sampled_from(SHARES),
    'default_hooks.checkpoint.interval': st.sampled_from([*COUNTS, 'never']),
    'default_hooks.checkpoint.by_epoch': st.sampled_from([True, False, 'no']),
    'default_hooks.checkpoint.max_keep_ckpts': st.sampled_from(COUNTS),
    'default_hooks.checkpoint.keep_every': st.sampled_from(COUNTS),
    'default_hooks.interruption.grace': st.sampled_from([1, 0.5, 0, -1, 'short', float('nan')]),
    'default_hooks.runtime_info.history': st.sampled_from(COUNTS),
    'default_hooks.runtime_info.max_skipped': st.sampled_from(COUNTS),
    'default_hooks.runtime_info.min_target_std': st.sampled_from(SHARES),
    'train_dataloader.dataset.max_unreadable': st.sampled_from(SHARES),
    'train_dataloader.dataset.max_images': st.sampled_from([4, 8, 3, 0, -3, 2.5, 'all', None]),
    'train_dataloader.num_workers': st.sampled_from([0, 1, -1, 1.5, 'few', None]),
    'train_cfg.max_epochs': st.sampled_from([2, 3, 5, 1, 0, -1, 2.5, 'all', None, 10**12, 10**400]),
}


RESIZED = st.sampled_from([(32, 48, 8), (32, 32, 8), (48, 16, 4), (64, 64, 16), (40, 40, 8), (33, 48, 8), (32, 48, 5)])


@st.composite
def changes(draw):
    """Options for one to four keys; in a third of the cases, image size, patch size and grid change together, too."""
    options = {}
    if draw(st.integers(0, 2)) == 0:
        height, width, patch = draw(RESIZED)
        options = {
            'model.backbone.img_size': [height, width],
            'model.backbone.patch_size': patch,
            'train_dataloader.dataset.masking.grid_size': [height // patch, width // patch],
            'train_dataloader.dataset.pipeline.1.scale': [height, width],
        }
    for key in draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=0 if options else 1, max_size=4, unique=True)):
        options[key] = draw(OPTIONS[key])
    return options


class Enough(Exception):
    """Ends a run after the steps that are checked."""


@HOOKS.register_module()
class LookAtSteps(Hook):
    """Records the losses of the first three steps, then ends the run."""

    losses: list[float] = []

    def before_train(self, runner):
        self.losses.clear()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))
        assert all(parameter.isfinite().all() for parameter in runner.model.parameters())
        if len(self.losses) == 3:
            raise Enough


def forget_runs():
    """Drop the logger, visualizer and history of every Runner, which mmengine keeps until the process ends."""
    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            handler.close()
    for kind in (MMLogger, MessageHub, Visualizer):
        kind._instance_dict.clear()


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('any') / 'images', 8)


def train(images: Path, options: dict) -> list[float]:
    """Train for three steps as tools/train.py does; return the losses."""
    folder = Path(tempfile.mkdtemp(prefix='any'))
    quiet = {
        'default_hooks.curves': None,
        'default_hooks.reconstruction': None,
        'default_hooks.logger.interval': 1000,
        'custom_hooks': [dict(type='LookAtSteps')],
        'log_level': 'ERROR',
    }
    try:
        config = run_config(folder / 'config.py', images, epochs=5)
        cfg = read_config(str(config), {**quiet, **options}, str(folder / 'work'))
        train_config(cfg)
    except Enough:
        pass
    finally:
        forget_runs()
        shutil.rmtree(folder)
    return LookAtSteps.losses


def check(images: Path, options: dict) -> str:
    """Train with one config; return whether it was refused or trained."""
    try:
        losses = train(images, options)
    except ValueError as error:
        message = str(error).strip().splitlines()[-1]
        names = {part for key in options for part in key.split('.')[-1:]}
        assert any(re.search(rf'\b{name}\b', message) for name in names), f'{message!r} names none of {sorted(names)}'
        is_config_error = any(isinstance(link, ConfigError) for link in chain_of(error))
        assert is_config_error, f'{message!r} is not a ConfigError: {traceback.format_exc()}'
        return 'refused'
    assert losses and all(map(math.isfinite, losses))
    return 'trained'


@pytest.mark.fault
@tries(1, 40)
def test_any_values_in_a_config(images, number):
    """Fifty configs per number."""
    outcomes = {'refused': 0, 'trained': 0}

    @seed(number)
    @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(options=changes())
    def look(options):
        outcomes[check(images, options)] += 1

    look()
    assert min(outcomes.values()) >= 5, outcomes  # both happen


@pytest.mark.fault
@pytest.mark.parametrize(
    ('options', 'outcome'),
    [
        ({'train_cfg.max_epochs': 10**400}, 'refused'),
        ({'optim_wrapper.optimizer.lr': 0.0}, 'trained'),
        ({'train_dataloader.dataset.max_images': 3}, 'refused'),
    ],
    ids=['max_epochs', 'lr', 'max_images'],
)
def test_values_that_were_counterexamples(images, options, outcome):
    assert check(images, options) == outcome
