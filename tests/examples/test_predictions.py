"""Contact sheets of predictions and ground truth."""

import numpy as np
import pytest

from examples.predictions import CAPTION, contact_sheet, overlay_instances, overlay_map


def test_a_contact_sheet_has_one_row_per_caption():
    red, green, blue = (np.full((8, 10, 3), color, np.uint8) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    sheet = contact_sheet({'truth': [red, green], 'prediction': [blue]}, gap=3)
    assert sheet.shape == (2 * (8 + CAPTION + 3), 2 * (10 + 3) + 3, 3)
    second = 8 + CAPTION + 3
    assert (sheet[CAPTION : CAPTION + 8, 3:13] == red).all()
    assert (sheet[CAPTION : CAPTION + 8, 16:26] == green).all()
    assert (sheet[second + CAPTION : second + CAPTION + 8, 3:13] == blue).all()
    assert (sheet[second + CAPTION : second + CAPTION + 8, 16:26] == 255).all()
    assert sheet[:CAPTION].min() < 128  # the caption
    with pytest.raises(AssertionError):
        contact_sheet({'truth': [red, red[:4]]})


def test_a_map_colors_known_classes_only():
    image = np.full((2, 2, 3), 100, np.uint8)
    labels = np.array([[0, 1], [255, -1]])
    palette = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    found = overlay_map(image, labels, palette, opacity=0.5)
    assert found.tolist() == [[[150, 50, 50], [50, 150, 50]], [[100] * 3, [100] * 3]]


def test_instances_are_drawn_on_a_copy():
    image = np.zeros((20, 30, 3), np.uint8)
    masks = np.zeros((1, 20, 30), bool)
    masks[0, 12:18, 12:24] = True
    found = overlay_instances(image, np.array([[10.0, 10, 26, 19]]), masks, ['7'], [(200, 100, 50)], scale=2)
    assert found.shape == (40, 60, 3) and image.max() == 0
    assert found[30, 40].tolist() == [100, 50, 25]  # inside the mask
    assert found[37, 40].tolist() == [200, 100, 50]  # the lower side of the box
    assert found[5, 5].tolist() == [0, 0, 0]
