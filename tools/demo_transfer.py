#!/usr/bin/env python3
"""Fine-tune the demo's checkpoint for classification, segmentation and detection, against the same runs from scratch.

Needs nothing but `make install`: pretrains first (tools/demo.py) if there is no checkpoint, and makes its own data
(tools/make_digit_scenes.py): ten labeled forms of digits as the checkpoint has seen them, or 800 scenes of digits of
other sizes and colors on textures. Runs the toy configs, which inherit from the real ones, through the real Runners,
evaluates with the ecosystem's metrics, and writes summary.json and a picture of predictions per task to the work_dir.

Examples:
    make demo-transfer
    python tools/demo_transfer.py --data scenes
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks and examples are not installed

if TYPE_CHECKING:  # imported where it is used, so that --help is quick
    import numpy as np

    from bootmae_mm.engine.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = dict(
    forms=dict(
        classification='cls/bootmae_vitt_forms_ft.py',
        segmentation='seg/bootmae_vitt_upernet_forms.py',
        detection='det/bootmae_vitt_mask_rcnn_forms.py',
    ),
    scenes=dict(
        classification='cls/bootmae_vitt_digits_ft.py',
        segmentation='seg/bootmae_vitt_upernet_digits.py',
        detection='det/bootmae_vitt_mask_rcnn_digits.py',
    ),
)
# Key of a metric -> name in the table.
METRICS = dict(
    classification={'accuracy/top1': 'accuracy'},
    segmentation={'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'},
    detection={
        'coco/bbox_mAP': 'box AP',
        'coco/bbox_mAP_50': 'box AP50',
        'coco/segm_mAP': 'mask AP',
        'coco/segm_mAP_50': 'mask AP50',
    },
)
STARTS = ('pretrained', 'from scratch')
PICTURES = 8
SCALE = 2
SURE = 0.3  # detections below this score are not drawn
# Where the configs look for the images.
WORK_DIRS = dict(forms='work_dirs/demo-transfer', scenes='work_dirs/demo-transfer-scenes')
COUNTS = dict(forms=dict(training=10, validation=200), scenes=dict(training=800, validation=200))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', help='where results go (default: work_dirs/demo-transfer, or -scenes)')
    parser.add_argument('--checkpoint', default='work_dirs/demo/epoch_90.pth', help='of make demo; made if missing')
    parser.add_argument('--tasks', nargs='+', choices=list(METRICS), default=list(METRICS))
    parser.add_argument('--data', choices=list(CONFIGS), default='forms', help='what the images show')
    parser.add_argument('--quick', action='store_true', help='a few iterations only, to see that everything runs')
    return parser.parse_args()


def prepared(args: argparse.Namespace, work_dir: Path, counts: dict[str, int]) -> Path:
    """Create the checkpoint and the scenes if missing; return the folder of the scenes."""
    if not Path(args.checkpoint).is_file():
        if args.checkpoint != 'work_dirs/demo/epoch_90.pth':
            raise FileNotFoundError(f'no checkpoint {args.checkpoint}')
        print('No checkpoint yet: pretraining one as `make demo` does.', flush=True)
        subprocess.run([sys.executable, str(ROOT / 'tools/demo.py')], check=True)
    from mmengine.utils import ProgressBar

    from examples.digit_scenes import write_scenes

    scenes = work_dir / (f'{args.data}_quick' if args.quick else args.data)
    if not scenes.is_dir():
        print(f'Making {args.data} of digits', flush=True)
        part = scenes.with_suffix('.part')
        shutil.rmtree(part, ignore_errors=True)
        write_scenes(part, counts, done=ProgressBar(sum(counts.values())).update, kind=args.data)
        part.rename(scenes)
        print()
    return scenes


def build_runner(task: str, start: str, scenes: Path, work_dir: Path, args: argparse.Namespace) -> Runner:
    """The Runner of a task's toy config."""
    from bootmae_mm.engine.launch import prepare, read_config
    from bootmae_mm.engine.runner import Runner

    options: dict = {'data_root': str(scenes)}
    if args.quick and task == 'segmentation':
        options |= {f'train_cfg.{key}': 2 for key in ('max_iters', 'val_interval')}
        options['default_hooks.checkpoint.interval'] = 2
    elif args.quick:
        options |= {f'train_cfg.{key}': 1 for key in ('max_epochs', 'val_interval')}
    cfg = read_config(
        str(ROOT / 'configs' / CONFIGS[args.data][task]),
        options,
        work_dir=str(work_dir / f'{task} {start}'.replace(' ', '_')),
    )
    cfg.model.backbone.init_cfg.checkpoint = args.checkpoint
    if start == 'from scratch':
        cfg.model.backbone.init_cfg = None
    if args.quick and task == 'detection':
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    cfg.experiment_name = f'demo_transfer_{task}_{start}_{time.time_ns()}'.replace(' ', '_')
    prepare(cfg)
    return Runner.from_cfg(cfg)


def predictions(runner: Runner) -> list[tuple]:
    """The first validation images (H, W, 3) uint8 RGB and their data samples with predictions."""
    import torch
    from mmengine.dataset import pseudo_collate
    from PIL import Image

    model, dataset = runner.model, runner.test_dataloader.dataset
    model.train(False)
    results = []
    step = max(1, len(dataset) // PICTURES)
    for index in list(range(0, len(dataset), step))[:PICTURES]:
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[index]]))[0]
        image = Image.open(dataset.get_data_info(index)['img_path']).convert('RGB')
        results.append((image, sample))
    return results


def draw(task: str, results: dict[str, list[tuple]], dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Contact sheet of ground truth and predictions of each run."""
    draw_task = dict(classification=classified, segmentation=segmented, detection=detected)[task]
    return draw_task(results, dataset)


def enlarged(image: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """Enlarge by nearest neighbor."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def classified(results: dict[str, list[tuple]], dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Crops with the name of their class and the prediction (with a cross if it is wrong)."""
    import numpy as np

    from examples.predictions import contact_sheet, overlay_instances

    names = dataset.metainfo['classes']

    def row(items: list[tuple], text: Any) -> list[np.ndarray]:  # noqa: ANN401
        return [
            overlay_instances(
                np.asarray(image),
                np.zeros((1, 4)),
                np.zeros((1, *image.size[::-1]), bool),
                [text(sample)],
                [(0, 0, 0)],
                3,
            )
            for image, sample in items
        ]

    rows: dict = {'ground truth': row(next(iter(results.values())), lambda s: names[int(s.gt_label)])}
    for start, items in results.items():
        rows[f'predicted, {start}'] = row(
            items,
            lambda s: names[int(s.pred_label)] + ('' if int(s.pred_label) == int(s.gt_label) else ' x'),
        )
    return contact_sheet(rows)


def segmented(results: dict[str, list[tuple]], dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Scenes, ground-truth maps, predicted maps."""
    import numpy as np

    from examples.predictions import contact_sheet, overlay_map

    palette = np.array(dataset.metainfo['palette'], np.uint8)
    first = next(iter(results.values()))

    def row(items: list[tuple], field: str) -> list[np.ndarray]:
        return [
            enlarged(overlay_map(np.asarray(image), getattr(sample, field).data[0].cpu().numpy(), palette, 0.8))
            for image, sample in items
        ]

    rows: dict = {
        'image': [enlarged(np.asarray(image)) for image, _ in first],
        'ground truth': row(first, 'gt_sem_seg'),
    }
    rows.update({f'predicted, {start}': row(items, 'pred_sem_seg') for start, items in results.items()})
    return contact_sheet(rows)


def detected(results: dict[str, list[tuple]], dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Scenes with ground-truth and predicted boxes, masks and classes."""
    import numpy as np

    from examples.predictions import contact_sheet, overlay_instances

    names = dataset.metainfo['classes']
    colors = [tuple(map(int, color)) for color in np.random.RandomState(3).randint(60, 255, (len(names), 3))]

    def picture(image: Any, labels: Any, boxes: Any, masks: Any) -> np.ndarray:  # noqa: ANN401
        return overlay_instances(
            np.asarray(image), boxes, masks, [names[i] for i in labels], [colors[i] for i in labels], 2 * SCALE
        )

    def truth(image: Any, sample: Any) -> np.ndarray:  # noqa: ANN401
        objects = sample.gt_instances
        boxes = getattr(objects.bboxes, 'tensor', objects.bboxes).cpu().numpy()
        return picture(image, objects.labels.tolist(), boxes, objects.masks.masks.astype(bool))

    def predicted(image: Any, sample: Any) -> np.ndarray:  # noqa: ANN401
        objects = sample.pred_instances
        objects = objects[objects.scores >= SURE]
        return picture(
            image, objects.labels.tolist(), objects.bboxes.cpu().numpy(), objects.masks.cpu().numpy().astype(bool)
        )

    rows: dict = {'ground truth': [truth(*item) for item in next(iter(results.values()))]}
    for start, items in results.items():
        rows[f'predicted, {start} (score of {SURE} or more)'] = [predicted(*item) for item in items]
    return contact_sheet(rows)


def table(summary: dict) -> str:
    """Rows of results."""
    lines = [f'{"":16}{"":16}' + ''.join(f'{start:>16}' for start in STARTS)]
    for task, result in summary['tasks'].items():
        for metric in METRICS[task].values():
            values = ''.join(f'{result[start]["metrics"][metric]:15.1f}%' for start in STARTS)
            lines.append(f'{task:16}{metric:16}{values}')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    begin = time.monotonic()
    work_dir = Path(args.work_dir or WORK_DIRS[args.data])
    work_dir.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    try:
        counts = dict(training=32, validation=8) if args.quick else COUNTS[args.data]
        scenes = prepared(args, work_dir, counts)
        summary: dict = dict(checkpoint=args.checkpoint, data=args.data, images=counts, tasks={})
        for task in args.tasks:
            results, found = {}, {}
            for start in STARTS:
                print(f'\n{task}, {start}', flush=True)
                runner = build_runner(task, start, scenes, work_dir, args)
                runner.logger.setLevel(logging.INFO)
                started = time.monotonic()
                runner.train()
                seconds = time.monotonic() - started
                metrics = runner.test()
                # mmdet's metrics are in 0..1, mmseg's and mmpretrain's in percent.
                factor = 100.0 if task == 'detection' else 1.0
                found[start] = dict(
                    metrics={name: round(factor * float(metrics[key]), 2) for key, name in METRICS[task].items()},
                    training_seconds=round(seconds, 1),
                )
                results[start] = predictions(runner)
            dataset = runner.test_dataloader.dataset
            Image.fromarray(draw(task, results, dataset)).save(work_dir / f'{task}.png')
            summary['tasks'][task] = dict(config=CONFIGS[args.data][task], picture=f'{task}.png', **found)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from error
    summary['seconds'] = round(time.monotonic() - begin, 1)
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    here = os.path.relpath(work_dir)
    print(
        f"""
Same data, schedule and seed; only the encoder's first weights differ.

{table(summary)}

{summary['seconds']:.0f} s in all
  {here}/summary.json   the numbers above
"""
        + '\n'.join(f'  {here}/{result["picture"]}' for result in summary['tasks'].values())
    )


if __name__ == '__main__':
    main()
