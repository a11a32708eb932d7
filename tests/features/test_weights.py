"""The weights that come with the package."""

import numpy as np
import torch
from PIL import Image

import bootmae_mm
from bootmae_mm.installed import root

NAME = 'bootmae_mm::weights/bootmae_cifar10'


def test_the_weights_of_the_package_load_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    encoder = bootmae_mm.load_encoder(NAME)
    assert (encoder.embed_dims, encoder.img_size, encoder.grid_size) == (128, (32, 32), (8, 8))
    assert encoder.preprocessing.crop_pct == 1.0
    pictures = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (20, 220)]
    first, second = encoder(pictures).mean
    assert torch.cosine_similarity(first, second, dim=0) < 0.9
    size = (root() / 'weights/bootmae_cifar10/model.safetensors').stat().st_size
    assert 4e6 < size < 5e6
    assert 'license: apache-2.0' in (root() / 'weights/bootmae_cifar10/README.md').read_text()
