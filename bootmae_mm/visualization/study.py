"""A picture of a study: accuracy over steps and over time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

MARKERS = 'osD^vP*X'


def draw_study(results: dict[str, Any], path: str | Path) -> Path | None:
    """Draw the accuracy of each run over steps and over time.

    Lines are probes during pretraining, means over the seeds with the range between the lowest and the highest; without
    such probes, points are the first metric at the end.

    Args:
        results: Content of results.json.
        path: PNG file to write.

    Returns:
        The path, or None if there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = {name: run for name, run in results['runs'].items() if any(r['steps'] for r in run['pretraining'].values())}
    has_curves = any(result['curve'] for run in runs.values() for result in run['pretraining'].values())
    metric = next((name for run in runs.values() for name in run['metrics']), None)
    if not runs or not (has_curves or metric):
        return None
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    for place, (key, label, unit) in enumerate((('step', 'steps', 1), ('seconds', 'minutes of training', 60))):
        axes = figure.add_subplot(1, 2, place + 1)
        for index, (name, run) in enumerate(runs.items()):
            points = _curve(run, key) if has_curves else _ends(run, 'steps' if key == 'step' else key, metric)
            if points:
                xs = [x / unit for x, _ in points]
                middle = [statistics.fmean(values) for _, values in points]
                (line,) = axes.plot(xs, middle, label=name, marker=MARKERS[index % len(MARKERS)], markersize=5)
                low, high = ([choose(values) for _, values in points] for choose in (min, max))
                axes.fill_between(xs, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set(xlabel=label, ylabel=('kNN during the run, %' if has_curves else f'{metric}, %') if not place else '')
        axes.grid(alpha=0.3)
        if place == 0:
            axes.legend(frameon=False, fontsize=9)
    figure.suptitle(results['title'])
    figure.savefig(path, dpi=120)
    return Path(path)


def _curve(run: dict[str, Any], key: str) -> list[tuple[float, list[float]]]:
    """Mean position and accuracies of all seeds, for each probe that every seed has."""
    curves = [result['curve'] for result in run['pretraining'].values() if result['curve']]
    by_step: dict[int, list[dict[str, Any]]] = {}
    for point in (point for curve in curves for point in curve):
        by_step.setdefault(point['step'], []).append(point)
    return [
        (statistics.fmean(point[key] for point in points), [point['knn'] for point in points])
        for _, points in sorted(by_step.items())
        if len(points) == len(curves)
    ]


def _ends(run: dict[str, Any], key: str, metric: str | None) -> list[tuple[float, list[float]]]:
    values = run['metrics'].get(metric) or {}
    positions = [result[key] for result in run['pretraining'].values() if result.get(key)]
    return [(statistics.fmean(positions), list(values.values()))] if values and positions else []
