#!/usr/bin/env python3
"""Create a virtual environment with the exact versions of a lock file, and (by default) this package in it.

Needs nothing but a Python 3.10, 3.11 or 3.12 with its standard library. A second call with an unchanged lock file
returns at once.

Example:
    python3 tools/install.py --env .venv --lock requirements/onedl.lock
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 11), (3, 12))
UV = 'uv==0.13.9'


def say(text: str) -> None:
    print(f'[install] {text}', flush=True)


def fail(text: str) -> None:
    raise SystemExit(f'[install] error: {text}')


def run(*command: str | Path) -> None:
    """Run a command; if it fails, exit with its name and status."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT)
    if result.returncode:
        fail(f'`{" ".join(map(str, command))}` ended with status {result.returncode}')


def supported_python() -> str:
    """Path of a supported Python: the one running this, or the newest one on the PATH."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in reversed(SUPPORTED):
        path = shutil.which(f'python{major}.{minor}')
        if path and subprocess.run([path, '-c', ''], capture_output=True).returncode == 0:
            return path
    fail(f'Python 3.10, 3.11 or 3.12 is needed; this is {sys.version.split()[0]} and no other was found on the PATH')
    raise AssertionError  # not reached


def create(env: Path, python: str) -> None:
    """Create the virtual environment with uv in it."""
    done = subprocess.run([python, '-m', 'venv', '--clear', str(env)], capture_output=True, text=True)
    if done.returncode:
        fail(
            f'`{python} -m venv` failed; on Debian or Ubuntu: apt-get install python3-venv. '
            f'It said: {(done.stdout + done.stderr).strip().splitlines()[-1:]}'
        )
    run(env / 'bin/python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', UV)


def fingerprint(lock: Path) -> str:
    """Fingerprint of the lock file and the packaging, on which the environment depends."""
    parts = [lock.read_bytes(), (ROOT / 'setup.py').read_bytes(), Path(__file__).read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--env', default='.venv', help='folder of the environment, created if missing')
    parser.add_argument('--lock', default='requirements/onedl.lock', help='lock file with the exact versions')
    parser.add_argument('--no-package', action='store_true', help='install only what the lock file lists')
    args = parser.parse_args()
    env, lock = ROOT / args.env, ROOT / args.lock
    if not lock.is_file():
        fail(f'no lock file {lock}')

    stamp, wanted = env / 'installed.sha256', fingerprint(lock)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    begin = time.monotonic()
    python = supported_python()
    size = '' if args.no_package else ' (about 5 GB, a minute or two)'
    say(f'creating {args.env} with {python} and the versions of {args.lock}{size}')
    create(env, python)
    uv = [env / 'bin/python', '-m', 'uv', '--quiet', 'pip']
    target = ['--python', env / 'bin/python']
    run(*uv, 'sync', *target, '--compile-bytecode', lock)
    if not args.no_package:
        # The build backend is in the lock file, too.
        run(*uv, 'install', *target, '--no-deps', '--no-build-isolation', '--editable', ROOT)
    stamp.write_text(wanted)
    say(f'done in {time.monotonic() - begin:.0f} s')


if __name__ == '__main__':
    main()
