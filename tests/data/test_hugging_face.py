"""Images of Hugging Face datasets, in the forms in which they are stored."""

import pickle
import sys

import numpy as np
import pytest

from bootmae_mm.data import HuggingFaceImages, ImageFolder
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import write_images

datasets = pytest.importorskip('datasets', reason='datasets is not installed')
LOAD = [dict(type='bootmae_mm.LoadImage')]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    datasets.disable_progress_bars()


def stored(tmp_path, kind):
    """A data set of four images in one of the forms; its data_root."""
    paths = sorted(map(str, write_images(tmp_path / 'images', 4).rglob('*.png')))
    features = datasets.Features(image=datasets.Image(), label=datasets.Value('int64'))
    data = datasets.Dataset.from_dict(dict(image=paths, label=[0, 1, 0, 1]), features=features)
    if kind == 'files':
        return tmp_path / 'images'
    if kind == 'parquet':
        (tmp_path / 'parquet').mkdir()
        data.to_parquet(str(tmp_path / 'parquet/x.parquet'))
        return tmp_path / 'parquet'
    data = data if kind == 'disk' else datasets.DatasetDict(train=data, test=data.select([0]))
    data.save_to_disk(str(tmp_path / kind))
    return tmp_path / kind


@pytest.mark.parametrize('kind', ['parquet', 'disk', 'dict', 'files'])
def test_the_pixels_are_those_of_the_files(tmp_path, kind):
    data = HuggingFaceImages(data_root=str(stored(tmp_path, kind)), pipeline=LOAD)
    data = pickle.loads(pickle.dumps(data))  # as a worker gets it
    folder = ImageFolder(data_root=str(tmp_path / 'images'), pipeline=LOAD)
    assert len(data) == 4
    for index in (2, 0, -1):
        assert np.array_equal(data[index]['img'], folder[index]['img'])
    if kind == 'dict':
        assert len(HuggingFaceImages(data_root=str(tmp_path / kind), split='test', pipeline=LOAD)) == 1


def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch):
    root = str(stored(tmp_path, 'disk'))
    with pytest.raises(ConfigError, match=r"no column 'img', but \['image', 'label'\]; set column"):
        HuggingFaceImages(data_root=root, column='img', pipeline=[])
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(MissingFileError, match='no data set .*nothing'):
        HuggingFaceImages(data_root=str(tmp_path / 'nothing'), pipeline=[])
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(ConfigError, match=r"needs datasets: pip install 'bootmae_mm\[sources\]'"):
        HuggingFaceImages(data_root=root, pipeline=[])


def test_images_that_are_missing_or_broken_are_counted(tmp_path):
    features = datasets.Features(image=datasets.Image(decode=False))
    rows = [dict(bytes=b'no image', path=None), None]
    datasets.Dataset.from_dict(dict(image=rows), features=features).save_to_disk(str(tmp_path / 'disk'))
    data = HuggingFaceImages(data_root=str(tmp_path / 'disk'), pipeline=LOAD, max_unreadable=1.0)
    with pytest.raises(ConfigError, match='none of the 2 images'):
        data[0]
