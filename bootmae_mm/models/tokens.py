"""Operations on tokens and patches that backbone, neck and heads share.

A token carries the index of its patch in row-major order: ids (B, K) say which patches are meant, and tokens are never
put back in image order (attention does not depend on the order).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bootmae_mm.validation import require


def sincos_pos_embed(grid: tuple[int, int], dims: int, temperature: float = 10000.0) -> Tensor:
    """Fixed 2-D sine-cosine position embedding, with zeros for the class token.

    As in MoCo v3: one half for the row, one for the column. MoCo v3 and mmpretrain's
    ``build_2d_sincos_position_embedding`` flatten a transposed grid when it is not square; this one does not.

    Args:
        grid: Rows and columns of patches.
        dims: Width of a token, divisible by 4.
        temperature: Base of the wavelengths.

    Returns:
        Tensor (1, 1 + rows * columns, dims), float32.

    Raises:
        ConfigError: If ``dims`` is not divisible by 4.
    """
    require(dims % 4 == 0, f'a 2-D sine-cosine position embedding needs a width divisible by 4, but it is {dims}')
    omega = torch.arange(dims // 4, dtype=torch.float32) / (dims // 4)
    omega = 1.0 / temperature**omega  # (dims / 4,)
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing='ij')
    row, column = torch.outer(row.flatten(), omega), torch.outer(column.flatten(), omega)  # (L, dims / 4) each
    patches = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)  # (L, dims)
    return torch.cat([torch.zeros(1, dims), patches])[None]  # (1, 1 + L, dims)


def tile_pos_embed(embed: Tensor, source: tuple[int, int], grid: tuple[int, int], tile: int, extra: int) -> Tensor:
    """Repeat a position embedding over a larger grid, or cut it for a smaller one.

    Source: Bolya et al., arXiv 2311.05613, which tiles the embeddings of windows.

    Args:
        embed: (1, extra + rows * columns, D) of ``source``.
        source: Its rows and columns of patches, at least ``tile`` each.
        grid: Wanted rows and columns.
        tile: Side of what repeats: beyond ``source``, its whole tiles come again.
        extra: Number of tokens before the patches, which stay.

    Returns:
        Tensor (1, extra + rows * columns, D) of ``grid``.
    """
    patches = embed[:, extra:].unflatten(1, source)  # (1, rows, columns, D)
    for dim, (side, wanted) in enumerate(zip(source, grid, strict=True), start=1):
        places = torch.arange(wanted, device=embed.device)
        places = torch.where(places < side, places, places % (side // tile * tile))
        patches = patches.index_select(dim, places)
    return torch.cat([embed[:, :extra], patches.flatten(1, 2)], dim=1)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens by patch index: (B or 1, L, D) and ids (B * K, N) -> (B * K, N, D), for K masks per image."""
    if tokens.shape[0] == 1:  # shared by the batch, such as a position embedding
        return tokens[0][ids]
    ids_of_image = ids.reshape(len(tokens), -1)  # (B, K * N)
    taken = tokens.gather(1, ids_of_image[:, :, None].expand(-1, -1, tokens.shape[2]))
    return taken.view(*ids.shape, -1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """View images as a grid of patches: (B, C, H, W) -> (B, rows, columns, C, patch, patch)."""
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, C, rows, p, columns, p)
    return patches.permute(0, 2, 4, 1, 3, 5)


def take_patches(images: Tensor, ids: Tensor, patch_size: int) -> Tensor:
    """Cut chosen patches out of images: (B, C, H, W) and ids (B * K, N) -> (B * K, N, C, patch, patch)."""
    columns = images.shape[3] // patch_size
    masks = len(ids) // len(images)  # K, usually 1
    image = torch.arange(len(ids), device=images.device)[:, None] // masks  # (B * K, 1)
    return patchify(images, patch_size)[image, ids // columns, ids % columns]  # copies the chosen pixels only


def place_patches(images: Tensor, patches: Tensor, ids: Tensor) -> Tensor:
    """Paste patches into a copy of images, the inverse of :func:`take_patches`.

    (B, C, H, W), (B, K, C, patch, patch) and ids (B, K) -> (B, C, H, W).
    """
    images = images.clone()
    columns = images.shape[3] // patches.shape[-1]
    image = torch.arange(len(images), device=images.device)[:, None]  # (B, 1)
    patchify(images, patches.shape[-1])[image, ids // columns, ids % columns] = patches.to(images.dtype)
    return images
