"""The progress bar, on a real terminal (pty), and what a terminal shows beside it."""

import os
import pty
import re
import subprocess
import sys

import pytest

from bootmae_mm.progress import bar
from tests.conftest import ROOT, run_config


def on_a_terminal(command, folder, columns=120):
    """Run a command with a terminal as its output; return its exit status and what it wrote."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        list(map(str, command)), stdout=slave, stderr=slave, cwd=folder, env={**os.environ, 'COLUMNS': str(columns)}
    )
    os.close(slave)
    written = b''
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        written += chunk
        if not chunk:
            break
    os.close(master)
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', written.decode())
    return process.wait(timeout=60), text.replace('\r', '\n')


@pytest.mark.slow
def test_a_terminal_shows_a_bar_instead_of_iterations(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    train = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'run']
    status, text = on_a_terminal(train, tmp_path)
    assert status == 0, text
    assert re.search(r'Training .*100%.* left .*epoch 3/3  loss \d\.\d{4}', text)
    assert 'Epoch(train)' not in text and 'Saving checkpoint at 3 epochs' in text
    (log,) = (tmp_path / 'run').rglob('*.log')
    assert 'Epoch(train) [3]' in log.read_text()


@pytest.mark.slow
def test_an_error_ends_the_bar_before_its_message(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder)
    for file in image_folder.rglob('*.png'):
        file.write_bytes(b'broken')
    train = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'run']
    status, text = on_a_terminal(train, tmp_path)
    assert status == 1 and 'Training' in text
    last = [line for line in text.splitlines() if line.strip()][-1]
    assert last.startswith('error: ') and 'cannot be read' in text


def test_no_bar_without_a_terminal(capfd):
    with bar('Embedding', 3) as advance:
        advance(3)
    assert capfd.readouterr() == ('', '')
