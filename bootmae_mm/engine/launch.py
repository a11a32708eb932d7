"""From a command line to a Runner: what tools/train.py and tools/test.py share."""

from __future__ import annotations

import atexit
import difflib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import load
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from bootmae_mm.interop.checkpoint import allow_mmengine_checkpoints, load_file

from .hooks.teacher import unwrapped

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
UNREADABLE = 'unreadable_images.txt'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')


def read_config(path: str, options: dict, work_dir: str | None = None, launcher: str = 'none') -> Config:
    """Read a config and apply the command line to it.

    ``data_root`` in ``options`` reaches every dataset that had the config's ``data_root``; mmengine alone would change
    the top-level key, which nothing reads.

    Args:
        path: Of the config.
        options: Of ``--cfg-options``.
        work_dir: Of ``--work-dir``.
        launcher: Of ``--launcher``.

    Returns:
        The config, ready for a Runner.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If an option names a top-level key that does not exist.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no config {path}')
    cfg = Config.fromfile(path)
    known = set(cfg) | set(inspect.signature(Runner.__init__).parameters)
    for key in options:
        top = key.split('.')[0]
        if top not in known:
            close = difflib.get_close_matches(top, known, n=1)
            raise ValueError(
                f'unknown key {top!r} in --cfg-options' + (f'; did you mean {close[0]!r}?' if close else '')
            )
    old_root = cfg.get('data_root')
    cfg.merge_from_dict(options)
    if 'data_root' in options and old_root is not None:
        for part in (*LOADERS, *EVALUATORS):
            if cfg.get(part) is not None:
                _replace_root(cfg[part], old_root, options['data_root'])
    # For its own hooks mmengine needs the None that switches one off; for others it refuses None.
    if 'default_hooks' in cfg:
        cfg.default_hooks = {
            name: hook for name, hook in cfg.default_hooks.items() if hook is not None or name in MMENGINE_HOOKS
        }
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    for loader in LOADERS:
        _name_unreadable_file(cfg.get(loader), str(Path(cfg.work_dir, UNREADABLE)))
    return cfg


def _name_unreadable_file(node: ConfigDict | list | None, path: str) -> None:
    """Tell every folder of images, nested ones too, where to name those that cannot be read."""
    if isinstance(node, dict):
        if node.get('type') == 'bootmae_mm.ImageFolder':
            node.setdefault('unreadable_file', path)
        for value in node.values():
            _name_unreadable_file(value, path)
    elif isinstance(node, list):
        for value in node:
            _name_unreadable_file(value, path)


def _replace_root(node: ConfigDict | list, old: str, new: str) -> None:
    """Replace ``data_root`` wherever a nested dataset has the old one, and in the path of annotations."""
    if isinstance(node, dict):
        if node.get('data_root') == old:
            node['data_root'] = new
        path = node.get('ann_file')
        if isinstance(path, str) and path.startswith(f'{old}/'):
            node['ann_file'] = new + path[len(old) :]
        for value in node.values():
            _replace_root(value, old, new)
    elif isinstance(node, list):
        for value in node:
            _replace_root(value, old, new)


def _replace_sync_bn(node: ConfigDict | list) -> int:
    """Replace SyncBN, which needs GPUs, by BN; return how often."""
    count = 0
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
            count += 1
        count += sum(_replace_sync_bn(value) for value in node.values())
    elif isinstance(node, list):
        count += sum(_replace_sync_bn(value) for value in node)
    return count


def prepare(cfg: Config, training: bool = True) -> None:
    """Fit a config to this machine and start what the Runner cannot start by itself.

    Without a GPU: several processes talk through gloo (mmengine would ask for CUDA), float16 training, which needs a
    GPU, is refused, batch norm is not synchronised, and memory is not pinned.

    Args:
        cfg: Of :func:`read_config`, changed in place.
        training: False for evaluation, which builds no optimizer.

    Raises:
        ValueError: If more processes than GPUs were started, or float16 is wanted without a GPU.
    """
    allow_mmengine_checkpoints()
    if torch.cuda.is_available():
        local_rank, count = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
        if cfg.launcher == 'pytorch' and local_rank >= count:
            raise ValueError(f'process {local_rank} of this machine has no GPU: there are {count}')
        return
    if training and (cfg.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper':
        raise ValueError(
            'AmpOptimWrapper needs a GPU, and there is none; on a CPU use '
            '--cfg-options optim_wrapper.type=OptimWrapper, or bfloat16 with '
            '`bootmae_mm.AutocastOptimWrapper`'
        )
    if _replace_sync_bn(cfg.get('model') or {}):
        print_log('no GPU: BN instead of SyncBN', logger='current')
    for loader in LOADERS:
        if cfg.get(loader) is not None:
            cfg[loader]['pin_memory'] = False
    if cfg.launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')
        wrapper = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {})}
        if wrapper['type'] == 'MMDistributedDataParallel':
            wrapper['device_ids'] = None  # they are for GPUs only; mmengine names one always
        cfg.model_wrapper_cfg = wrapper


def finish(launcher: str = 'none', status: int = 0) -> None:
    """Leave the process group, if there is one, together with the other processes; the last thing that a tool does.

    Left to the interpreter's exit, gloo's threads now and then abort a process whose work is done, and the launcher
    reports a failure. So a process that has a launcher ends right here, after Python's own exit functions.

    Args:
        launcher: Of ``--launcher``.
        status: The process ends with.

    Raises:
        SystemExit: With the status, if it is not 0 and there is no launcher.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if launcher != 'none':
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        raise SystemExit(status)


def use_amp(cfg: Config) -> None:
    """Turn mixed precision on (``--amp``): bfloat16 where nothing is set, else what the config says."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        wrapper.type = 'bootmae_mm.AutocastOptimWrapper'
        wrapper.dtype = 'bfloat16'


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
    if not complete and len(missing) < len(wanted):
        # Pretraining needs all but the teacher, which starts as a copy; a fine-tuned model may have another head.
        if hasattr(model, 'has_momentum_teacher'):
            missing = [name for name in missing if not name.startswith('teacher.')]
        else:
            missing, wrong = [], []
    if missing or wrong:
        raise ValueError(
            f'{path} does not fit the model: {len(missing)} of {len(wanted)} weights are missing {missing[:3]}, '
            f'{len(wrong)} have another shape {wrong[:3]}'
        )
    return checkpoint.get('meta', {})


def check_loader(runner: Runner) -> None:
    """Check that there is at least one batch to train on.

    Raises:
        ValueError: If all images together are less than one batch, or none has an object of the dataset's classes.
    """
    try:
        loader = runner.train_dataloader
    except ValueError as error:
        _explain_empty_coco(runner.cfg.train_dataloader.dataset, error)
        raise
    if len(loader) == 0:
        raise ValueError(
            f'{len(loader.dataset)} images are less than one batch of {loader.batch_size} for each of '
            f'{runner.world_size} processes; set train_dataloader.batch_size lower'
        )


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
        ValueError: If the data sets have other classes, or a metric looks at more classes than there are.
    """
    loop = runner.val_loop
    if loop is None:
        return
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
