"""docs/method.md: its code runs as it stands, and it names every target, loss and mask."""

import os
import re
import subprocess
import sys

import torch

from bootmae_mm import models
from bootmae_mm.data import MaskSampling
from bootmae_mm.models.losses import PatchLoss
from bootmae_mm.models.masking import DeviceMasking
from bootmae_mm.models.targets import Target
from bootmae_mm.visualization import read_scalars
from tests.conftest import ROOT, run_config

PAGE = (ROOT / 'docs/method.md').read_text()


def test_the_target_of_the_page_trains(tmp_path, image_folder):
    module, config = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    assert len(module.splitlines()) <= 30
    (tmp_path / 'my_target.py').write_text(module)
    base = run_config(tmp_path / 'base.py', image_folder, epochs=1)
    path = tmp_path / 'config.py'
    path.write_text(config.replace('configs/pretrain/bootmae_vitb.py', str(base)))
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    command = [sys.executable, ROOT / 'tools/train.py', path, '--work-dir', tmp_path / 'work']
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)['state_dict']
    assert state['color_head.projection.weight'].shape == (12, 256)
    assert 0 < read_scalars(tmp_path / 'work')[-1]['color_loss'] < 2


def test_every_target_loss_and_mask_is_named():
    kinds = [getattr(models, name) for name in models.__all__ if name != 'BLOCKS']
    named = [kind for kind in kinds if issubclass(kind, (Target, PatchLoss, DeviceMasking)) and kind is not Target]
    named += MaskSampling.__subclasses__()
    assert len(named) > 12
    assert not [kind.__name__ for kind in named if f'`{kind.__name__}`' not in PAGE.replace('`:', '`')]


def test_every_link_leads_somewhere():
    for target in re.findall(r'\]: (\S+)', PAGE):
        assert (ROOT / 'docs' / target).resolve().is_file(), target
