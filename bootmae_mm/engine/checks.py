"""What is checked before hours of training: weights, data, classes, and that all processes do the same."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import all_gather_object, get_world_size
from mmengine.fileio import load
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bootmae_mm.checkpoints.encoder import encoder_state
from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.values import integer, number

from .label_checks import (
    check_coco_files,
    check_heads,
    check_image_sizes,
    check_label_maps,
    check_zero_labels,
    datasets_of,
)
from .launch import LOADERS
from .sharding import unwrapped

# Options of mmengine's schedulers that are numbers, and are first used when their turn comes, perhaps after days.
SCHEDULER_NUMBERS = {
    *('begin', 'end', 'start_factor', 'end_factor', 'factor', 'gamma', 'power', 'eta_min', 'eta_min_ratio', 'T_max')
}


def check_agreement(text: str, what: str) -> None:
    """Compare something that all processes must have in common; all of them must call.

    Args:
        text: What this process has.
        what: It is.

    Raises:
        ValueError: In all processes, if one differs from the first: which one, and the first line that differs.
    """
    texts = all_gather_object(text)
    for rank, other in enumerate(texts):
        if other != texts[0]:
            lines = texts[0].splitlines(), other.splitlines()
            first, differing = next(
                (pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]), ('one is longer', 'than the other')
            )
            raise ValueError(
                f'process {rank} of {get_world_size()} has {what} other than process 0: '
                f'{differing.strip()!r} instead of {first.strip()!r}'
            )


def check_settings(cfg: Config) -> None:
    """Check numbers of a config that mmengine and torch use without a look at them, or refuse without a name.

    Args:
        cfg: Whole.

    Raises:
        ValueError: On the first that makes no sense, with its key; on a None where the key stands for a number.
    """
    least = {
        'train_cfg': dict(max_epochs=1, max_iters=1, val_begin=0, val_interval=1),
        'optim_wrapper': dict(accumulative_counts=1),
        **{name: dict(batch_size=1, num_workers=0) for name in LOADERS},
    }
    for part, numbers in least.items():
        for key, smallest in numbers.items():
            options = cfg.get(part) or {}
            if key in options:
                integer(options[key], f'{part}.{key}', least=smallest)
    _check_others(cfg)
    schedulers = cfg.get('param_scheduler') or []
    for index, scheduler in enumerate(schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]):
        if not isinstance(scheduler, dict):
            raise ValueError(f'param_scheduler.{index} must be a dict, but is {scheduler!r}')
        for key in SCHEDULER_NUMBERS & set(scheduler):
            if scheduler[key] is not None or key in ('begin', 'end'):  # where mmengine has a default that is None
                number(scheduler[key], f'param_scheduler.{index}.{key}')


def _check_others(cfg: Config) -> None:
    """What is no count: the kind of loop, the seed, timeouts, clipping."""
    by_epoch = (cfg.get('train_cfg') or {}).get('by_epoch', True)
    if not isinstance(by_epoch, bool):
        raise ValueError(f'train_cfg.by_epoch must be True or False, but is {by_epoch!r}')
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None:
        integer(seed, 'randomness.seed', 0, 2**32 - 1)
    for name in LOADERS:
        number((cfg.get(name) or {}).get('timeout', 0), f'{name}.timeout', least=0)
    timeout = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout', 1800)
    if timeout is not None:  # mmengine's default
        number(timeout, 'env_cfg.dist_cfg.timeout', above=0)
    clip = (cfg.get('optim_wrapper') or {}).get('clip_grad')
    if clip is not None and clip.get('max_norm') not in (None, math.inf):  # to log the norm only
        number(clip['max_norm'], 'optim_wrapper.clip_grad.max_norm', above=0)


def check_checkpoint(runner: Runner, path: str, complete: bool = True) -> dict:
    """Compare a checkpoint with the model of a Runner, which itself would load whatever fits and only log the rest.

    Args:
        runner: Not yet running.
        path: Of the checkpoint; one that is not a local file is left to mmengine.
        complete: Whether all weights must be there. Otherwise (a start from other weights) the teacher may be missing,
            and for other models than BootMAE all but one.

    Returns:
        What mmengine noted in the checkpoint beside the weights (``meta``); empty for one that was not read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the checkpoint is unsafe, or does not fit.
    """
    if '://' in path:
        return {}
    checkpoint = load_file(path, mmap=True)
    state = checkpoint.get('state_dict', checkpoint)
    model = unwrapped(runner.model)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    wrong = [
        f'{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}'
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    fitting = sum(name in state for name in wanted)
    if not complete and fitting >= len(wanted) / 10:
        # Pretraining needs all but the teacher, which starts as a copy; a fine-tuned model may have another head.
        if hasattr(model, 'has_momentum_teacher'):
            missing = [name for name in missing if not name.startswith('teacher.')]
        else:
            missing, wrong = [], []
    if not complete and fitting < len(wanted) / 10 and _holds_encoder(path):
        raise ValueError(
            f'{path} holds an encoder, not the whole model that load_from is for; to start from an encoder: '
            '--cfg-options load_from=None model.backbone.init_cfg.type=Pretrained '
            f'model.backbone.init_cfg.checkpoint={path}'
        )
    if missing or wrong:
        raise ValueError(
            f'{path} does not fit the model: {len(missing)} of {len(wanted)} weights are missing {missing[:3]}, '
            f'{len(wrong)} have another shape {wrong[:3]}'
        )
    return checkpoint.get('meta', {})


def _holds_encoder(path: str) -> bool:
    """Whether a file has the embedding and a block of an encoder, in any of the names that are known."""
    try:
        return {'cls_token', 'patch_embed.projection.weight', 'layers.0.attn.qkv.weight'} <= set(encoder_state(path))
    except ValueError:
        return False


def check_loader(runner: Runner) -> None:
    """Check that there is at least one batch to train on, and that all processes have the same data.

    Raises:
        ValueError: If all images together are less than one batch, or all batches less than one step, none has an
            object of the dataset's classes, or a process has another number of images.
    """
    loader = built(runner.cfg.train_dataloader.dataset, lambda: runner.train_dataloader, training=True)
    check_dataset(loader.dataset)
    check_heads(runner.model, loader.batch_size or 2, runner.world_size)
    check_agreement(f'{len(loader.dataset)} images', 'a data set')
    if len(loader) == 0:
        raise ValueError(
            f'{len(loader.dataset)} images are less than one batch of {loader.batch_size} for each of '
            f'{runner.world_size} processes; set train_dataloader.batch_size lower'
        )
    options = runner.cfg.train_cfg
    iterations = options.get('max_iters', options.get('max_epochs', math.inf) * len(loader))
    counts = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    if counts > iterations:
        raise ValueError(
            f'optim_wrapper.accumulative_counts {counts} is more than the {iterations} iterations of the run: there '
            'would be one step, at its end'
        )


def built(dataset: ConfigDict, build: Callable[[], DataLoader], training: bool = False) -> DataLoader:
    """A loader; where its data set cannot be built, one line says why."""
    check_coco_files(dataset, training)
    try:
        return build()
    except ValueError as error:
        _explain_empty_coco(dataset, error)
        _explain_empty_folder(dataset, error)
        raise


def check_dataset(dataset: Dataset) -> None:
    """Check labels of a data set of any task.

    Raises:
        ValueError: If images and labels do not fit each other.
    """
    if hasattr(dataset, 'get_data_info'):
        check_zero_labels(dataset)
        check_label_maps(dataset)
        check_image_sizes(dataset)


def _explain_empty_folder(dataset: ConfigDict, error: ValueError) -> None:
    """Say so if no file has the suffix, at which mmseg ends in the middle of a concatenation."""
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
            raise ValueError(
                f'no file in {folder} ends in {suffix!r} (img_suffix of the dataset); there are {found[:5]}'
            ) from error


def _explain_empty_coco(dataset: ConfigDict, error: ValueError) -> None:
    """Say so if a COCO file has none of the classes, at which mmdet ends in the middle of a concatenation."""
    while 'dataset' in dataset:  # RepeatDataset and the like
        dataset = dataset['dataset']
    path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if path.suffix != '.json' or not path.is_file():
        return
    names = [category['name'] for category in load(path).get('categories', [])]
    with DATASETS.switch_scope_and_registry(None) as registry:
        known = getattr(registry.get(dataset['type']), 'METAINFO', {})
    classes = (dataset.get('metainfo') or known).get('classes', ())
    if not set(classes) & set(names):
        raise ValueError(
            f'none of the {len(classes)} classes of {dataset["type"]} ({", ".join(map(str, list(classes)[:3]))}, ...) '
            f'is a category of {path} ({", ".join(names[:3])}, ...); '
            "set dataset.metainfo=dict(classes=(...)) to the file's names"
        ) from error


def check_classes(model: nn.Module, dataset: Dataset) -> None:
    """Compare the number of classes of a dataset with that of the heads.

    A COCO file without a class of the dataset would silently give images without objects; that is checked too.

    Args:
        model: With or without heads.
        dataset: With or without classes in its ``metainfo``.

    Raises:
        ValueError: If they differ, with both numbers.
    """
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if classes is None:
        return
    name = type(dataset).__name__
    while hasattr(dataset, 'dataset'):  # RepeatDataset and the like
        dataset = dataset.dataset
    categories = getattr(dataset, 'cat_ids', None)
    if categories is not None and len(categories) != len(classes):
        raise ValueError(
            f'only {len(categories)} of the {len(classes)} classes of {name} are categories of {dataset.ann_file}; '
            "set dataset.metainfo=dict(classes=(...)) to the file's names"
        )
    for path, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        # The head of region proposals tells objects from background only.
        if path and isinstance(count, int) and count != len(classes) and not path.endswith('rpn_head'):
            raise ValueError(
                f'{path} has num_classes={count}, but {name} has {len(classes)} classes '
                f'({", ".join(map(str, list(classes)[:3]))}, ...)'
            )


def check_same_classes(classes: Sequence[str] | None, others: Sequence[str] | None, what: str) -> None:
    """Compare the names of classes, whose order gives the labels: folders of other classes would shift them silently.

    Args:
        classes: Of the data set in use; None if it has none.
        others: Of the other data set, or those in a checkpoint; likewise.
        what: Names both in the message.

    Raises:
        ValueError: With the first name that differs.
    """
    if not classes or not others or list(classes) == list(others):
        return
    place = next((i for i, pair in enumerate(zip(classes, others, strict=False)) if pair[0] != pair[1]), None)
    raise ValueError(
        f'{what} do not have the same classes: '
        + (
            f'label {place} is {classes[place]!r} in one and {others[place]!r} in the other'
            if place is not None
            else f'{len(classes)} in one and {len(others)} in the other'
        )
    )


def check_validation(runner: Runner) -> None:
    """Check, before hours of training, that what was learnt can be validated.

    Raises:
        ValueError: If the data sets have other classes, a metric looks at more classes than there are, or a process
            has another number of images.
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
            raise ValueError(
                f'the metric asks for the best {most} of {len(others)} classes; '
                'set val_evaluator.topk=(1,) and test_evaluator.topk=(1,)'
            )
