"""Checkpoints with code in them, read by every tool in its own process."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.tools.test_tools import ENVIRONMENT
from tests.tools.test_trust import WAYS, command, harmful, made, trained

__all__ = ['harmful', 'made', 'trained']  # fixtures

SHORT = ('load_from', 'resume', 'Pretrained by mmengine')


@pytest.mark.fault
@pytest.mark.parametrize('way', [pytest.param(way, marks=[] if way in SHORT else [pytest.mark.long]) for way in WAYS])
def test_code_in_a_checkpoint(way, trained, harmful, made, tmp_path):  # noqa: F811
    tool, *arguments = command(way, trained, harmful, tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and not made.exists()
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and 'makedirs' in last and '--trust-checkpoint' in last
