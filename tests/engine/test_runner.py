"""What the Runner does beside mmengine's: unreadable images are named in the work_dir."""

import pytest

from bootmae_mm.engine.runner import UNREADABLE
from tests.engine.test_checkpoint import make_runner


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('wrapped', [False, True])
def test_unreadable_images_are_named_in_the_work_dir(tmp_path, image_folder, wrapped, workers):
    (image_folder / 'broken.jpg').write_bytes(b'')
    runner = make_runner(tmp_path, image_folder, {}, epochs=2, workers=workers)
    folder = runner._train_dataloader['dataset']
    folder['max_unreadable'] = 0.5
    if wrapped:
        lone = dict(type='ConcatDataset', datasets=[folder])
        runner._train_dataloader['dataset'] = dict(type='RepeatDataset', times=1, dataset=lone)
    runner.train()
    lines = (tmp_path / 'work' / UNREADABLE).read_text().splitlines()
    assert [line.split('\t')[0] for line in lines] == [str(image_folder / 'broken.jpg')]


def test_a_file_of_the_config_is_kept(tmp_path, image_folder):
    (image_folder / 'broken.jpg').write_bytes(b'')
    own = tmp_path / 'own.txt'
    options = {'train_dataloader.dataset.unreadable_file': str(own), 'train_dataloader.dataset.max_unreadable': 0.5}
    make_runner(tmp_path, image_folder, options, epochs=2).train()
    assert own.is_file() and not (tmp_path / 'work' / UNREADABLE).exists()
