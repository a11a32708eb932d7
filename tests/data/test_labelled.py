"""Folders with labels, and shares of the labels."""

import numpy as np
import pytest
from PIL import Image

from bootmae_mm.data import LabelledFolder
from bootmae_mm.validation import ConfigError


@pytest.fixture
def folder(tmp_path):
    for label, count in (('cat', 20), ('dog', 8), ('owl', 1)):
        (tmp_path / 'train' / label).mkdir(parents=True)
        for index in range(count):
            Image.new('RGB', (4, 4)).save(tmp_path / 'train' / label / f'{index:02d}.png')
    return tmp_path


def labels(folder, **options):
    dataset = LabelledFolder(data_root=str(folder), data_prefix='train', pipeline=[], **options)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'owl')
    return [info['img_path'] for info in infos], np.bincount([info['gt_label'] for info in infos]).tolist()


def test_all_labels(folder):
    assert labels(folder)[1] == [20, 8, 1]


def test_a_share_of_the_labels_of_each_class(folder):
    paths, counts = labels(folder, label_share=0.25)
    assert counts == [5, 2, 1]
    assert labels(folder, label_share=0.25)[0] == paths
    assert labels(folder, label_share=0.25, seed=1)[0] != paths
    assert set(paths) < set(labels(folder, label_share=0.5)[0])  # a larger share includes the smaller one


@pytest.mark.parametrize(
    ('share', 'message'),
    [
        (0, 'greater than 0, but is 0'),
        (-1, 'greater than 0, but is -1'),
        (1.5, 'less than or equal to 1, but is 1.5'),
        ('all', "a valid number, but is 'all'"),
    ],
)
def test_impossible_shares(folder, share, message):
    with pytest.raises(ConfigError, match=f'^label_share must be {message}$'):
        labels(folder, label_share=share)
