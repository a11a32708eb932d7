"""Embeddings of many images: values, formats, interruptions, processes, unreadable files."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

import bootmae_mm
from bootmae_mm.features import Embeddings, embedding
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import ROOT, write_images
from tests.features.runs import write_checkpoint


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A checkpoint, and a folder of 7 images."""
    folder = tmp_path_factory.mktemp('run')
    return write_checkpoint(folder)[0], write_images(folder / 'images', 7)


def test_features_are_those_of_the_encoder(run):
    path, images = run
    result = bootmae_mm.embed(path, images, batch_size=3, num_workers=1)
    assert isinstance(result, Embeddings) and result.paths == sorted(map(str, images.rglob('*.png')))
    encoder = bootmae_mm.load_encoder(path)
    expected = encoder(result.paths)
    np.testing.assert_allclose(result.features, expected.mean.detach(), rtol=1e-4, atol=1e-5)
    for tokens in ('cls', 'patches'):
        found = bootmae_mm.embed(encoder, result.paths[:2], tokens=tokens).features
        np.testing.assert_allclose(found, getattr(expected, tokens)[:2].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['features.npy', 'features.csv', 'features.parquet'])
def test_formats_hold_the_same(run, tmp_path, name):
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow')
    expected = bootmae_mm.embed(*run)
    bootmae_mm.embed(*run, to=tmp_path / name)
    if name.endswith('npy'):
        features = np.load(tmp_path / name)
        paths = (tmp_path / 'features.paths.txt').read_text().splitlines()
    elif name.endswith('csv'):
        with open(tmp_path / name, newline='') as file:
            header, *rows = csv.reader(file)
        assert header == ['path', *(f'f{index}' for index in range(24))]
        paths, features = [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(tmp_path / name).to_pydict()
        paths = table.pop('path')
        features = np.array(list(table.values()), np.float32).T
    assert paths == expected.paths
    np.testing.assert_array_equal(features, expected.features)  # to the last bit, also as text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_an_interrupted_call_resumes(run, tmp_path, monkeypatch):
    path, images = run
    monkeypatch.setattr(embedding, 'PART', 2)
    real, calls = embedding._embed_part, []

    def killed_in_the_third(encoder, paths, *arguments):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(encoder, paths, *arguments)

    monkeypatch.setattr(embedding, '_embed_part', killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        bootmae_mm.embed(path, images, to=tmp_path / 'features.npy')
    assert not (tmp_path / 'features.npy').exists()
    result = bootmae_mm.embed(path, images, to=tmp_path / 'features.npy')
    assert [len(paths) for paths in calls] == [2, 2, 2, 2, 1]  # the first two parts are not computed again
    np.testing.assert_allclose(result.features, bootmae_mm.embed(path, images).features, rtol=1e-5, atol=1e-6)
    assert len(np.load(tmp_path / 'features.npy')) == 7
    # Other features do not take parts of these.
    bootmae_mm.embed(path, images, to=tmp_path / 'features.npy', tokens='cls')
    assert len(calls) == 5 + 4 + 4


def test_unreadable_images_are_left_out_and_counted(run, tmp_path):
    path, _ = run
    images = write_images(tmp_path / 'images', 4)
    (images / 'part0/broken.png').write_bytes(b'not an image')
    with pytest.raises(ConfigError, match=r'1 of 5 images cannot be read, more than max_unreadable=0\.01 allows'):
        bootmae_mm.embed(path, images, to=tmp_path / 'features.npy')
    result = bootmae_mm.embed(path, images, max_unreadable=0.2)
    assert len(result.paths) == 4 == len(result.features) and not any('broken' in name for name in result.paths)
    # Once it is readable, the same call takes it, too.
    (images / 'part0/image 0.png').rename(images / 'part0/broken.png')
    write_images(images, 1)
    assert len(bootmae_mm.embed(path, images, to=tmp_path / 'features.npy').paths) == 5


@pytest.mark.slow
def test_two_processes_share_the_work(run, tmp_path):
    path, images = run
    code = (
        'import sys, bootmae_mm.features.embedding as e; e.PART = 2; from bootmae_mm.commands import main; '
        'main(sys.argv[1:])'
    )
    command = [sys.executable, '-c', code, 'embed', path, images, '--to', tmp_path / 'features.npy']
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, 'RANK': str(rank), 'WORLD_SIZE': '2'},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert '7 images, features (7, 24)' in outs[0] and '7 images' not in outs[1]
    np.testing.assert_allclose(
        np.load(tmp_path / 'features.npy'), bootmae_mm.embed(path, images).features, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(to='features.txt'), r"unknown format 'features.txt'; formats: .npy, .csv, .parquet"),
        (dict(to='features.csv', tokens='patches'), 'can only be written as .npy'),
        (dict(tokens='all'), "tokens must be 'mean', 'cls' or 'patches'"),
        (dict(batch_size=0), 'batch_size must be greater than or equal to 1'),
    ],
)
def test_wrong_arguments_are_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        bootmae_mm.embed(*run, **options)


def test_missing_folders_are_named(run, tmp_path):
    with pytest.raises(MissingFileError, match='no image or folder nowhere'):
        bootmae_mm.embed(run[0], 'nowhere')
    with pytest.raises(ConfigError, match=f'no image in {tmp_path}'):
        bootmae_mm.embed(run[0], tmp_path)
