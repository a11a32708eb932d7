"""What a checkpoint of another program says about its encoder: sizes, variants, statistics of the images."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from bootmae_mm.validation import require

from .encoder import encoder_state
from .names import is_clip, is_huggingface
from .official import is_official
from .reading import load_file, local_file
from .saved_config import config_of, saved_config

# On the scale 0..255. MAE, DINO, DINOv2 and DeiT use ImageNet's.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALVES = ((127.5,) * 3, (127.5,) * 3)
CLIP = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305))
HEAD_WIDTH = 64  # in the published plain vision transformers, but for those of this width:
HEADS = {1280: 16}
INTERPOLATIONS = dict(nearest=0, lanczos=1, bilinear=2, bicubic=3)  # with their numbers in Pillow
IDENTITY = ('arch', 'img_size', 'patch_size', 'in_channels', 'norm_cfg')


@dataclass(frozen=True)
class Source:
    """An encoder in a file.

    Attributes:
        backbone: Options of ``BootMAEViT`` that build it.
        mean: Mean of each channel of its training images, on the scale 0..255.
        std: Standard deviation of each channel.
        notes: What is assumed, as the file does not say it; one line each.
        assumes_heads: Whether the number of heads is assumed.
        interpolation: Name of the interpolation in Pillow with which images are resized for it, if the file says so.
        crop_pct: Side of the crop over the shorter side of the resized image, if the file says so.
        squash: Whether images are resized to a fixed height and width, not to a shorter side.
    """

    backbone: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: list[str] = field(default_factory=list)
    assumes_heads: bool = False
    interpolation: str | None = None
    crop_pct: float | None = None
    squash: bool = False


def read_source(path: str | Path, prefix: str | None = None) -> Source:
    """Find out what encoder a checkpoint holds.

    Args:
        path: See :func:`bootmae_mm.checkpoints.encoder.encoder_state`.
        prefix: See there.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If it holds no plain vision transformer.
    """
    checkpoint = load_file(path)
    state = encoder_state(path, prefix)
    shapes = _shapes(state, path)
    unknown = [name for name in state if name.startswith(('blocks.', 'encoder.layer'))]
    require(not unknown, f'{path} is no plain vision transformer: it has {unknown[0] if unknown else ""}')
    variants: dict[str, Any] = {}
    if 'layers.0.attn.gamma1.weight' in state:
        variants['layer_scale_init_value'] = 1e-5
    if 'pre_norm.weight' in state:
        variants['pre_norm'] = True
    if saved_config(checkpoint) is not None:
        return _of_run(checkpoint, shapes, variants, path)
    _set_square(shapes, path)
    given = _json_beside(path, 'config.json')
    notes = []
    given = {**given, **(given.get('vision_config') or {}), **(given.get('model_args') or {})}
    heads = given.get('num_attention_heads') or given.get('num_heads')
    assumes_heads = not heads
    if assumes_heads:
        width = shapes['arch']['embed_dims']
        require(
            width % HEAD_WIDTH == 0,
            f'{path} does not say how many heads its attention has, and its width of {width} is not divisible by '
            f'{HEAD_WIDTH}; give a config (--config)',
        )
        heads = HEADS.get(width, width // HEAD_WIDTH)
        notes.append(f'{heads} heads of {width // heads} are assumed')
    shapes['arch']['num_heads'] = heads
    names = _weights(checkpoint)
    clip = 'pre_norm.weight' in state
    eps = given.get('layer_norm_eps') or (1e-5 if clip else 1e-12 if is_huggingface(names) else 1e-6)
    backbone = {**shapes, **variants, 'norm_cfg': dict(type='LN', eps=eps)}
    if clip:
        activation, note = _activation(given, names)
        notes += note
        if activation == 'quick_gelu':
            backbone['layer_cfgs'] = dict(act_cfg=dict(type='bootmae_mm.QuickGELU'))
    mean, std, note = _statistics(checkpoint, path, clip)
    return Source(backbone, mean, std, notes + note, assumes_heads, *_resizing(path))


def log_source(path: str | Path, source: Source) -> None:
    """Log what a source is, and what is assumed of it."""
    arch = source.backbone['arch']
    text = (
        f'{path}: {arch["num_layers"]} blocks, {arch["embed_dims"]} wide, {arch["num_heads"]} heads, patches of '
        f'{source.backbone["patch_size"]}, images of {source.backbone["img_size"]}'
    )
    print_log('; '.join([text, *source.notes]), logger='current')


def _weights(checkpoint: dict) -> dict:
    return checkpoint.get('state_dict', checkpoint)


def _shapes(state: dict[str, Tensor], path: str | Path) -> dict[str, Any]:
    """Options that follow from the shapes of the weights."""
    embed, projection = state.get('pos_embed'), state.get('patch_embed.projection.weight')
    first = state.get('layers.0.ffn.layers.0.0.weight')
    is_plain = embed is not None and embed.dim() == 3 and projection is not None and projection.dim() == 4
    require(is_plain and first is not None, f'{path} holds no plain vision transformer with a position embedding')
    assert embed is not None and projection is not None and first is not None
    registers = [name for name in state if 'reg_token' in name or 'register_token' in name]
    require(not registers, f'{path} has register tokens, which this encoder has not: {registers[:1]}')
    depth = len([name for name in state if name.startswith('layers.') and name.endswith('.ln1.weight')])
    return dict(
        arch=dict(embed_dims=embed.shape[2], num_layers=depth, feedforward_channels=first.shape[0]),
        patches=embed.shape[1] - int('cls_token' in state),
        patch_size=projection.shape[-1],
        in_channels=projection.shape[1],
    )


def _set_square(shapes: dict[str, Any], path: str | Path) -> None:
    """Replace the number of patches by the size of square images."""
    patches = shapes.pop('patches')
    side = math.isqrt(patches)
    require(side * side == patches, f'{path} has {patches} positions, which is not a square; give a config')
    shapes['img_size'] = (side * shapes['patch_size'],) * 2


def _of_run(checkpoint: dict, shapes: dict[str, Any], variants: dict[str, Any], path: str | Path) -> Source:
    """Of a run of this project, or of mmpretrain."""
    from mmpretrain.models import VisionTransformer

    cfg = config_of(checkpoint)
    given = {key: value for key, value in cfg.model.backbone.items() if key in (*IDENTITY, 'layer_cfgs')}
    arch, own = given.pop('arch', 'base'), shapes['arch']
    width = own['embed_dims']
    if isinstance(arch, str):
        named = VisionTransformer.arch_zoo.get(arch.lower(), {})
        is_that = (named.get('embed_dims'), named.get('num_layers')) == (width, own['num_layers'])
        own['num_heads'] = named['num_heads'] if is_that else HEADS.get(width, width // HEAD_WIDTH)
    else:
        own['num_heads'] = arch['num_heads']
    if 'img_size' in given:
        shapes.pop('patches')
    else:
        _set_square(shapes, path)
    size = given.get('img_size')
    given.update({} if size is None else {'img_size': (size, size) if isinstance(size, int) else tuple(size)})
    statistics = {**(cfg.get('data_preprocessor') or {}), **(cfg.model.get('data_preprocessor') or {})}
    mean, std = statistics.get('mean') or HALVES[0], statistics.get('std') or HALVES[1]
    return Source({**shapes, **given, **variants}, tuple(mean), tuple(std))


def _json_beside(path: str | Path, name: str) -> dict[str, Any]:
    """Content of a JSON file beside a model of transformers or timm, or {}."""
    file = local_file(path).parent / name
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding='utf-8'))
    return content if isinstance(content, dict) else {}


def _statistics(
    checkpoint: dict, path: str | Path, clip: bool
) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    """Mean and std on the scale 0..255, and what is assumed."""
    given = _json_beside(path, 'preprocessor_config.json')
    mean, std = given.get('image_mean'), given.get('image_std')
    if mean is None or std is None:
        given = _json_beside(path, 'config.json').get('pretrained_cfg') or {}
        mean, std = given.get('mean'), given.get('std')
    if mean is not None and std is not None:
        return tuple(255 * value for value in mean), tuple(255 * value for value in std), []
    if is_official(checkpoint):
        return *HALVES, []
    if clip:
        return *CLIP, []
    return *IMAGENET, ["ImageNet's mean and std are assumed"]


def _resizing(path: str | Path) -> tuple[str | None, float | None, bool]:
    """Interpolation, ``crop_pct`` and ``squash`` that the files beside a model of transformers or timm state."""
    given = _json_beside(path, 'preprocessor_config.json')
    if not given:
        found = _json_beside(path, 'config.json').get('pretrained_cfg') or {}
        name = found.get('interpolation')
        return name if name in INTERPOLATIONS else None, found.get('crop_pct'), found.get('crop_mode') == 'squash'
    name = next((name for name, number in INTERPOLATIONS.items() if number == given.get('resample')), None)
    edges, crop = given.get('size'), _shorter(given.get('crop_size'))
    size = _shorter(edges)
    # Older files state a number: height and width for ViT, the shorter edge for those that crop.
    squash = 'shortest_edge' not in edges if isinstance(edges, dict) else not crop
    if size and crop and given.get('do_center_crop'):
        return name, min(1.0, crop / size), squash
    return name, 1.0, squash


def _shorter(size: Any) -> int | None:
    """Shorter side of a size in the files of transformers: a number, an edge, or height and width."""
    if isinstance(size, dict):
        sides = [side for side in size.values() if isinstance(side, int)]
        return min(sides) if sides else None
    return size if isinstance(size, int) else None


def _activation(given: dict[str, Any], names: dict) -> tuple[str, list[str]]:
    """Activation of an encoder of CLIP, and what is assumed: OpenAI's have QuickGELU, most later ones GELU."""
    if is_clip(names):
        return given.get('hidden_act', 'quick_gelu'), []
    if 'architecture' in given:
        return 'quick_gelu' if 'quickgelu' in given['architecture'] else 'gelu', []
    return 'gelu', ['GELU is assumed; some models of CLIP have QuickGELU']


def fit_statistics(values: tuple[float, ...], channels: int) -> list[float]:
    """Mean or std for another number of channels: their mean for each."""
    if len(values) == channels:
        return list(values)
    return [sum(values) / len(values)] * channels
