"""What the Runner does beside mmengine's: unreadable images are named in the work_dir."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bootmae_mm.engine.runner import UNREADABLE, Runner
from tests.engine.test_checkpoint import make_runner
from tests.tools.test_tools import free_port


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


class FullDisk(Runner):
    """What matters of a Runner where the first process cannot write."""

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
def test_all_processes_hear_that_the_first_could_not_write(tmp_path, error, messages):
    """Otherwise one ends with an error while the others go on to wait for it."""
    arguments = (free_port(), tmp_path, error)
    torch.multiprocessing.start_processes(save_on_a_full_disk, arguments, nprocs=2, start_method='fork')
    assert [(tmp_path / f'said_{rank}').read_text() for rank in range(2)] == messages


def test_tensorboard_opens_another_file_once_there_is_room(tmp_path, image_folder, monkeypatch):
    """Its writer ends with the first error; not one file more for each line of the log."""
    runner = make_runner(tmp_path, image_folder, {'visualizer.vis_backends': [dict(type='TensorboardVisBackend')]})
    backend = runner.visualizer.get_backend('TensorboardVisBackend')

    def full(*_):
        raise OSError(28, 'No space left on device')

    runner.visualizer.add_scalars(dict(loss=1.0), step=1)
    first = backend._tensorboard
    monkeypatch.setattr(first, 'add_scalar', full)
    for step in (2, 3):
        runner.visualizer.add_scalars(dict(loss=1.0), step=step)
    assert backend._tensorboard is first
    backend.silent_until = 0.0
    runner.visualizer.add_scalars(dict(loss=1.0), step=4)
    backend._tensorboard.flush()
    found = EventAccumulator(backend._tensorboard.log_dir).Reload().Scalars('loss')
    # Of files of the same second TensorBoard reads the tenth before the second.
    assert backend._tensorboard is not first and sorted(entry.step for entry in found) == [1, 4]
