"""Curves of a training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

# Panels of the picture: title, patterns of the scalars, whether the axis is logarithmic.
GROUPS = (
    ('losses', ('loss', '*_loss'), False),
    ('probes on labeled images, %', ('probe_*',), False),
    ('learning rate', ('lr',), False),
    ('1 - decay of the teacher', ('ema_decay',), True),
    ('weights of branches', ('*_weight',), False),
    ('norm of the gradient', ('grad_norm',), True),
    ('targets: mean norm of a patch', ('*_pred_norm', '*_target_norm'), True),
)


def read_scalars(
    work_dir: str | Path, run: str = '*', names: Sequence[str] = ('loss', 'probe_knn', 'probe_linear')
) -> list[dict]:
    """Read the scalars that mmengine's local visualizer wrote below a work_dir.

    Args:
        work_dir: Work_dir of one or several runs.
        run: Timestamp of a run; all by default. Where runs overlap (after a resume), the later one counts.
        names: Scalars of which an entry must have one.

    Returns:
        One dict per entry of the log, sorted by ``step``.
    """
    by_step: dict[int, dict] = {}
    for path in sorted(Path(work_dir).glob(f'{run}/vis_data/scalars.json')):
        for line in path.read_text(errors='replace').splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # half a line, of a killed run or a full disk
                continue
            if 'step' in entry and any(name in entry for name in names):
                by_step[entry['step']] = {**by_step.get(entry['step'], {}), **entry}
    return [by_step[step] for step in sorted(by_step)]


def draw_curves(scalars: list[dict], path: str | Path) -> Path:
    """Draw losses, learning rate, decay, feature weight and norms over iterations into one PNG.

    Args:
        scalars: Scalars from :func:`read_scalars`.
        path: Path of the picture.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = dict.fromkeys(name for entry in scalars for name in entry)  # in order, each once
    groups = [
        (title, [name for pattern in patterns for name in there if fnmatch(name, pattern)], log)
        for title, patterns, log in GROUPS
    ]
    groups = [group for group in groups if group[1]]
    rows = -(-len(groups) // 2)
    figure = Figure(figsize=(11, 3 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    for index, (title, names, log) in enumerate(groups):
        axes = figure.add_subplot(rows, 2, index + 1)
        for name in names:
            entries = [entry for entry in scalars if name in entry]
            values = [1 - entry[name] if name == 'ema_decay' else entry[name] for entry in entries]
            marker = 'o' if name.startswith('probe_') else None  # a few points
            axes.plot([entry['step'] for entry in entries], values, label=name, linewidth=1.2, marker=marker)
        if log:
            axes.set_yscale('log')
        if len(names) > 1:
            axes.legend(frameon=False)
        axes.set(title=title, xlabel='iteration')
        axes.grid(alpha=0.3)
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path
