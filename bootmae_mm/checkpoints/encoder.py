"""Strict loading of an encoder from any checkpoint that holds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from bootmae_mm.validation import Share, parse, require

from .names import from_clip, from_huggingface, from_timm, is_clip, is_huggingface, is_timm
from .official import is_official, to_project
from .patches import fit_patch_embed
from .reading import load_file

# Keys under which a checkpoint may hold the weights; of DINO's training checkpoints, the teacher is used.
PLACES = ('state_dict', 'model', 'teacher', 'student', 'model_ema', 'module')


@dataclass
class LoadReport:
    """Report of a loaded encoder.

    Attributes:
        source: Path of the file.
        loaded: Names of the loaded weights.
        resized: Names of loaded weights that were resized (position embedding, relative-position tables).
        fresh: Names of weights that pretraining does not have, left as initialized.
        missing: Names of weights that are missing in the file.
        unused: Names in the file that the encoder does not have.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def named(count: int, what: str, names: list[str]) -> str:
            shown = f' ({", ".join(names[:2])}{", ..." if len(names) > 2 else ""})' if names else ''
            return f'{count} {what}{shown}'

        return ', '.join(
            [
                f'{len(self.loaded)} of {len(self.loaded) + len(self.missing)} pretrained weights loaded from '
                f'{self.source}',
                named(len(self.resized), 'of them resized', self.resized),
                named(len(self.fresh + self.missing), 'left at init', self.missing + self.fresh),
                named(len(self.unused), 'in the file not used', self.unused),
            ]
        )


def _weights_in(checkpoint: dict) -> dict:
    state = next((checkpoint[place] for place in PLACES if isinstance(checkpoint.get(place), dict)), checkpoint)
    return {name.removeprefix('module.'): value for name, value in state.items()}


def misfits(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Compare weights of a file with those of a module.

    Returns:
        Names that the file lacks, and one description for each weight of another shape.
    """
    missing = [name for name in wanted if name not in state]
    wrong = [
        f'{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}'
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    return missing, wrong


def load_weights(
    module: nn.Module, checkpoint: str | Path, prefix: str = '', convert: Callable[[dict], dict] | None = None
) -> int:
    """Load all weights of any module strictly; what else the file holds is ignored.

    Args:
        module: Module to load into.
        checkpoint: Path of a file of torch or safetensors, a folder of transformers or timm, or a URL.
        prefix: Prefix of the keys in the file.
        convert: Turns the names and shapes of the file into those of the module.

    Returns:
        Number of loaded weights.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If a weight of the module is missing, or has another shape.
    """
    state = _weights_in(load_file(checkpoint))
    state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    state = convert(state) if convert else state
    wanted = module.state_dict()
    missing, wrong = misfits(state, wanted)
    require(
        not missing and not wrong,
        f'{checkpoint} does not fit {type(module).__name__}: {len(missing)} of {len(wanted)} weights are missing '
        f'{missing[:3]}, {len(wrong)} have another shape {wrong[:3]} (prefix {prefix!r}; its keys look like '
        f'{sorted(state)[:2]})',
    )
    module.load_state_dict({name: state[name] for name in wanted})
    return len(wanted)


def encoder_state(path: str | Path, prefix: str | None = None) -> dict[str, Tensor]:
    """The encoder's weights in a checkpoint, in this project's names.

    Args:
        path: A checkpoint of this project, of mmpretrain, of the authors, or with the names of timm (also MAE's,
            DINO's and DINOv2's) or transformers (ViT, ViTMAE, DINOv2, the vision part of CLIP), recognized by its keys;
            a file of torch or safetensors, a folder of transformers, a URL, or ``hf-hub:ORG/NAME``.
        prefix: Prefix of the encoder's keys: ``'backbone.'`` for the student, ``'teacher.'`` for the momentum encoder,
            ``''`` for a file of the encoder alone. By default ``'backbone.'`` if there is such a key, else ``''``.

    Returns:
        Names without the prefix -> tensors.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If the file is not a checkpoint, or no key has the prefix.
    """
    checkpoint = load_file(path)
    if is_official(checkpoint):
        checkpoint = to_project(checkpoint).checkpoint
    state = _weights_in(checkpoint)
    if prefix is None:
        prefix = _prefix_of(state)
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if is_timm(found):
        found = from_timm(found)
    elif is_huggingface(found):
        found = from_huggingface(found)
    elif is_clip(found):
        found = from_clip(found)
    found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    require(found, f'no weight in {path} has the prefix {prefix!r}; its keys look like {list(state)[:3]}')
    return found


def _prefix_of(state: dict) -> str:
    """Prefix of the encoder's keys, found by its patch embedding; the student's if there are several encoders."""
    ends = ('patch_embed.projection.weight', 'patch_embed.proj.weight')  # those of transformers find their own
    found = [name.removesuffix(end) for name in state for end in ends if name.endswith(end)]
    if 'backbone.' in found or any(name.startswith('backbone.') for name in state):
        return 'backbone.'
    return min(found, key=len, default='')


def load_encoder(
    encoder: nn.Module,
    checkpoint: str | Path,
    prefix: str | None = None,
    min_share: float = 1.0,
    grid: tuple[int, int] | None = None,
    resize: bool = True,
    adapt: bool = False,
) -> LoadReport:
    """Load an encoder from a checkpoint strictly: raises if weights are missing.

    The position embedding is resized (bicubic) if the image has another number of patches, and cut if there is no class
    token; relative-position tables are resized, too.

    Args:
        encoder: Backbone to load into, a :class:`BootMAEViT`.
        checkpoint: See :func:`encoder_state`.
        prefix: See :func:`encoder_state`.
        min_share: Smallest share, in [0, 1], of the encoder's weights that must come from the file; those in
            :attr:`BootMAEViT.fresh_weights` do not count.
        grid: Rows and columns of patches of the file's position embedding; by default a square, or the encoder's.
        resize: False to refuse another number of patches.
        adapt: Fit the patch embedding of a file with other channels or another patch size
            (:func:`bootmae_mm.checkpoints.patches.fit_patch_embed`), instead of refusing it.

    Returns:
        Report; ``str()`` of it is one line.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If less than ``min_share`` fits, with names and shapes.
    """
    parse(Share, min_share, 'min_share')
    state = encoder_state(checkpoint, prefix)
    wanted = encoder.state_dict()
    may_be_fresh = encoder.fresh_weights
    report = LoadReport(str(checkpoint))
    if resize:
        report.resized = encoder.resize_positions(state, grid)
    name = 'patch_embed.projection.weight'
    if adapt and name in state and name in wanted and state[name].shape != wanted[name].shape:
        state[name] = fit_patch_embed(state[name], wanted[name].shape[1], wanted[name].shape[-1])
        report.resized.append(name)
    absent, wrong = misfits(state, wanted)
    for name, value in wanted.items():
        if name in state and state[name].shape == value.shape:
            report.loaded.append(name)
        else:
            (report.fresh if name in may_be_fresh and name in absent else report.missing).append(name)
    report.unused = sorted(set(state) - set(wanted))
    report.resized = [name for name in report.resized if name in report.loaded]

    total = len(wanted) - len(report.fresh)
    absent = [name for name in absent if name in report.missing]
    require(
        report.loaded and len(report.loaded) >= min_share * total,
        f'{checkpoint} does not fit the encoder: {len(absent)} of {total} weights missing {absent[:3]}, {len(wrong)} '
        f'of another shape {wrong[:3]}; at least min_share={min_share} must be loaded (prefix {prefix!r}; its keys '
        f'look like {sorted(state)[:2]})',
    )
    encoder.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report
