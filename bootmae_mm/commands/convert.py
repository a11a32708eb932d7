"""Convert checkpoints of the authors (LightDXY/BootMAE) to this project's form, and those of pretraining back.

Theirs hold `model`, `model_ema` and an argparse Namespace. No code in the files is run. What this project does not use
(decoders of model_ema, optimizer, arguments) is kept, so that the conversion back is exact.

Examples:
    bootmae convert checkpoint-799.pth bootmae_vitb.pth
    bootmae convert bootmae_vitb.pth checkpoint-799.pth --to official
    bootmae convert BootMAE_Base_800_UperNet.pth upernet.pth    (for configs/seg)
    bootmae convert BootMAE_Base_800_FT.pth classifier.pth      (for configs/cls, see bootmae test)
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .arguments import errors_in_one_line, trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('source', help='checkpoint to read')
    parser.add_argument('target', help='checkpoint to write')
    parser.add_argument('--to', choices=['project', 'official'], default='project', help='direction')
    parser.add_argument(
        '--weights',
        choices=['model_ema', 'model', 'module'],
        help='which weights of a classifier to convert (default: the first of these in the file)',
    )
    parser.add_argument('--quiet', action='store_true', help='do not list the keys')
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import torch

    from bootmae_mm.checkpoints.official import to_official, to_project
    from bootmae_mm.checkpoints.official_classifier import classifier_to_project, is_official_classifier
    from bootmae_mm.checkpoints.official_segmentor import is_official_segmentor, segmentor_to_project
    from bootmae_mm.checkpoints.reading import load_file

    with errors_in_one_line():
        checkpoint = load_file(args.source)
        if args.to == 'official':
            convert = to_official
        else:
            convert = segmentor_to_project if is_official_segmentor(checkpoint) else to_project
        if args.to == 'project' and is_official_classifier(checkpoint):
            conversion = classifier_to_project(checkpoint, args.weights)
        else:
            conversion = convert(checkpoint)
    target = Path(args.target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + '.part')
    torch.save(conversion.checkpoint, temporary)
    os.replace(temporary, target)
    if not args.quiet:
        width = max(len(source) for source, _ in conversion.moves)
        for source, place in conversion.moves:
            print(f'{source:{width}} -> {place}')
    weights = conversion.checkpoint.get('meta', {}).get('weights')
    print(f'{len(conversion.moves)} keys{f" ({weights})" if weights else ""} of {args.source} -> {target}')
