"""Checks before training: settings, weights, data, classes, and that all processes agree."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
from mmengine.config import Config, ConfigDict
from mmengine.dist import all_gather_object, get_world_size
from mmengine.fileio import load
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from pydantic import BeforeValidator, Field
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bootmae_mm.checkpoints.encoder import encoder_state, misfits
from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.validation import STRICT, ConfigError, Count, Natural, NonNegative, Positive, parse

from .label_checks import (
    coco_problems,
    datasets_of,
    head_problems,
    image_size_problems,
    label_map_problems,
    refuse_first,
    zero_label_problems,
)
from .sharding import unwrapped


class Section(pydantic.BaseModel):
    """Part of a config of which only some keys are checked."""

    model_config = pydantic.ConfigDict({**STRICT, 'extra': 'ignore'})


class TrainCfg(Section):
    by_epoch: bool = True
    max_epochs: Count = 1
    max_iters: Count = 1
    val_begin: Natural = 0
    val_interval: Count = 1


class ClipGrad(Section):
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] | None = None  # inf: log the norm only


class OptimWrapperCfg(Section):
    accumulative_counts: Count = 1
    clip_grad: ClipGrad | None = None


class Loader(Section):
    batch_size: Count = 1
    num_workers: Natural = 0
    timeout: NonNegative = 0


class Scheduler(Section):
    """mmengine uses these numbers when the schedule starts, perhaps after days. Its own default may be None."""

    begin: float = 0
    end: float = 1
    start_factor: float | None = None
    end_factor: float | None = None
    factor: float | None = None
    gamma: float | None = None
    power: float | None = None
    eta_min: float | None = None
    eta_min_ratio: float | None = None
    T_max: float | None = None


class Randomness(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None


class DistCfg(Section):
    timeout: Positive | None = None


class EnvCfg(Section):
    dist_cfg: DistCfg | None = None
    num_threads: Count | None = None


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


class Settings(Section):
    """Keys of a config that mmengine and torch use unchecked, or refuse without naming them."""

    train_cfg: TrainCfg | None = None
    optim_wrapper: OptimWrapperCfg | None = None
    param_scheduler: Annotated[list[Scheduler], BeforeValidator(_as_list)] = []
    train_dataloader: Loader | None = None
    val_dataloader: Loader | None = None
    test_dataloader: Loader | None = None
    randomness: Randomness | None = None
    env_cfg: EnvCfg | None = None


def check_settings(cfg: Config) -> None:
    """Check numbers of a config.

    Args:
        cfg: Full config.

    Raises:
        ConfigError: For the first value that does not fit, with its key.
    """
    parse(Settings, cfg.to_dict(), '')


def check_agreement(text: str, what: str) -> None:
    """Check that all processes have the same; all of them must call.

    Args:
        text: Text that this process has.
        what: Name used in the error message.

    Raises:
        ConfigError: In all processes, if one differs from the first: its rank and the first line that differs.
    """
    texts = all_gather_object(text)
    rank = next((rank for rank, other in enumerate(texts) if other != texts[0]), None)
    if rank is not None:
        lines = zip(texts[0].splitlines(), texts[rank].splitlines(), strict=False)
        first, differing = next((pair for pair in lines if pair[0] != pair[1]), ('one is longer', 'than the other'))
        raise ConfigError(
            f'process {rank} of {get_world_size()} has {what} other than process 0: '
            f'{differing.strip()!r} instead of {first.strip()!r}'
        )


def check_checkpoint(runner: Runner, path: str, complete: bool = True) -> dict:
    """Compare a checkpoint with the model of a Runner, which would load what fits and only log the rest.

    Args:
        runner: Runner, before training starts.
        path: Path of the checkpoint; URLs are left to mmengine.
        complete: Whether all weights must be there. Otherwise (a start from other weights) the teacher may be missing,
            and in models other than BootMAE anything but a tenth of the weights.

    Returns:
        ``meta`` of the checkpoint; empty for a URL.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If the checkpoint is unsafe, or does not fit.
    """
    if '://' in path:
        return {}
    checkpoint = load_file(path, mmap=True)
    state = checkpoint.get('state_dict', checkpoint)
    model = unwrapped(runner.model)
    wanted = model.state_dict()
    missing, wrong = misfits(state, wanted)
    fitting = sum(name in state for name in wanted)
    if not complete and fitting >= len(wanted) / 10:
        # Pretraining needs all weights but the teacher's, a copy at first; a fine-tuned model may have a new head.
        if hasattr(model, 'followers'):
            modules = {id(follower) for follower, _ in model.followers()}
            prefixes = tuple(f'{name}.' for name, module in model.named_modules() if id(module) in modules)
            missing = [name for name in missing if not name.startswith(('teacher.', *prefixes))]
        else:
            missing, wrong = [], []
    if not complete and fitting < len(wanted) / 10 and _holds_encoder(path):
        raise ConfigError(
            f'{path} holds an encoder, but load_from needs the whole model; to start from an encoder: '
            '--cfg-options load_from=None model.backbone.init_cfg.type=Pretrained '
            f'model.backbone.init_cfg.checkpoint={path}'
        )
    if missing or wrong:
        raise ConfigError(
            f'{path} does not fit the model: {len(missing)} of {len(wanted)} weights are missing {missing[:3]}, '
            f'{len(wrong)} have another shape {wrong[:3]}'
        )
    return checkpoint.get('meta', {})


def _holds_encoder(path: str) -> bool:
    """Whether a file has the embedding and a block of an encoder, in any known names."""
    try:
        return {'cls_token', 'patch_embed.projection.weight', 'layers.0.attn.qkv.weight'} <= set(encoder_state(path))
    except ValueError:
        return False


def check_loader(runner: Runner) -> None:
    """Check that there is at least one batch to train on, and that all processes have the same data.

    Raises:
        ConfigError: If there is not one batch of images or not one optimizer step, the labels do not fit, or processes
            have different numbers of images.
    """
    loader = built(runner.cfg.train_dataloader.dataset, lambda: runner.train_dataloader, training=True)
    check_dataset(loader.dataset)
    _check_masks(unwrapped(runner.model), loader.dataset)
    refuse_first(head_problems(runner.model, loader.batch_size or 2, runner.world_size))
    check_agreement(f'{len(loader.dataset)} images', 'a data set')
    options = runner.cfg.train_cfg
    iterations = options.get('max_iters', options.get('max_epochs', math.inf) * len(loader))
    counts = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    if len(loader) == 0 or counts > iterations:
        raise ConfigError(
            f'the run has too few iterations ({len(loader)} per epoch): {len(loader.dataset)} images (data_root, '
            f'max_images) in batches of train_dataloader.batch_size={loader.batch_size} on each of '
            f'{runner.world_size} processes, and '
            f'optim_wrapper.accumulative_counts={counts} iterations per optimizer step'
        )


def _check_masks(model: nn.Module, dataset: Dataset) -> None:
    """Masks on the device take their random order from those of the loader."""
    if getattr(model, 'masking', None) is not None:
        strategy = getattr(getattr(dataset, 'masking', None), 'strategy', 'random')
        if strategy != 'random':
            raise ConfigError(
                f"model.masking needs random masks of the loader: set masking.strategy='random' instead of {strategy!r}"
            )


def built(dataset: ConfigDict, build: Callable[[], DataLoader], training: bool = False) -> DataLoader:
    """Build a loader; if its data set cannot be built, say why in one line."""
    refuse_first(coco_problems(dataset, training))
    try:
        return build()
    except ValueError as error:
        reason = _why_coco_is_empty(dataset) or _why_folder_is_empty(dataset)
        raise (ConfigError(reason) if reason else error) from error


def check_dataset(dataset: Dataset) -> None:
    """Check labels of a data set of any task.

    Raises:
        ConfigError: If images and labels do not fit each other.
    """
    if hasattr(dataset, 'get_data_info'):
        for problems in (zero_label_problems, label_map_problems, image_size_problems):
            refuse_first(problems(dataset))


def _why_folder_is_empty(dataset: ConfigDict) -> str | None:
    """Whether no file has the suffix, which mmseg fails to report."""
    for part in datasets_of(dataset):
        prefix = part.get('data_prefix') or {}
        folder = Path(part.get('data_root') or '', (prefix.get('img_path') or '') if isinstance(prefix, dict) else '')
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(part['type'])
        if kind is None:
            continue
        suffix = part.get('img_suffix') or inspect.signature(kind.__init__).parameters.get('img_suffix')
        suffix = getattr(suffix, 'default', suffix)
        if not isinstance(suffix, str) or not folder.is_dir():
            continue
        found = sorted({path.suffix for path in folder.rglob('*') if path.is_file()})
        if not any(path.name.endswith(suffix) for path in folder.rglob('*')):
            return f'no file in {folder} ends in {suffix!r} (img_suffix of the dataset); there are {found[:5]}'
    return None


def _why_coco_is_empty(dataset: ConfigDict) -> str | None:
    """Whether a COCO file has none of the classes, which mmdet fails to report."""
    while 'dataset' in dataset:  # RepeatDataset and the like
        dataset = dataset['dataset']
    path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if path.suffix != '.json' or not path.is_file():
        return None
    names = [category['name'] for category in load(path).get('categories', [])]
    with DATASETS.switch_scope_and_registry(None) as registry:
        known = getattr(registry.get(dataset['type']), 'METAINFO', {})
    classes = (dataset.get('metainfo') or known).get('classes', ())
    if set(classes) & set(names):
        return None
    return (
        f'none of the {len(classes)} classes of {dataset["type"]} ({", ".join(map(str, list(classes)[:3]))}, ...) '
        f'is a category of {path} ({", ".join(names[:3])}, ...); '
        "set dataset.metainfo=dict(classes=(...)) to the file's names"
    )


def check_classes(model: nn.Module, dataset: Dataset) -> None:
    """Compare the number of classes of a dataset with that of the heads.

    Also check that a COCO file has every class of the dataset; otherwise images would silently have no objects.

    Args:
        model: Model of any task.
        dataset: Dataset, whose ``metainfo`` may hold classes.

    Raises:
        ConfigError: If they differ, with both numbers.
    """
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if classes is None:
        return
    name = type(dataset).__name__
    while hasattr(dataset, 'dataset'):  # RepeatDataset and the like
        dataset = dataset.dataset
    categories = getattr(dataset, 'cat_ids', None)
    if categories is not None and len(categories) != len(classes):
        raise ConfigError(
            f'only {len(categories)} of the {len(classes)} classes of {name} are categories of {dataset.ann_file}; '
            "set dataset.metainfo=dict(classes=(...)) to the file's names"
        )
    for path, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        # The head of region proposals tells objects from background only.
        if path and isinstance(count, int) and count != len(classes) and not path.endswith('rpn_head'):
            raise ConfigError(
                f'{path} has num_classes={count}, but {name} has {len(classes)} classes '
                f'({", ".join(map(str, list(classes)[:3]))}, ...)'
            )


def check_same_classes(classes: Sequence[str] | None, others: Sequence[str] | None, what: str) -> None:
    """Compare the names of classes, whose order defines the labels: a missing folder would shift them silently.

    Args:
        classes: Classes of the data set in use, or None.
        others: Classes of the other data set or of a checkpoint, or None.
        what: Name of both in the error message.

    Raises:
        ConfigError: With the first name that differs.
    """
    if not classes or not others or list(classes) == list(others):
        return
    place = next((i for i, pair in enumerate(zip(classes, others, strict=False)) if pair[0] != pair[1]), None)
    raise ConfigError(
        f'{what} do not have the same classes: '
        + (
            f'label {place} is {classes[place]!r} in one and {others[place]!r} in the other'
            if place is not None
            else f'{len(classes)} in one and {len(others)} in the other'
        )
    )


def check_validation(runner: Runner) -> None:
    """Check, before hours of training, that validation will work.

    Raises:
        ConfigError: If the data sets have different classes, a metric needs more classes than there are, or processes
            have different numbers of images.
    """
    if runner._val_loop is None:
        return
    check_dataset(built(runner.cfg.val_dataloader.dataset, lambda: runner.val_loop.dataloader).dataset)
    loop = runner.val_loop
    check_agreement(f'{len(loop.dataloader.dataset)} images', 'a data set for validation')
    classes, others = (
        getattr(dataset, 'metainfo', {}).get('classes')
        for dataset in (runner.train_dataloader.dataset, loop.dataloader.dataset)
    )
    check_same_classes(classes, others, 'training and validation')
    for metric in loop.evaluator.metrics:
        most = max(getattr(metric, 'topk', None) or [0])
        if others and most > len(others):
            raise ConfigError(
                f'the metric needs the best {most} of {len(others)} classes; '
                'set val_evaluator.topk=(1,) and test_evaluator.topk=(1,)'
            )
