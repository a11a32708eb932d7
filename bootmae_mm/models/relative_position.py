"""Relative-position bias of attention logits, as in BEiT: one learned number per offset and head."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relative_position_index(grid: tuple[int, int], table_grid: tuple[int, int], class_token: bool) -> Tensor:
    """Row of the table for every pair of tokens.

    Rows of the table are the offsets in row-major order, (0, 0) in the middle; with a class token three more follow:
    class token to patch, patch to class token, class token to itself. Source: BEiT (``modeling_finetune.py``).

    Args:
        grid: Rows and columns of patches, at most those of ``table_grid``.
        table_grid: Rows and columns of patches that the table covers.
        class_token: Whether a class token comes before the patches.

    Returns:
        Tensor (N, N), int64, query first.
    """
    height, width = 2 * table_grid[0] - 1, 2 * table_grid[1] - 1
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing='ij')
    row, column = row.flatten(), column.flatten()
    row = row[:, None] - row[None] + table_grid[0] - 1  # (L, L), offsets from 0 on
    column = column[:, None] - column[None] + table_grid[1] - 1
    index = row * width + column
    if class_token:
        index = F.pad(index, (1, 0, 1, 0))  # (1 + L, 1 + L)
        index[0] = height * width
        index[:, 0] = height * width + 1
        index[0, 0] = height * width + 2
    return index


@functools.lru_cache(maxsize=16)
def _index_on(grid: tuple[int, int], table_grid: tuple[int, int], class_token: bool, device: torch.device) -> Tensor:
    """The index on a device, cached for all blocks and steps."""
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return relative_position_index(grid, table_grid, class_token).to(device)


def resize_bias_table(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a table from one grid of patches to another, bicubic; the rows of a class token stay as they are.

    Args:
        table: ((2 * rows - 1) * (2 * columns - 1) + 0 or 3, heads).
        source: Rows and columns of patches that the table covers.
        target: Rows and columns wanted.

    Returns:
        The table for ``target``.
    """
    if source == target:
        return table
    old, new = (tuple(2 * side - 1 for side in grid) for grid in (source, target))
    offsets, extra = table[: old[0] * old[1]], table[old[0] * old[1] :]  # (rows * columns, heads), (0 or 3, heads)
    image = offsets.T.reshape(1, -1, *old).float()  # (1, heads, rows, columns) of offsets
    image = F.interpolate(image, size=new, mode='bicubic', align_corners=False)
    return torch.cat([image.flatten(2)[0].T.to(table.dtype), extra])


class RelativePositionBias(nn.Module):
    """Bias of the attention logits from the offset of query and key; zero at the start.

    A grid smaller than the table's takes the offsets that occur in it; for a larger one the table is enlarged.

    Args:
        grid: Rows and columns of patches of the table.
        num_heads: Number of heads.
        class_token: Whether a class token comes before the patches.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int, class_token: bool) -> None:
        super().__init__()
        self.grid = grid
        self.class_token = class_token
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + (3 if class_token else 0)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The bias for patches in ``grid``: (heads, N, N), N with the class token if there is one."""
        table_grid = (max(grid[0], self.grid[0]), max(grid[1], self.grid[1]))
        table = resize_bias_table(self.relative_position_bias_table, self.grid, table_grid)  # (offsets, heads)
        index = _index_on(tuple(grid), table_grid, self.class_token, table.device)  # (N, N)
        # On a GPU, fused attention needs a mask with a dense last dimension; otherwise torch silently runs unfused.
        return table.T[:, index].contiguous()
