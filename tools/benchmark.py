#!/usr/bin/env python3
"""Measure a training step, the loader, both together, or several processes; prints tables, and writes JSON.

Examples:
    python tools/benchmark.py step configs/pretrain/bootmae_vitb.py --batch 256
    python tools/benchmark.py step configs/pretrain/bootmae_vitb.py --batch 8 --dtype float32 --against mae
    python tools/benchmark.py step CONFIG --against authors --authors-path ~/BootMAE
    python tools/benchmark.py ablations configs/pretrain/bootmae_vitb.py --batch 256
    python tools/benchmark.py loader configs/pretrain/bootmae_vitb.py --images /your/images --workers 4 8 16
    python tools/benchmark.py train configs/pretrain/bootmae_vitb.py --batch 256 --workers 12
    python tools/benchmark.py scale configs/pretrain/bootmae_vitb.py --processes 1 2 4 8 --batch 256
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks and examples are not installed

if TYPE_CHECKING:  # imported where it is used, so that --help is quick
    from collections.abc import Callable

    import torch
    from mmengine.config import Config

    from benchmarks.step import TrainingStep

PHOTOGRAPHS = 'work_dirs/benchmark/photographs'


def read_command_line() -> argparse.Namespace:
    from bootmae_mm.checkpoints.trust import choose_trust
    from bootmae_mm.commands.arguments import cfg_options_argument, trust_argument

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest='what', required=True)

    def part(name: str, text: str) -> argparse.ArgumentParser:
        sub = parts.add_parser(name, help=text, description=text)
        sub.add_argument('config', help='path of a pretraining config')
        sub.add_argument('--json', help='write the numbers to this file')
        sub.add_argument('--threads', type=int, help="CPU threads (default: torch's)")
        cfg_options_argument(sub)
        return sub

    def of_steps(sub: argparse.ArgumentParser, batch: int) -> None:
        sub.set_defaults(cpu_batch=batch)
        sub.add_argument('--batch', type=int, help=f'images of a step (default: 256 on a GPU, {batch} on a CPU)')
        sub.add_argument('--dtype', choices=['float32', 'bfloat16'], help="default: the config's; float32 on a CPU")
        sub.add_argument('--repeats', type=int, default=10, help='steps that count (default: 10)')
        sub.add_argument('--device', help='cpu or cuda (default: a GPU if there is one)')

    step = part('step', 'a training step on random images')
    of_steps(step, 8)
    step.add_argument('--warmup', type=int, default=3, help='steps before (default: 3)')
    step.add_argument('--against', nargs='+', choices=['authors', 'mae'], default=[], help='time these beside it')
    step.add_argument('--compile', action='store_true', help='blocks through torch.compile; also in turns without')
    step.add_argument('--picture', help='draw where the time goes into this PNG')
    step.add_argument('--authors-path', help='a checkout of github.com/LightDXY/BootMAE')

    single = part('ablations', 'parts of a step in a plain form and in the one that is used, in turns')
    of_steps(single, 8)
    single.add_argument('--warmup', type=int, default=3, help='calls before (default: 3)')

    loader = part('loader', 'images a second of the loader')
    loader.add_argument('--images', help='folder of images (default: photographs made on the spot)')
    loader.add_argument('--workers', type=int, nargs='*', default=[1, 2], help='numbers of workers (default: 1 2)')
    loader.add_argument('--seconds', type=float, default=8.0, help='for each number of workers (default: 8)')
    loader.add_argument('--repeats', type=int, default=5, help='passes over the images on one core (default: 5)')

    train = part('train', 'loader and step together: what share of the time waits for data')
    of_steps(train, 8)
    train.add_argument('--images', help='folder of images (default: photographs made on the spot)')
    train.add_argument('--workers', type=int, default=1, help='of the loader (default: 1)')

    scale = part('scale', 'several processes; growth with batch and resolution')
    of_steps(scale, 4)
    scale.add_argument('--processes', type=int, nargs='*', help='numbers of processes (default: 1 2 4 8, as GPUs go)')
    scale.add_argument('--batches', type=int, nargs='*', help='batches (default: 64 128 256 on a GPU, 2 4 8 on a CPU)')
    scale.add_argument('--sizes', type=int, nargs='*', default=[160, 320], help='sizes in pixels (default: 160 320)')
    trust_argument(parser)
    args = parser.parse_args()
    choose_trust(args.trust_checkpoint)
    return args


def photographs(given: str | None) -> str:
    """Folder of images to load, created if none is given."""
    from benchmarks.loader import make_photographs

    if given is None and not Path(PHOTOGRAPHS).is_dir():
        print('Making photographs', flush=True)
        part = Path(f'{PHOTOGRAPHS}.part')
        make_photographs(part, 256)
        part.rename(PHOTOGRAPHS)
    folder = given or PHOTOGRAPHS
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'no folder {folder}')
    return folder


def rows(lines: list[tuple]) -> None:
    """Print a table; the first column is text."""
    table = [[f'{cell:,.1f}' if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print('  '.join([first, *others]).rstrip())


def print_step(result: dict) -> None:
    """Measure a step alone."""
    total = sum(result['macs_per_image'].values())
    print(f'batch {result["batch"]}, {result["dtype"]}\n')
    rows(
        [
            ('images/s', result['images_per_second']),
            ('step, ms', result['step_ms']),
            *[(f'  {name}, ms', value) for name, value in result['parts_ms'].items()],
            ('peak memory, MiB', result['peak_memory_bytes'] / 2**20),
            ('GMAC an image (method)', total / 1e9),
            ('GMAC an image (computed)', sum(result['macs_needed'].values()) / 1e9),
            ('GFLOP/s', result['flops'] / 1e9),
            ('matrix product, GFLOP/s', result['ceiling_flops'] / 1e9),
            ('share of it, %', 100 * result['share_of_ceiling']),
        ]
    )


def compare_steps(step: TrainingStep, others: dict, memory: dict, warmup: int, repeats: int) -> dict:
    """Measure steps of several programs in turns; return the numbers."""
    from benchmarks.timing import alternately

    seconds = alternately({'this': step, **others}, step.device, warmup, repeats)
    against = {
        name: dict(step_ms=1e3 * value, ratio=value / seconds['this'], peak_memory_bytes=memory[name])
        for name, value in seconds.items()
    }
    print('\nIn turns, in this process:\n')
    rows(
        [('', 'ms', 'times this', 'peak memory, MiB')]
        + [
            (
                name,
                1e3 * value,
                f'{value / seconds["this"]:.2f}',
                '' if memory[name] is None else float(memory[name] / 2**20),
            )
            for name, value in seconds.items()
        ]
    )
    return against


def bench_step(args: argparse.Namespace, cfg: Config, device: torch.device) -> dict:
    """Measure a step alone, or against baselines."""
    from benchmarks.baselines import AuthorsStep, MAEStep
    from benchmarks.step import TrainingStep, measure_step
    from benchmarks.timing import memory_of

    step = TrainingStep(cfg, args.batch, device, args.dtype)
    makers: dict[str, Callable[[], Callable[[], object]]] = {}
    if args.compile:
        from bootmae_mm.engine.hooks.compilation import compile_blocks

        makers['not compiled'] = lambda: TrainingStep(cfg, args.batch, device, args.dtype)
        compile_blocks(step.model)
    if 'authors' in args.against:
        if args.authors_path is None:
            raise ValueError('--against authors needs --authors-path, a checkout of github.com/LightDXY/BootMAE')
        makers['authors'] = lambda: AuthorsStep(args.authors_path, step)
    if 'mae' in args.against:
        makers['mae'] = lambda: MAEStep(step, dict(cfg.optim_wrapper.optimizer))
    result = measure_step(step, args.warmup, args.repeats)
    others, memory = {}, {'this': result['peak_memory_bytes']}
    for name, make in makers.items():
        others[name], memory[name] = memory_of(make, device)
    print_step(result)
    if args.picture:
        from benchmarks.pictures import draw_parts
        from benchmarks.timing import device_name

        title = f'{Path(args.config).stem}, batch {args.batch}, {result["dtype"]}, {device_name(device)}'
        draw_parts(result['parts_ms'], result['macs_per_image'], title, args.picture)
    if others:
        result['against'] = compare_steps(step, others, memory, args.warmup, args.repeats)
    return result


def bench_ablations(args: argparse.Namespace, cfg: Config, device: torch.device) -> dict:
    """Measure single optimizations."""
    from benchmarks.ablations import measure_ablations
    from benchmarks.step import TrainingStep

    step = TrainingStep(cfg, args.batch, device, args.dtype)
    results = measure_ablations(step, args.warmup, args.repeats)
    print(f'batch {args.batch}, {str(step.dtype).removeprefix("torch.")}; milliseconds\n')
    rows(
        [('', 'plain', 'used', 'times')]
        + [
            (item['name'], item['before_ms'], item['after_ms'], f'{item["before_ms"] / item["after_ms"]:.2f}')
            for item in results
        ]
    )
    return dict(ablations=results)


def bench_loader(args: argparse.Namespace, cfg: Config, device: torch.device) -> dict:
    """Compare pipelines."""
    from benchmarks.loader import OWN, mask_share, measure_loader, packed_pipelines, pipelines

    folder = photographs(args.images)
    options = pipelines(cfg, folder)
    if args.images is None:
        options.update(packed_pipelines(cfg, folder, Path(PHOTOGRAPHS).parent / 'packed'))
    results = measure_loader(options, args.workers, cfg.train_dataloader.batch_size, args.seconds, args.repeats)
    masks = mask_share(cfg, next(item for item in results if item['name'] == OWN)['one_core'])
    print('images a second\n')
    rows(
        [('', 'one core', 'ratio', *(f'{count} workers' for count in args.workers))]
        + [
            (
                item['name'],
                item['one_core'],
                f'{item["ratio"]:.2f}',
                *(item['workers'].get(str(count), '') for count in args.workers),
            )
            for item in results
        ]
    )
    print(f'\nmasks: {masks["microseconds"]:.1f} us an image, {100 * masks["share"]:.2f} % of its time on one core')
    return dict(pipelines=results, masks=masks)


def bench_train(args: argparse.Namespace, cfg: Config, device: torch.device) -> dict:
    """Measure loader and step together."""
    from benchmarks.loader import build_loader, measure_waiting, pipelines
    from benchmarks.step import TrainingStep

    options = list(pipelines(cfg, photographs(args.images)).values())[-1]
    step = TrainingStep(cfg, args.batch, device, args.dtype)
    result = measure_waiting(step, build_loader(options, args.batch, args.workers), args.repeats)
    rows([('images/s', result['images_per_second']), ('waiting for data, %', 100 * result['waiting'])])
    return result


def bench_scale(args: argparse.Namespace, cfg: Config, device: torch.device) -> dict:
    """Measure processes, batch sizes and resolutions."""
    from benchmarks.scale import check_processes, measure_growth, measure_processes

    check_processes(args.processes, device)
    growth = measure_growth(cfg, device, args.batches, args.sizes, args.repeats, args.dtype)
    rows(
        [('batch', 'pixels', 'step, ms', 'ms an image')]
        + [(str(item['batch']), item['img_size'], item['step_ms'], item['ms_per_image']) for item in growth]
    )
    processes = []
    if args.processes:
        processes = measure_processes(cfg, device, args.processes, args.batch, args.repeats, args.dtype)
        print()
        rows(
            [('processes', 'images/s', 'efficiency')]
            + [(str(x['processes']), x['images_per_second'], f'{x["efficiency"]:.2f}') for x in processes]
        )
    return dict(growth=growth, processes=processes)


def set_defaults(args: argparse.Namespace, device: torch.device) -> None:
    """Fill in missing arguments by the hardware."""
    import torch

    cpu = device.type == 'cpu'
    if cpu and getattr(args, 'dtype', '') is None:
        args.dtype = 'float32'
    if getattr(args, 'batch', 0) is None:
        args.batch = args.cpu_batch if cpu else 256
    if args.what == 'scale':
        if args.batches is None:
            args.batches = [2, 4, 8] if cpu else [64, 128, 256]
        if args.processes is None:
            most = 2 if cpu else torch.cuda.device_count()
            args.processes = [count for count in (1, 2, 4, 8) if count <= most]


def main() -> None:
    args = read_command_line()
    import torch

    from benchmarks.timing import device_name
    from bootmae_mm.engine.launch import exit_with, read_config

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(getattr(args, 'device', None) or ('cuda' if torch.cuda.is_available() else 'cpu'))
    set_defaults(args, device)
    torch.set_float32_matmul_precision('highest')
    print(f'{device_name(device)}, torch {torch.__version__}', flush=True)
    try:
        cfg = read_config(args.config, args.cfg_options)
        measure = dict(
            step=bench_step, ablations=bench_ablations, loader=bench_loader, train=bench_train, scale=bench_scale
        )
        result = measure[args.what](args, cfg, device)
    except ImportError as error:
        raise SystemExit(f'error: {error.name} is needed: pip install {error.name}') from error
    except Exception as error:  # noqa: BLE001  raised again if it is a defect
        exit_with(error)
    if args.json:
        content = dict(
            what=args.what, config=args.config, device=device_name(device), torch=torch.__version__, **result
        )
        Path(args.json).write_text(json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
    main()
