"""Models by name in mmpretrain, and its tools on them."""

import logging
import subprocess
import sys

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import bootmae_mm
from bootmae_mm.config import load_config
from bootmae_mm.models import BootMAE
from tests.conftest import ROOT, write_images
from tests.features.runs import write_checkpoint


def test_mmpretrain_lists_and_builds_our_models():
    names = mmpretrain.list_models('bootmae*')
    assert {'bootmae_vitb', 'bootmae_vitl', 'bootmae_vitb_ft_100e'} <= set(names)
    assert mmpretrain.list_models('mae_vit-base*')  # its own are still there
    with torch.device('meta'):
        model = mmpretrain.get_model('bootmae_vitb')
    assert isinstance(model, BootMAE) and model.backbone.embed_dims == 768


def test_in_any_order_of_the_imports():
    code = 'import mmpretrain; print(*mmpretrain.list_models("bootmae_vitb"))'
    for imports in ('import bootmae_mm', 'import mmpretrain, bootmae_mm'):
        done = subprocess.run([sys.executable, '-c', f'{imports}\n{code}'], capture_output=True, text=True, cwd=ROOT)
        assert 'bootmae_vitb' in done.stdout.split(), done.stderr
        assert 'OneDL' not in done.stdout or not imports.startswith('import bootmae_mm')


def test_messages_for_debugging_are_not_printed(capsys):
    """mmengine prints those without a logger, whatever their level."""
    print_log('hidden', level=logging.DEBUG)
    print_log('shown')
    assert capsys.readouterr().out == 'shown\n'


@pytest.mark.parametrize(
    'name',
    ['seg/bootmae_vitt_upernet_digits.py', 'det/bootmae_vitt_mask_rcnn_digits.py', 'cls/bootmae_vitt_digits_ft.py'],
)
def test_models_of_other_scopes_are_built_from_configs_that_inherit_ours(tmp_path, name):
    """mmengine looks for all types of an inherited config in the scope of its package, which has no UperNet."""
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = 'bootmae_mm::{name}'\n")
    for cfg in (Config.fromfile(child), load_config(child)):
        cfg.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            assert type(MODELS.build(cfg.model)).__name__ == cfg.model.type
        assert '_scope_' not in str(cfg)


@torch.no_grad()
def test_the_feature_extractor_gives_the_features_of_the_encoder(tmp_path):
    """Of images that have the size of the model: its pipeline has no crop here."""
    steps = [dict(type='bootmae_mm.LoadImage'), dict(type='bootmae_mm.PackImage')]
    path, model = write_checkpoint(tmp_path / 'run', pipeline=steps)
    files = sorted(write_images(tmp_path / 'images', 3, (32, 48)).rglob('*.png'))
    config = tmp_path / 'config.py'
    config.write_text(torch.load(path)['meta']['cfg'])
    extractor = mmpretrain.FeatureExtractor(str(config), pretrained=str(path))
    found = extractor(list(map(str, files)), batch_size=2)
    encoder = bootmae_mm.load_encoder(path)
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
    expected = encoder(pixels)
    for (feature,), mean in zip(found, expected.mean, strict=True):
        torch.testing.assert_close(feature, mean, rtol=1e-4, atol=1e-5)
    (feature,) = extractor(str(files[0]), stage='backbone')[0]
    torch.testing.assert_close(feature.flatten(1).T, expected.patches[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="stage must be 'backbone' or 'neck', but is 'head'"):
        model.extract_feat(torch.zeros(1, 3, 32, 48), stage='head')
