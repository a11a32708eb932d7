"""The Runner: unreadable images, errors while saving, and visualization backends on a full disk."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.visualization import vis_backend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bootmae_mm.config import load_config
from bootmae_mm.engine.runner import UNREADABLE, Runner
from bootmae_mm.visualization import read_scalars
from bootmae_mm.visualization.backends import LocalVisBackend, TensorboardVisBackend
from tests.conftest import ROOT
from tests.engine.test_checkpoint import make_runner
from tests.tools.test_tools import free_port


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('wrapped', [False, True])
def test_unreadable_images_are_listed_in_the_work_dir(tmp_path, image_folder, wrapped, workers):
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


def test_unreadable_images_are_listed_in_the_file_of_the_config(tmp_path, image_folder):
    (image_folder / 'broken.jpg').write_bytes(b'')
    own = tmp_path / 'own.txt'
    options = {'train_dataloader.dataset.unreadable_file': str(own), 'train_dataloader.dataset.max_unreadable': 0.5}
    make_runner(tmp_path, image_folder, options, epochs=2).train()
    assert own.is_file() and not (tmp_path / 'work' / UNREADABLE).exists()


class FullDisk(Runner):
    """Minimal Runner whose first process cannot write."""

    def __init__(self):
        self.model = torch.nn.Identity()

    def _write(self, out_dir, error):
        raise error


def save_on_a_full_disk(rank, port, folder, error):
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    try:
        FullDisk().save_checkpoint(folder, error)
    except (OSError, FloatingPointError, RuntimeError, MemoryError) as raised:
        (folder / f'said_{rank}').write_text(f'{type(raised).__name__}: {raised}')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='forks processes, which CUDA refuses')
@pytest.mark.parametrize(
    ('error', 'messages'),
    [
        (OSError(28, 'No space left on device'), ['OSError: [Errno 28] No space left on device'] * 2),
        (FloatingPointError('not finite'), ['FloatingPointError: not finite'] * 2),
        (MemoryError('none'), ['MemoryError: none', "RuntimeError: MemoryError('none')"]),
    ],
)
def test_all_processes_raise_if_the_first_could_not_write(tmp_path, error, messages):
    """Otherwise one would end with an error while the others wait for it."""
    arguments = (free_port(), tmp_path, error)
    torch.multiprocessing.start_processes(save_on_a_full_disk, arguments, nprocs=2, start_method='fork')
    assert [(tmp_path / f'said_{rank}').read_text() for rank in range(2)] == messages


def full(*_, **__):
    raise OSError(28, 'No space left on device')


def log_of(folder):
    return next((folder / 'work').glob('*/*.log')).read_text()


def test_tensorboard_opens_another_file_once_there_is_room(tmp_path, image_folder, monkeypatch):
    """A writer that has failed stays closed; not every line of the log opens another file."""
    options = {'visualizer.vis_backends': [dict(type='bootmae_mm.TensorboardVisBackend')]}
    runner = make_runner(tmp_path, image_folder, options)
    backend = runner.visualizer.get_backend('TensorboardVisBackend')
    assert isinstance(backend, TensorboardVisBackend)
    runner.visualizer.add_scalars(dict(loss=1.0), step=1)
    first = backend._tensorboard
    monkeypatch.setattr(first, 'add_scalar', full)
    for step in (2, 3):
        runner.visualizer.add_scalars(dict(loss=1.0), step=step)
    assert backend._tensorboard is first
    message = 'TensorboardVisBackend could not write, training continues: [Errno 28] No space left on device'
    assert log_of(tmp_path).count(message) == 1
    backend.silent_until = 0.0
    runner.visualizer.add_scalars(dict(loss=1.0), step=4)
    for writer in (first, backend._tensorboard):
        writer.close()
    files = Path(first.log_dir).glob('events*')
    found = [entry.step for file in files for entry in EventAccumulator(str(file)).Reload().Scalars('loss')]
    assert backend._tensorboard is not first and sorted(found) == [1, 4]


def test_local_files_are_written_again_once_there_is_room(tmp_path, image_folder, monkeypatch):
    """A run continues while scalars and pictures cannot be written."""
    runner = make_runner(tmp_path, image_folder, {'default_hooks.reconstruction.interval': 1}, epochs=3)
    assert isinstance(runner.visualizer.get_backend('LocalVisBackend'), LocalVisBackend)

    class FillDisk(Hook):
        priority = 'HIGHEST'

        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                patch.setattr(vis_backend.LocalVisBackend, '_dump', full)
                patch.setattr('cv2.imwrite', full)
            else:
                patch.undo()

    runner.register_hook(FillDisk())
    with monkeypatch.context() as patch:
        runner.train()
    assert runner.epoch == 3 and (tmp_path / 'work/epoch_3.pth').is_file()
    # Two iterations and two pictures per epoch.
    assert [entry['step'] for entry in read_scalars(tmp_path / 'work')] == [1, 2, 5, 6]
    pictures = sorted(path.name for path in (tmp_path / 'work').glob('*/vis_data/vis_image/*'))
    assert pictures == [f'{name}_{epoch}.png' for name in ('features', 'reconstruction') for epoch in (1, 3)]
    assert log_of(tmp_path).count('LocalVisBackend could not write, training continues: [Errno 28]') == 4


@pytest.mark.parametrize('kind', ['LocalVisBackend', 'TensorboardVisBackend'])
def test_all_configs_use_the_tolerant_backends(kind):
    for path in (ROOT / 'configs').glob('[a-z]*/**/*.py'):
        cfg = load_config(path)
        assert f'bootmae_mm.{kind}' in [backend.type for backend in cfg.visualizer.vis_backends], path


@pytest.mark.parametrize('kind', [LocalVisBackend, TensorboardVisBackend])
def test_other_errors_of_a_backend_are_raised(tmp_path, monkeypatch, kind):
    def fail(*_, **__):
        raise ValueError('a defect')

    monkeypatch.setattr(vis_backend.LocalVisBackend, '_dump', fail)
    monkeypatch.setattr('torch.utils.tensorboard.SummaryWriter.add_scalar', fail)
    with pytest.raises(ValueError, match='a defect'):
        kind(save_dir=str(tmp_path)).add_scalar('loss', 1.0, step=1)
