"""Draw docs/images/method.png: the branches of the method. Run from anywhere: python docs/images/method.py."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ARROW = dict(arrowstyle='->', color='#333333', shrinkA=2, shrinkB=2)
TRAINED, TARGET, MASK, GRAY = '#cfe0f1', '#f8dfc2', '#e2ecd9', '#eeeeee'
# Center, width and height of every box, its text and color.
BOXES = {
    'images': (1.0, 3.0, 1.4, 0.9, 'images\n(B, C, H, W)', GRAY),
    'masks': (3.2, 4.6, 1.9, 0.9, 'masks\nloader or device', MASK),
    'student': (3.2, 3.0, 1.9, 1.0, 'student\nkept patches only', TRAINED),
    'teacher': (3.2, 0.9, 1.9, 1.0, 'teacher\nwhole image', TARGET),
    'pixel': (6.4, 4.6, 2.0, 0.8, 'pixel decoder', TRAINED),
    'feature': (6.4, 3.5, 2.0, 0.8, 'feature decoder', TRAINED),
    'other': (6.4, 2.4, 2.0, 0.8, 'any other decoder', TRAINED),
    'pixel head': (9.1, 4.6, 1.9, 0.8, 'pixel head\nPatchMSE', TRAINED),
    'feature head': (9.1, 3.5, 1.9, 0.8, 'feature head\nPatchMSE', TRAINED),
    'other head': (9.1, 2.4, 1.9, 0.8, 'any head\nany loss', TRAINED),
    'pixel target': (11.9, 4.6, 2.1, 0.8, 'PixelTarget\nmasked patches', TARGET),
    'feature target': (11.9, 3.5, 2.1, 0.8, 'TeacherTarget\nmasked patches', TARGET),
    'other target': (11.9, 2.4, 2.1, 0.8, 'any target\nmasked patches', TARGET),
}
# From, to, text and its place and angle.
ARROWS = [
    ('images', 'student', '', 0, 0, 0),
    ('images', 'teacher', '', 0, 0, 0),
    ('masks', 'student', '', 0, 0, 0),
    ('student', 'pixel', 'shallow block', 4.72, 4.0, 50),
    ('student', 'feature', 'deep block', 4.95, 3.38, 21),
    ('student', 'other', '', 0, 0, 0),
    *((name, f'{name} head', '', 0, 0, 0) for name in ('pixel', 'feature', 'other')),
]


def main() -> None:
    """Draw the picture beside this file."""
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for x, y, width, height, text, color in BOXES.values():
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(
            FancyBboxPatch(corner, width, height, boxstyle='round,pad=0.02,rounding_size=0.1', fc=color, ec='#555555')
        )
        axes.text(x, y, text, ha='center', va='center', fontsize=11)
    for start, end, text, *place, angle in ARROWS:
        (x0, y0, w0, h0, *_), (x1, y1, w1, h1, *_) = BOXES[start], BOXES[end]
        is_below = x0 == x1
        begin = (x0, y0 - h0 / 2) if is_below else (x0 + w0 / 2, y0)
        stop = (x1, y1 + h1 / 2) if is_below else (x1 - w1 / 2, y1)
        axes.annotate('', stop, begin, arrowprops=ARROW)
        axes.text(*place, text, ha='center', fontsize=9, color='#333333', rotation=angle)
    for y in (4.6, 3.5, 2.4):  # targets to heads
        axes.annotate('', (10.05, y), (10.85, y), arrowprops=ARROW)
    axes.annotate('', (3.2, 1.4), (3.2, 2.5), arrowprops=dict(ARROW, ls='--'))
    axes.text(3.3, 1.95, 'momentum', va='center', fontsize=9, color='#333333')
    axes.plot([4.15, 13.4, 13.4], [0.9, 0.9, 3.5], color='#333333', lw=1)
    axes.annotate('', (12.95, 3.5), (13.45, 3.5), arrowprops=ARROW)
    axes.text(9.1, 1.7, 'loss = sum of NAME_weight x NAME_loss', ha='center', va='center', fontsize=11)
    axes.set(xlim=(0, 13.7), ylim=(0.2, 5.2), aspect='equal')
    axes.axis('off')
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=110)


if __name__ == '__main__':
    main()
