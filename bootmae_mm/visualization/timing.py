"""Where the time of a training step goes."""

from __future__ import annotations

from pathlib import Path


def draw_parts(parts_ms: dict[str, float], macs: dict[str, float], title: str, path: str | Path) -> Path:
    """Draw the parts of a step as one bar, and above it the arithmetic of the method in the same order.

    Args:
        parts_ms: Milliseconds of every part.
        macs: Multiply-adds an image, by part of the model.
        title: Above the picture.
        path: Of the PNG.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, values in enumerate((parts_ms, macs)):
        total, start = sum(values.values()), 0.0
        for part, value in values.items():
            share = 100 * value / total
            axes.barh(row, share, left=start, edgecolor='white', height=0.7)
            if share > 4:
                axes.text(start + share / 2, row, f'{part}\n{share:.0f} %', ha='center', va='center', fontsize=8)
            start += share
    axes.set(yticks=[0, 1], yticklabels=['time', 'multiply-adds'], xlim=(0, 100), xlabel='%', title=title)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path
