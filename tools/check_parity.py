#!/usr/bin/env python3
"""Compare this project with numbers of the authors' program.

Loads PREFIX.json and PREFIX.safetensors, runs them through the project's converter, model, heads, optimizer constructor
and EMA update, prints the largest absolute difference of every quantity, and exits 0 only if all are within tolerance:
1e-5 of the values' scale for outputs, losses and gradients, 1e-4 after the steps.

Example:
    python tools/check_parity.py tests/reference/tiny_a
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import bootmae_mm  # noqa: F401  registers what the import below needs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks and examples are not installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('prefix', help='path of the pair of files without .json and .safetensors')
    args = parser.parse_args()

    from benchmarks.parity import Parity
    from bootmae_mm.commands.arguments import errors_in_one_line

    with errors_in_one_line():
        differences = Parity.from_files(args.prefix).run()
    width = max(len(difference.name) for difference in differences)
    for d in differences:
        share = d.difference / d.scale if d.scale else d.difference
        print(
            f'{d.name:{width}}  {d.difference:9.2e}  {share:9.2e} of scale  '
            f'(allowed {d.tolerance:.0e})  {"ok" if d.passes else "FAILS"}'
        )
    failed = [d.name for d in differences if not d.passes]
    print(f'{len(differences) - len(failed)} of {len(differences)} quantities within tolerance')
    if failed:
        raise SystemExit(f'error: {len(failed)} of {len(differences)} differ: {", ".join(failed[:5])}')


if __name__ == '__main__':
    main()
