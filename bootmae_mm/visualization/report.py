"""A report of a run: one HTML file with everything in it, pictures included."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin-top: 2rem }
p.about { color: #666; margin-top: 0 }
table { border-collapse: collapse } td, th { text-align: left; padding: .25rem 1.5rem .25rem 0; vertical-align: top }
tr { border-bottom: 1px solid #e4e4e4 } th { font-weight: 600; white-space: nowrap }
img { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; font-size: .85rem }
summary { cursor: pointer; font-weight: 600 }
figure { margin: 0 0 1rem } figcaption { color: #666 }
"""


def write_report(
    path: str | Path,
    title: str,
    about: str,
    summary: Mapping[str, object],
    pictures: Iterable[tuple[str, Path]],
    probes: list[dict],
    commands: Iterable[str],
    details: Mapping[str, str],
) -> Path:
    """Write a report.

    Args:
        path: File to write.
        title: Heading.
        about: One line below it.
        summary: Rows of the first table.
        pictures: Captions and PNG files.
        probes: Entries of the log with ``step``, ``probe_knn`` and ``probe_linear``.
        commands: Commands that use the run, one line each.
        details: Longer texts by title, folded.

    Returns:
        The path.
    """
    parts = [f'<h1>{html.escape(title)}</h1>', f'<p class="about">{html.escape(about)}</p>', _table(summary.items())]
    if probes:
        parts.append('<h2>Probes on labeled images</h2>')
        rows = [(f'{entry["step"]:,}', f'{entry["probe_knn"]:.1f}', f'{entry["probe_linear"]:.1f}') for entry in probes]
        parts.append(_columns(('iteration', 'kNN, %', 'linear, %'), rows))
    parts += [f'<h2>{html.escape(caption)}</h2>{_picture(file, caption)}' for caption, file in pictures]
    parts += ['<h2>Use it</h2>', f'<pre>{html.escape(chr(10).join(commands))}</pre>']
    for name, text in details.items():
        parts.append(f'<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    path = Path(path)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + '\n'.join(parts) + '\n</body></html>\n'
    )
    return path


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = (f'<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>' for name, value in rows)
    return f'<table>{"".join(cells)}</table>'


def _columns(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in names)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>' for row in rows)
    return f'<table><tr>{head}</tr>{body}</table>'


def _picture(file: Path, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>'


def drawn(work_dir: str | Path, name: str, run: str = '*') -> list[Path]:
    """Pictures that were drawn during a run, in the order of training.

    Args:
        work_dir: Work_dir of one or several runs.
        name: ``'reconstruction'`` or ``'features'``.
        run: Timestamp of a run; all by default.
    """
    files = Path(work_dir).glob(f'{run}/vis_data/vis_image/{name}_*.png')
    numbered = [(int(found[1]), str(file)) for file in files if (found := re.search(r'_(\d+)\.png$', file.name))]
    return [Path(file) for _, file in sorted(numbered)]
