"""Images per second of a DataLoader by pipeline and number of workers, and of one core without workers."""

from __future__ import annotations

import itertools
import random
import statistics
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from bootmae_mm.data.decoding import decode
from bootmae_mm.data.samplers import SeededIndex
from bootmae_mm.data.transforms import RandomResizedCrop
from bootmae_mm.validation import ConfigError

# Largest number of images per pass on one core: a folder may hold a million.
ONE_PASS = 1024
# Name of the config's own pipeline.
OWN = 'this config'
# mmpretrain's own pipeline for MAE (configs/_base_/datasets/imagenet_bs512_mae.py).
MMPRETRAIN_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]


def make_photographs(folder: Path, count: int, size: tuple[int, int] = (375, 500)) -> None:
    """Write JPEG files like ImageNet's: crops of scikit-learn's two photographs, about 50 KB each.

    Args:
        folder: Folder to write to, created if missing.
        count: Number of files.
        size: Height and width in pixels.
    """
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    draw = random.Random(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height = draw.randint(300, photograph.height)
        width = round(height * size[1] / size[0])
        left, top = draw.randint(0, photograph.width - width), draw.randint(0, photograph.height - height)
        piece = photograph.crop((left, top, left + width, top + height))
        piece.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f'{number:05}.jpg', quality=90)


def pipelines(cfg: Config, folder: str) -> dict[str, dict]:
    """Loader configs by name: mmpretrain's for MAE, the config's, and the config's with Pillow.

    Args:
        cfg: Pretraining config with images in a folder.
        folder: Folder of the images.

    Raises:
        ConfigError: If the config does not read image files.
    """
    own = cfg.train_dataloader.to_dict()
    if own['dataset']['type'] not in ('bootmae_mm.ImageFolder', 'bootmae_mm.ImageArchives'):
        raise ConfigError(f'the config reads no images from files, but has {own["dataset"]["type"]}')
    own['dataset'] = dict(own['dataset'], type='bootmae_mm.ImageFolder', data_root=folder, folder='', ann_file='')
    exact = dict(own['dataset'])
    exact['pipeline'] = [
        dict(step, backend='pillow')
        if step['type'] in ('bootmae_mm.LoadImage', 'bootmae_mm.RandomResizedCrop')
        else dict(step)
        for step in exact['pipeline']
    ]
    theirs = dict(type='bootmae_mm.ImageFolder', data_root=folder, pipeline=MMPRETRAIN_PIPELINE)
    return {
        'mmpretrain MAE': dict(own, dataset=theirs, collate_fn=dict(type='default_collate')),
        'this config, Pillow': dict(own, dataset=exact),
        OWN: own,
    }


def packed_pipelines(cfg: Config, folder: str, out: Path) -> dict[str, dict]:
    """Loader configs that read the images in other containers, written to ``out`` if missing.

    Packs (ZIP) of pixels and of JPEG files; TAR archives with the same files; and the JPEG files as a data set of
    Hugging Face, where ``datasets`` is installed.
    """
    from bootmae_mm.data.pack_writer import FORMATS, PackOptions, pack

    own = pipelines(cfg, folder)[OWN]
    plain = {key: value for key, value in own['dataset'].items() if key not in ('folder', 'ann_file')}
    names = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob('*.jpg'))
    options = {}
    for kind in FORMATS:
        pack(folder, names, out / kind, PackOptions(format=kind))  # type: ignore[arg-type]
        for container, root in (('ZIP', out / kind), ('TAR', _as_tar(out / kind))):
            dataset = dict(plain, type='bootmae_mm.ImageArchives', data_root=str(root))
            options[f'this config, {container} ({kind})'] = dict(own, dataset=dataset)
    if find_spec('datasets') is not None:
        dataset = dict(plain, type='bootmae_mm.HuggingFaceImages', data_root=_as_arrow(out / 'jpeg'))
        options['this config, Hugging Face (jpeg)'] = dict(own, dataset=dataset)
    return options


def _as_tar(pack: Path) -> Path:
    """The files of a pack in TAR archives, beside it."""
    folder = pack.with_name(f'{pack.name}_tar')
    folder.mkdir(exist_ok=True)
    for archive in sorted(pack.glob('*.zip')):
        target = folder / f'{archive.stem}.tar'
        if not target.is_file():
            with zipfile.ZipFile(archive) as content, tarfile.open(target, 'w') as tar:
                for name in content.namelist():
                    entry = tarfile.TarInfo(name)
                    entry.size = content.getinfo(name).file_size
                    tar.addfile(entry, content.open(name))
    return folder


def _as_arrow(pack: Path) -> str:
    """The files of a pack as a data set of Hugging Face, beside it."""
    import datasets

    folder = pack.with_name(f'{pack.name}_arrow')
    if not folder.is_dir():
        rows = []
        for archive in sorted(pack.glob('*.zip')):
            with zipfile.ZipFile(archive) as content:
                rows += [dict(bytes=content.read(name), path=name) for name in content.namelist()]
        features = datasets.Features(image=datasets.Image(decode=False))
        datasets.Dataset.from_dict(dict(image=rows), features=features).save_to_disk(str(folder))
    return str(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in a worker of a loader."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_core(options: dict, batch: int) -> Iterator[float]:
    """Seconds per image of dataset and collate function alone, in this process with one thread, pass by pass.

    A pass takes the first :data:`ONE_PASS` images, or all batches of a smaller dataset.
    """
    dataset, collate = _dataset(options), _collate(options)
    batch = min(batch, len(dataset))
    for turn in itertools.count():
        firsts = range(0, min(len(dataset), max(ONE_PASS, batch)) - batch + 1, batch)
        with one_thread():
            start = time.perf_counter()
            for first in firsts:
                indices = range(first, first + batch)
                collate([dataset[SeededIndex(index, turn * len(dataset) + index)] for index in indices])
            taken = time.perf_counter() - start
        yield taken / (len(firsts) * batch)


def bare_minimum(options: dict, batch: int, steps: Sequence[str]) -> Iterator[float]:
    """Seconds per image of the necessary steps alone, pass by pass: a bound for any pipeline.

    Args:
        options: Config of the loader, with this project's pipeline.
        batch: Number of images to stack.
        steps: The first of ``'decode'``, ``'crop'`` and ``'stack'``; files are in memory.
    """
    dataset = _dataset(options)
    crop = next(step for step in dataset.pipeline.transforms if isinstance(step, RandomResizedCrop))
    paths = [dataset.get_data_info(index)['img_path'] for index in range(min(len(dataset), batch))]
    files = [Path(path).read_bytes() for path in paths]
    while True:
        with one_thread():
            start = time.perf_counter()
            images = []
            for data in files:
                image = decode(data)
                if 'crop' in steps:
                    image = crop.transform(dict(img=image))['img']
                    images.append(torch.from_numpy(image))
            if 'stack' in steps:
                torch.stack(images)
            taken = time.perf_counter() - start
        yield taken / len(files)


def _dataset(options: dict) -> Any:  # noqa: ANN401
    init_default_scope('mmpretrain')
    return DATASETS.build(options['dataset'])


def _collate(options: dict) -> Any:  # noqa: ANN401
    from bootmae_mm.data import collate

    if options['collate_fn']['type'] == 'bootmae_mm.collate':
        return collate
    from mmengine.dataset import default_collate

    return default_collate


def build_loader(options: dict, batch: int, workers: int) -> DataLoader:
    """Build the DataLoader of a loader config like mmengine."""
    init_default_scope('mmpretrain')
    options = dict(
        options,
        batch_size=batch,
        num_workers=workers,
        persistent_workers=workers > 0,
        timeout=options.get('timeout', 0) if workers else 0,
        pin_memory=torch.cuda.is_available(),
        sampler=dict(type='bootmae_mm.SeededSampler', shuffle=True),
    )
    return Runner.build_dataloader(Config(options), seed=0)


def endless(loader: DataLoader) -> Iterator[dict]:
    """Batches, epoch after epoch."""
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def loader_speed(loader: DataLoader, seconds: float) -> float:
    """Images per second of a loader, after its workers have filled their queues."""
    batches = endless(loader)
    for _ in range(2 * max(1, loader.num_workers)):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += loader.batch_size
    return count / (time.perf_counter() - start)


def measure_loader(
    options: dict[str, dict], workers: list[int], batch: int, seconds: float, repeats: int
) -> list[dict]:
    """Images per second of each pipeline: one core, and each number of workers.

    The pipelines take turns on one core, so that load on the machine affects all of them. The bound of the config's own
    pipeline is timed, too.

    Returns:
        For each pipeline ``name``, ``one_core``, ``ratio`` (to the first pipeline, on one core), ``workers`` (a dict).
    """
    runs = {name: one_core(option, batch) for name, option in options.items()}
    if OWN in options:
        runs['decoding alone'] = bare_minimum(options[OWN], batch, ['decode'])
        runs['decoding, cropping, stacking alone'] = bare_minimum(options[OWN], batch, ['decode', 'crop', 'stack'])
    for run in runs.values():
        next(run)  # reads the files once
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(next(run))
    speeds = {name: 1 / statistics.median(values) for name, values in taken.items()}
    first = next(iter(speeds.values()))
    return [
        dict(
            name=name,
            one_core=speed,
            ratio=speed / first,
            workers={str(count): loader_speed(build_loader(options[name], batch, count), seconds) for count in workers}
            if name in options
            else {},
        )
        for name, speed in speeds.items()
    ]


def mask_share(cfg: Config, one_core_speed: float, repeats: int = 20) -> dict[str, float]:
    """Cost of the masks of an image: ``microseconds``, and ``share`` of the time of an image on one core."""
    from bootmae_mm.data import build_masking

    masking = build_masking(cfg.train_dataloader.dataset.masking)
    batch = cfg.train_dataloader.batch_size
    draw = np.random.RandomState(0)
    taken = []
    for _ in range(repeats):
        seeds = draw.randint(2**63, size=batch, dtype=np.int64).tolist()
        start = time.perf_counter()
        masking.batch(seeds)
        taken.append((time.perf_counter() - start) / batch)
    seconds = statistics.median(taken)
    return dict(microseconds=1e6 * seconds, share=seconds * one_core_speed)


def measure_waiting(step: Any, loader: DataLoader, repeats: int) -> dict[str, float]:  # noqa: ANN401
    """Measure loader and step together.

    Args:
        step: :class:`TrainingStep` with the batch size of the loader.
        loader: Loader of its batches.
        repeats: Number of steps.

    Returns:
        ``images_per_second`` and ``waiting``, the share of the time in which the step waits for data.
    """
    from .timing import synchronize

    batches = endless(loader)
    for _ in range(2):
        step.data = next(batches)
        step()
    waited, start = 0.0, time.perf_counter()
    for _ in range(repeats):
        begin = time.perf_counter()
        step.data = next(batches)
        waited += time.perf_counter() - begin
        step()
        synchronize(step.device)
    total = time.perf_counter() - start
    return dict(images_per_second=repeats * step.batch / total, waiting=waited / total)
