"""Time of a training step by part."""

from __future__ import annotations

from pathlib import Path

# The same color for the same part in both bars.
COLORS = {
    'student': '#4878a8',
    'teacher': '#e49444',
    'decoders and heads': '#6a9f58',
    'pixel': '#85b6b2',
    'feature': '#6a9f58',
    'backward': '#d1615d',
    'optimizer': '#967662',
    'EMA': '#a87c9f',
    'rest': '#b0b0b0',
}
MIN_SHARE = 4.0  # percent; smaller parts have no name inside their bar


def draw_parts(parts_ms: dict[str, float], macs: dict[str, float], title: str, path: str | Path) -> Path:
    """Draw the parts of a step as a bar, and above it their multiply-adds.

    Args:
        parts_ms: Milliseconds of each part.
        macs: Multiply-adds per image of each part of the model.
        title: Title of the picture.
        path: Path of the PNG file.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, values in enumerate((parts_ms, macs)):
        total, start, small = sum(values.values()), 0.0, []
        for part, value in values.items():
            share = 100 * value / total
            axes.barh(row, share, left=start, color=COLORS.get(part), edgecolor='white', height=0.6)
            if share >= MIN_SHARE:
                name = part.replace(' and ', '\nand ')
                axes.text(start + share / 2, row, f'{name}\n{share:.0f} %', ha='center', va='center', fontsize=8)
            else:
                small.append(f'{part} {share:.1f} %')
            start += share
        axes.text(100, row - 0.45, ', '.join(small), ha='right', va='center', fontsize=8)
    axes.set(
        yticks=[0, 1],
        yticklabels=['time', 'multiply-adds'],
        xlim=(0, 100),
        ylim=(-0.65, 1.4),
        xlabel='%; backward holds the gradients of student, decoders and heads, which multiply-adds count with them',
        title=title,
    )
    axes.spines[['top', 'right', 'left']].set_visible(False)
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path
