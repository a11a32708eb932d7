#!/usr/bin/env python3
"""Pretrain a small BootMAE on real images, and show what it has learnt.

Runs configs/pretrain/bootmae_vitt_digits.py through the real Runner, then probes the encoder on held-out images before
and after. Leaves summary.json, reconstruction.png and curves.png in the work_dir. Needs nothing but `make install`.

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

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

CONFIG = Path(__file__).resolve().parent.parent / 'configs/pretrain/bootmae_vitt_digits.py'


def digits(split: str, size: int) -> tuple:
    """Images (N, 3, H, W), normalised as in training, and labels of a split."""
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


def main() -> None:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where results go')
    parser.add_argument('--epochs', type=int, help='train shorter or longer than the config says')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override keys of the config, e.g. randomness.seed=1',
    )
    args = parser.parse_args()
    begin = time.monotonic()
    print(
        'Pretraining a small BootMAE on 1,297 handwritten digits; labels are not used. Time left is the `eta`.',
        flush=True,
    )

    import torch
    from mmengine.runner import Runner
    from PIL import Image

    from bootmae_mm.engine.launch import prepare, read_config
    from bootmae_mm.visualization import draw_reconstruction, read_scalars, reconstruct

    cfg = read_config(str(CONFIG), args.cfg_options, args.work_dir)
    if args.epochs:
        cfg.train_cfg.max_epochs = args.epochs
        cfg.param_scheduler[1].end = args.epochs
    work_dir = Path(cfg.work_dir)
    prepare(cfg)
    torch.set_num_threads(1)  # matrices this small gain nothing from a second core, which the loader has work for
    runner = Runner.from_cfg(cfg)

    size = cfg.model.backbone.img_size
    train, test = digits('train', size), digits('test', size)
    results = {'raw pixels': probe((train[0].flatten(1), train[1]), (test[0].flatten(1), test[1]))}
    untrained = copy.deepcopy(runner.model)
    with torch.random.fork_rng():  # so that the run starts from the same weights
        untrained.init_weights()
    results['encoder, random weights'] = probe_encoder(untrained.backbone, train, test)

    started = time.monotonic()
    model = runner.train()
    seconds = time.monotonic() - started
    model.eval()
    results['encoder, pretrained'] = probe_encoder(model.backbone, train, test)

    test_set = runner.build_dataloader(cfg.test_dataloader)
    batch = model.data_preprocessor(next(iter(test_set)))
    batch = {name: value[:8] for name, value in batch.items()}
    panels = reconstruct(model, batch['inputs'], batch['ids_keep'], batch['ids_mask'])
    Image.fromarray(draw_reconstruction(panels)).save(work_dir / 'reconstruction.png')

    scalars = read_scalars(work_dir, run=runner.timestamp)
    names = ('loss', 'pixel_loss', 'feature_loss')
    losses = {
        when: {name: round(scalars[index][name], 4) for name in names if name in scalars[index]}
        for when, index in (('first', 0), ('last', -1))
    }
    summary = dict(
        accuracy_percent=results,
        losses=losses,
        steps=runner.iter,
        training_seconds=round(seconds, 1),
        images=dict(train=len(train[1]), test=len(test[1])),
        config=CONFIG.name,
    )
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')

    checkpoint = (work_dir / 'last_checkpoint').read_text()
    changes = ', '.join(f'{name} {value} -> {losses["last"][name]}' for name, value in losses['first'].items())
    here, python = os.path.relpath(work_dir), os.path.relpath(sys.executable)
    print(f"""
Accuracy on {len(test[1])} held-out digits (the encoder never saw a label; 10 labels: of each class, mean of 5 draws)

{table(results)}

Raw pixels are strong here: the digits are centred and tiny. What pretraining adds is the step from random weights.
Losses, first -> last: {changes}
{runner.iter} steps in {seconds:.0f} s, {time.monotonic() - begin:.0f} s in all

  {here}/reconstruction.png   held-out digits: original, masked, reconstruction, prediction
  {here}/curves.png           losses, learning rate, decay, norms
  {here}/summary.json         the numbers above

Next, your own images:
  {python} tools/train.py configs/pretrain/bootmae_vitb_folder.py --cfg-options data_root=/your/images
or pictures of this model on any image:
  {python} tools/reconstruct.py {os.path.relpath(checkpoint)} IMAGE...""")


if __name__ == '__main__':
    main()
