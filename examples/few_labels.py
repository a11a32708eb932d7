"""Accuracy with few labels: an encoder fine-tuned from its pretraining, from scratch, and a classifier of pixels."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from bootmae_mm.evaluation import FineTuning, finetuned_accuracy, linear_accuracy

LABELS = (1, 2, 5, 10)  # of each class
DRAWS = 3  # of labels
PRETRAINED, SCRATCH, PIXELS = 'pretrained, fine-tuned', 'from scratch', 'raw pixels, linear'


def with_few_labels(
    pretrained: nn.Module,
    untrained: nn.Module,
    train: tuple,
    test: tuple,
    steps: int,
    done: Callable[[], object] = lambda: None,
) -> dict:
    """Compare the three ways.

    Args:
        pretrained: A :class:`BootMAEViT` after pretraining.
        untrained: The same with random weights.
        train: Normalized images (N, C, H, W) and labels (N,), of which the labels are drawn.
        test: Those to classify.
        steps: Steps of each fine-tuning.
        done: Called after each fine-tuning; there are 2 * DRAWS * len(LABELS).

    Returns:
        Way -> number of labels of each class -> accuracies in percent, one for each draw.
    """
    found: dict = {name: {count: [] for count in LABELS} for name in (PRETRAINED, SCRATCH, PIXELS)}
    for count in LABELS:
        pixels = train[0].flatten(1), train[1], test[0].flatten(1), test[1]
        found[PIXELS][count] = [100 * linear_accuracy(*pixels, count, seeds=[draw]) for draw in range(DRAWS)]
    tasks = [
        (name, count, draw, encoder)
        for draw in range(DRAWS)
        for count in LABELS
        for name, encoder in ((PRETRAINED, pretrained), (SCRATCH, untrained))
    ]
    # Small tensors gain nothing from a second thread, but from a second process. A forked one might wait forever for a
    # lock that a thread of this process had.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), context, one_thread) as pool:
        jobs = [pool.submit(finetune, encoder, train, test, count, draw, steps) for _, count, draw, encoder in tasks]
        for job, (name, count, _, _) in zip(jobs, tasks, strict=True):
            found[name][count].append(job.result())
            done()
    return found


def one_thread() -> None:
    """Set up a process of fine-tuning."""
    torch.set_num_threads(1)


def finetune(encoder: nn.Module, train: tuple, test: tuple, count: int, draw: int, steps: int) -> float:
    """Accuracy in percent after fine-tuning on some labels of each class."""
    # Shifts by one pixel; a mirrored digit is not a digit.
    recipe = FineTuning(steps=steps, batch_size=32, shift=1 / train[0].shape[-1])
    return 100 * finetuned_accuracy(encoder, train[0], train[1], test[0], test[1], count, draw, recipe)


def few_labels_table(found: dict) -> str:
    """Means and deviations over the draws of labels."""
    lines = [f'{"labels of each class":28}' + ''.join(f'{count:>14}' for count in LABELS)]
    for name, by_count in found.items():
        cells = (f'{statistics.fmean(v):.1f} ± {statistics.stdev(v):.1f} %' for v in by_count.values())
        lines.append(f'{name:28}' + ''.join(f'{cell:>14}' for cell in cells))
    return '\n'.join(lines)


def draw_few_labels(found: dict, images: int, path: Path) -> None:
    """Draw accuracy over the number of labels, with the range of the draws."""
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, by_count), marker in zip(found.items(), 'os^', strict=True):
        middle = [statistics.fmean(values) for values in by_count.values()]
        (line,) = axes.plot(LABELS, middle, label=name, marker=marker)
        low, high = ([choose(values) for values in by_count.values()] for choose in (min, max))
        axes.fill_between(LABELS, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(xscale='log', xticks=LABELS, xticklabels=LABELS, xlabel='labels of each class')
    axes.set(ylabel=f'accuracy on {images} held-out digits, %', title='Pretrained without labels, then fine-tuned')
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
