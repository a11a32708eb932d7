"""The authors' releases by name."""

import shutil

import pytest
import torch

import bootmae_mm
from bootmae_mm.checkpoints.reading import local_file
from bootmae_mm.checkpoints.releases import official_releases, official_url
from bootmae_mm.validation import ConfigError
from tests.checkpoints.test_official import official_checkpoint


def test_each_release_has_an_address_and_a_license():
    found = official_releases()
    assert set(found) == {'bootmae_vitb', 'bootmae_vitl'}
    for release in found.values():
        assert release['Weights'].startswith('https://') and 'none stated' in release['License']
    with pytest.raises(ConfigError, match="the authors released no 'bootmae_vith'; official: knows bootmae_vitb, "):
        official_url('bootmae_vith')


def test_a_release_is_downloaded_once_and_read(tmp_path, monkeypatch):
    calls = []
    torch.save(
        official_checkpoint(dims=64, depth=2, patch=8, decoder_dims=16, grid=4, heads=1), tmp_path / 'theirs.pth'
    )

    def download(url, file, progress):
        calls.append(url)
        shutil.copy(tmp_path / 'theirs.pth', file)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    files = [local_file('official:bootmae_vitb') for _ in range(2)]
    assert files[0] == files[1] and calls == [official_url('bootmae_vitb')]
    encoder = bootmae_mm.load_encoder('official:bootmae_vitb')
    assert (len(encoder.backbone.layers), encoder.embed_dims, len(calls)) == (2, 64, 1)
