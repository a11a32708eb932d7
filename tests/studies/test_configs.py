"""Configs of the studies that come with the package."""

import pytest
import torch

import bootmae_mm
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT, write_images

MAE = str(ROOT / 'configs/studies/cifar10/mae.py')


def options(folder):
    return {
        'data_root': str(folder),
        'train_dataloader.dataset.folder': '',
        'model.backbone.arch': dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
        'model.neck.embed_dim': 24,
        'model.neck.decoder_embed_dim': 24,
    }


def test_maes_of_mmpretrain_train_and_are_encoders(tmp_path):
    folder = write_images(tmp_path / 'images', 4, (40, 40))
    bootmae_mm.pretrain(folder, tmp_path / 'run', config=MAE, epochs=1, batch_size=2, options=options(folder))
    state = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)['state_dict']
    arch = options(folder)['model.backbone.arch']
    theirs = MODELS.build(dict(type='mmpretrain.MAEViT', arch=arch, img_size=32, patch_size=4))
    theirs.train(False)
    theirs.load_state_dict({name.removeprefix('backbone.'): x for name, x in state.items() if 'backbone.' in name})
    encoder = bootmae_mm.load_encoder(tmp_path / 'run')
    images = torch.randn(2, 3, 32, 32)
    (expected,) = theirs(images, mask=None)
    torch.testing.assert_close(encoder(images).patches, expected[:, 1:], rtol=1e-5, atol=1e-5)
    assert encoder.preprocessing.mean == (0.5,) * 3


def test_a_probe_of_another_method_is_refused(tmp_path):
    folder = write_images(tmp_path / 'images', 4, (40, 40))
    for name in 'ab':
        write_images(tmp_path / 'labeled' / name, 5, (32, 32))
    with pytest.raises(ConfigError, match='needs a BootMAE, but the model is MAE'):
        bootmae_mm.pretrain(
            folder,
            tmp_path / 'run',
            config=MAE,
            epochs=1,
            batch_size=2,
            probe=tmp_path / 'labeled',
            options=options(folder),
        )
