import numpy as np
import pytest
from PIL import Image

from bootmae_mm.data import LabelledFolder


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
    assert set(paths) < set(labels(folder, label_share=0.5)[0])  # more labels add to fewer


@pytest.mark.parametrize('share', [0, -1, 1.5, 'all'])
def test_impossible_shares(folder, share):
    with pytest.raises(ValueError, match='label_share must be a number'):
        labels(folder, label_share=share)
