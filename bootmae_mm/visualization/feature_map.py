"""A map of images: points that are near each other where the features are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bootmae_mm.validation import require

MAX_POINTS = 5000  # t-SNE takes a minute for these
MAX_COLORS = 20


def draw_map(features: np.ndarray, paths: Sequence[str], out: str | Path, seed: int = 0) -> np.ndarray:
    """Draw images as points in two dimensions by t-SNE, colored by the folder they are in.

    Args:
        features: Features of the images, (N, D), or (N, L, D) of which the mean is taken.
        paths: Paths of the images.
        out: Picture to write: ``.png``, ``.svg`` or ``.pdf``.
        seed: Seed of the choice of at most :data:`MAX_POINTS` images, and of t-SNE.

    Returns:
        The points, (min(N, MAX_POINTS), 2).

    Raises:
        ConfigError: If there are fewer than three images.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    require(len(paths) >= 3, f'a map needs at least three images, but there are {len(paths)}')
    flat = features.mean(axis=1) if features.ndim == 3 else features  # (N, D)
    chosen = np.sort(np.random.RandomState(seed).permutation(len(flat))[:MAX_POINTS])
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(flat[chosen])

    folders = [Path(paths[index]).parent.name for index in chosen]
    figure = Figure(figsize=(8, 7), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [name for name, _ in Counter(folders).most_common()]
    for number, name in enumerate(names[:MAX_COLORS]):
        here = [folder == name for folder in folders]
        axes.scatter(points[here, 0], points[here, 1], s=8, color=f'C{number}' if number < 10 else None, label=name)
    others = [folder in names[MAX_COLORS:] for folder in folders]
    if any(others):
        axes.scatter(
            points[others, 0],
            points[others, 1],
            s=8,
            color='lightgray',
            label=f'{len(names) - MAX_COLORS} other folders',
        )
    axes.set(xticks=[], yticks=[], title=f'{len(chosen):,} of {len(flat):,} images, t-SNE of their features')
    if len(names) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc='outside right upper', markerscale=2)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return points
