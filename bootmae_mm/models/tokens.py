"""Functions on tokens and patches that backbone, neck and heads share.

Positions are explicit everywhere: a token carries the index of its patch in row-major order, ids (B, K) say which
patches are meant, and nothing is ever put back in image order (attention does not care about order).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bootmae_mm.values import integer, to_pair

MAX_PATCHES = 2**18  # of an image: a mistake is named before it fills the memory


def patch_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in an image.

    Raises:
        ValueError: If the image is not divisible by the patch, or has more than :data:`MAX_PATCHES`.
    """
    height, width = to_pair(img_size, 'img_size')
    integer(patch_size, 'patch_size', least=1)
    if height % patch_size or width % patch_size:
        raise ValueError(f'img_size {height}x{width} is not divisible by patch_size {patch_size}')
    rows, columns = height // patch_size, width // patch_size
    if rows * columns > MAX_PATCHES:
        raise ValueError(f'img_size {height}x{width} has more than {MAX_PATCHES} patches of patch_size {patch_size}')
    return rows, columns


def sincos_pos_embed(grid: tuple[int, int], dims: int, temperature: float = 10000.0) -> Tensor:
    """Fixed 2-D sine-cosine position embedding, the class token's row zero.

    As in MoCo v3, whose two halves stand for row and column in row-major order. MoCo v3 and mmpretrain's
    ``build_2d_sincos_position_embedding`` flatten a transposed grid when it is not square; this one does not.

    Args:
        grid: Rows and columns of patches.
        dims: Width of a token, divisible by 4.
        temperature: Base of the wavelengths.

    Returns:
        Tensor (1, 1 + rows * columns, dims), float32.

    Raises:
        ValueError: If ``dims`` is not divisible by 4.
    """
    if dims % 4:
        raise ValueError(f'a 2-D sine-cosine position embedding needs a width divisible by 4, but it is {dims}')
    omega = torch.arange(dims // 4, dtype=torch.float32) / (dims // 4)
    omega = 1.0 / temperature**omega
    row, column = torch.meshgrid(*(torch.arange(edge, dtype=torch.float32) for edge in grid), indexing='ij')
    row, column = torch.outer(row.flatten(), omega), torch.outer(column.flatten(), omega)
    patches = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    return torch.cat([torch.zeros(1, dims), patches])[None]


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens by patch index: (B or 1, L, D) and ids (B, K) -> (B, K, D)."""
    if tokens.shape[0] == 1:  # shared by the batch, such as a position embedding
        return tokens[0][ids]
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


class SharedTokens(NamedTuple):
    """Tokens (B, N + M, D), the last M of which all images take from one table.

    Mask tokens are such: they differ by their place only. What is done to each token by itself is then done to the
    table, once a batch.

    Attributes:
        own: Of each image, (B, N, D).
        table: (L, D).
        ids: Rows of the table, (B, M).
    """

    own: Tensor
    table: Tensor
    ids: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> SharedTokens:
        """Apply what treats every token by itself, such as a norm or a linear layer."""
        return SharedTokens(function(self.own), function(self.table), self.ids)

    def joined(self) -> Tensor:
        """The tokens of every image, (B, N + M, D)."""
        # The gradient of an embedding adds up faster than that of an index.
        return torch.cat([self.own, F.embedding(self.ids, self.table)], dim=1)


def take_patches(images: Tensor, ids: Tensor, patch_size: int) -> Tensor:
    """Cut chosen patches out of images: (B, C, H, W) and ids (B, K) -> (B, K, C, patch, patch).

    Only the chosen pixels are copied.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    image = torch.arange(batch, device=images.device)[:, None]
    return grid[image, ids // columns, ids % columns]


def place_patches(images: Tensor, patches: Tensor, ids: Tensor) -> Tensor:
    """Paste patches into a copy of images, the inverse of :func:`take_patches`.

    (B, C, H, W), (B, K, C, patch, patch) and ids (B, K) -> (B, C, H, W).
    """
    images = images.clone()
    batch, channels, height, width = images.shape
    patch_size = patches.shape[-1]
    rows, columns = height // patch_size, width // patch_size
    grid = images.view(batch, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    image = torch.arange(batch, device=images.device)[:, None]
    grid[image, ids // columns, ids % columns] = patches.to(images.dtype)
    return images


def loss_weights(ids_mask: Tensor, grid: tuple[int, int], weighted: bool = True) -> Tensor:
    """Weight of every masked patch in the losses, w = 1 + avg_pool3x3(mask), or ones.

    The inside of a masked block weighs up to 2, a lonely masked patch 1 + 1/9; the zero padding counts in the average.
    Source: ``run_pretraining.py`` of the authors' code (``weight_mask``).

    Args:
        ids_mask: Indices of the masked patches, (B, M).
        grid: Rows and columns of patches.
        weighted: False for weights of one.

    Returns:
        Tensor (B, M), float32, in the order of ``ids_mask``.
    """
    if not weighted:
        return torch.ones(ids_mask.shape, device=ids_mask.device)
    mask = torch.zeros(ids_mask.shape[0], grid[0] * grid[1], device=ids_mask.device).scatter_(1, ids_mask, 1.0)
    around = F.avg_pool2d(mask.view(-1, 1, *grid), kernel_size=3, stride=1, padding=1).flatten(1)
    return 1.0 + around.gather(1, ids_mask)


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``w * (prediction - target)^2`` over masked patches, in float32.

    Dividing by the number of masked patches is the same as the authors' mean over all patches over mean(mask).

    Args:
        prediction: (B, M, ...).
        target: (B, M, ...), the same shape.
        weights: (B, M).

    Returns:
        Tensor, a scalar.
    """
    error = (prediction.float() - target.float()).square().flatten(2).mean(2)
    return (weights * error).mean()
