#!/usr/bin/env python3
"""Pretrain a small BootMAE on real images without labels, and show what that is worth when labels are few.

Runs configs/pretrain/bootmae_vitt_digits.py through the real Runner. Then fine-tunes the encoder on 1, 2, 5 and 10
labels of each class, against the same from scratch and a classifier of raw pixels; and probes its frozen features.
Writes summary.json, few_labels.png, reconstruction.png and curves.png. Needs nothing but `make install`.

Example:
    make demo
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples are not installed

if TYPE_CHECKING:  # imported where it is used, so that --help is quick
    from bootmae_mm.engine.runner import Runner

CONFIG = Path(__file__).resolve().parent.parent / 'configs/pretrain/bootmae_vitt_digits.py'


def digits(split: str, size: int) -> tuple:
    """Images (N, 3, H, W), normalized as in training, and labels of a split."""
    import numpy as np
    import torch

    from bootmae_mm.data import Digits

    dataset = Digits(split=split, img_size=size, pipeline=[])
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    images = torch.from_numpy(np.stack([sample['img'] for sample in samples])).permute(0, 3, 1, 2).float()
    return (images - 127.5) / 127.5, torch.tensor([sample['gt_label'] for sample in samples])


def probe(train: tuple, test: tuple) -> dict:
    """Accuracies in percent of features (N, D) with labels."""
    from bootmae_mm.evaluation import knn_accuracy, linear_accuracy

    data = train[0], train[1], test[0], test[1]
    return {
        'knn': 100 * knn_accuracy(*data),
        'linear_10_labels': 100 * linear_accuracy(*data, labels_per_class=10),
        'linear_all_labels': 100 * linear_accuracy(*data),
    }


def probe_encoder(backbone: object, train: tuple, test: tuple) -> dict:
    """Accuracies of an encoder's pooled features."""
    from bootmae_mm.evaluation import pooled_features

    return probe((pooled_features(backbone, train[0]), train[1]), (pooled_features(backbone, test[0]), test[1]))


def table(results: dict) -> str:
    """Rows of accuracies."""
    lines = [f'{"features":28}{"kNN":>8}{"10 labels":>12}{"all labels":>12}']
    for name, row in results.items():
        lines.append(
            f'{name:28}'
            + f'{row["knn"]:7.1f}%'
            + f'{row["linear_10_labels"]:11.1f}%'
            + f'{row["linear_all_labels"]:11.1f}%'
        )
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    from bootmae_mm.commands.arguments import cfg_options_argument

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where results go')
    parser.add_argument('--epochs', type=int, help='train shorter or longer than the config says')
    parser.add_argument('--finetune-steps', type=int, default=300, help='steps of each fine-tuning (default: 300)')
    cfg_options_argument(parser)
    return parser.parse_args()


def build_runner(args: argparse.Namespace) -> Runner:
    """Build the Runner of the demo's config, with the options of the command line."""
    from bootmae_mm.engine.launch import prepare, read_config
    from bootmae_mm.engine.runner import Runner

    options = dict(args.cfg_options)
    if args.epochs is not None:
        if args.epochs < 1:
            raise SystemExit(f'error: --epochs must be at least 1, but is {args.epochs}')
        options['train_cfg.max_epochs'] = args.epochs
    cfg = read_config(str(CONFIG), options, args.work_dir)
    prepare(cfg)
    return Runner.from_cfg(cfg)


def train_and_probe(runner: Runner, steps: int) -> dict:
    """Train; return accuracies with few labels, accuracies of frozen features, seconds and numbers of images."""
    import torch

    size = runner.cfg.model.backbone.img_size
    train, test = digits('train', size), digits('test', size)
    results = {'raw pixels': probe((train[0].flatten(1), train[1]), (test[0].flatten(1), test[1]))}
    untrained = copy.deepcopy(runner.model)
    with torch.random.fork_rng():  # so that the run starts from the same weights
        untrained.init_weights()
    results['encoder, random weights'] = probe_encoder(untrained.backbone, train, test)

    torch.set_num_threads(1)  # small matrices gain nothing from a second core, which the loader uses
    begin = time.monotonic()
    model = runner.train()
    seconds = time.monotonic() - begin
    results['encoder, pretrained'] = probe_encoder(model.backbone, train, test)
    from mmengine.utils import ProgressBar

    from examples.few_labels import DRAWS, LABELS, draw_few_labels, with_few_labels

    print('Fine-tuning with few labels', flush=True)
    few = with_few_labels(
        model.backbone, untrained.backbone, train, test, steps, ProgressBar(2 * DRAWS * len(LABELS)).update
    )
    print()
    draw_few_labels(few, len(test[1]), Path(runner.work_dir) / 'few_labels.png')
    return dict(
        few_labels_percent=few,
        accuracy_percent=results,
        training_seconds=round(seconds, 1),
        images=dict(train=len(train[1]), test=len(test[1])),
    )


def draw(runner: Runner, path: Path) -> None:
    """Draw reconstructions of eight held-out digits."""
    from PIL import Image

    from bootmae_mm.visualization import draw_panels, reconstruct

    model = runner.model.eval()
    batch = next(iter(runner.build_dataloader(runner.cfg.test_dataloader)))
    batch = {name: value[:8] for name, value in model.data_preprocessor(batch).items()}
    Image.fromarray(draw_panels(reconstruct(model, *batch.values()))).save(path)


def first_and_last_losses(runner: Runner) -> dict:
    """Losses at the first and the last line of the log."""
    from bootmae_mm.visualization import read_scalars

    scalars = read_scalars(runner.work_dir, run=runner.timestamp)
    names = [name for name in ('loss', 'pixel_loss', 'feature_loss') if name in scalars[0]]
    return {
        when: {name: round(entry[name], 4) for name in names}
        for when, entry in (('first', scalars[0]), ('last', scalars[-1]))
    }


def report(summary: dict, work_dir: Path) -> str:
    """Text that the demo prints at the end."""
    from examples.few_labels import DRAWS, few_labels_table

    first, last = summary['losses']['first'], summary['losses']['last']
    changes = ', '.join(f'{name} {value} -> {last[name]}' for name, value in first.items())
    here, python = os.path.relpath(work_dir), os.path.relpath(sys.executable)
    checkpoint = os.path.relpath((work_dir / 'last_checkpoint').read_text())
    held_out = summary['images']['test']
    return f"""
Accuracy on {held_out} held-out digits, mean and deviation over {DRAWS} draws of the labels

{few_labels_table(summary['few_labels_percent'])}

Frozen features of the same encoder ("10 labels": of each class)

{table(summary['accuracy_percent'])}

Raw pixels are strong here: the digits are centered and tiny, so the nearest picture is a good answer. Features that
nothing was fine-tuned for do not beat it; what pretraining is for is fine-tuning with few labels.
Losses, first -> last: {changes}
{summary['steps']} steps of pretraining in {summary['training_seconds']:.0f} s, {summary['seconds']:.0f} s in all

  {here}/few_labels.png       the first table as a picture
  {here}/reconstruction.png   held-out digits: original, masked, reconstruction, prediction
  {here}/curves.png           losses, learning rate, decay, norms
  {here}/summary.json         the numbers above

Next, your own images:
  {python} tools/train.py configs/pretrain/bootmae_vitb_folder.py --cfg-options data_root=/your/images
or pictures of this model on any image:
  {python} tools/reconstruct.py {checkpoint} IMAGE..."""


def main() -> None:
    begin = time.monotonic()
    args = parse_args()
    print(
        'Pretraining a small BootMAE on 1,297 handwritten digits without labels. Time left is the `eta`.',
        flush=True,
    )
    runner = build_runner(args)
    work_dir = Path(runner.work_dir)
    summary = train_and_probe(runner, args.finetune_steps)
    draw(runner, work_dir / 'reconstruction.png')
    summary.update(
        losses=first_and_last_losses(runner),
        steps=runner.iter,
        seconds=round(time.monotonic() - begin, 1),
        config=CONFIG.name,
    )
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    print(report(summary, work_dir))


if __name__ == '__main__':
    main()
