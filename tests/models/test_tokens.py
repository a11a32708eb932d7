"""Operations on tokens and patches."""

import numpy as np
import pytest
import torch
from mmpretrain.models.utils import build_2d_sincos_position_embedding

from bootmae_mm.models.tokens import (
    place_patches,
    sincos_pos_embed,
    take_patches,
    take_tokens,
    tile_pos_embed,
)
from bootmae_mm.validation import ConfigError


def test_square_position_embedding_is_mmpretrains():
    wanted = build_2d_sincos_position_embedding(5, 16, cls_token=True)
    torch.testing.assert_close(sincos_pos_embed((5, 5), 16), wanted, rtol=0, atol=0)


def test_rows_and_columns_of_a_wide_grid():
    embed = sincos_pos_embed((2, 3), 8)
    assert embed.shape == (1, 7, 8)
    assert embed[0, 0].abs().max() == 0  # the class token's
    grid = embed[0, 1:].view(2, 3, 8)
    # The first half encodes the row, the second the column, at wavelengths 1 and 100.
    for row in range(2):
        for column in range(3):
            angles = [row, row / 100, row, row / 100, column, column / 100, column, column / 100]
            wanted = [
                torch.sin(torch.tensor(float(a))) if i % 4 < 2 else torch.cos(torch.tensor(float(a)))
                for i, a in enumerate(angles)
            ]
            torch.testing.assert_close(grid[row, column], torch.stack(wanted))


def test_a_tiled_embedding_repeats_and_is_cut():
    embed = torch.randn(1, 1 + 4 * 5, 3)  # class token, 4 x 5 patches
    grid = tile_pos_embed(embed, (4, 5), (9, 12), tile=2, extra=1)
    assert torch.equal(grid[:, 0], embed[:, 0])
    own, tiled = embed[0, 1:].view(4, 5, 3), grid[0, 1:].view(9, 12, 3)
    rows, columns = [0, 1, 2, 3, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 1, 2, 3, 0, 1, 2, 3]
    for row, column in np.ndindex(9, 12):
        assert torch.equal(tiled[row, column], own[rows[row], columns[column]])
    assert torch.equal(tile_pos_embed(embed, (4, 5), (1, 2), tile=2, extra=1)[0, 1:], own[0, :2])


def test_width_of_the_embedding_must_be_divisible_by_four():
    with pytest.raises(ConfigError, match='divisible by 4, but it is 6'):
        sincos_pos_embed((2, 2), 6)


def test_patches_are_cut_in_row_major_order_and_pasted_back():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    ids = torch.tensor([[4, 0], [5, 2]])
    patches = take_patches(images, ids, 2)
    assert patches.shape == (2, 2, 3, 2, 2)
    torch.testing.assert_close(patches[0, 0], images[0, :, 2:4, 2:4])  # patch 4 of 2 x 3: second row, second column
    torch.testing.assert_close(patches[1, 1], images[1, :, 0:2, 4:6])
    pasted = place_patches(torch.zeros_like(images), patches, ids)
    torch.testing.assert_close(pasted[0, :, 2:4, 2:4], images[0, :, 2:4, 2:4])
    assert pasted[0, :, 0:2, 2:6].abs().max() == 0


def test_take_tokens_of_a_batch_and_of_a_shared_embedding():
    tokens = torch.randn(2, 5, 4)
    ids = torch.tensor([[3, 1], [0, 4]])
    torch.testing.assert_close(take_tokens(tokens, ids), torch.stack([tokens[0, [3, 1]], tokens[1, [0, 4]]]))
    torch.testing.assert_close(take_tokens(tokens[:1], ids), torch.stack([tokens[0, [3, 1]], tokens[0, [0, 4]]]))


def test_several_masks_of_an_image():
    images, tokens = torch.randn(2, 3, 4, 6), torch.randn(2, 6, 5)
    ids = torch.tensor([[4, 0], [5, 2], [1, 1], [3, 0]])  # two masks for each image
    repeated = take_patches(images.repeat_interleave(2, 0), ids, 2)
    assert torch.equal(take_patches(images, ids, 2), repeated)
    assert torch.equal(take_tokens(tokens, ids), take_tokens(tokens.repeat_interleave(2, 0), ids))
