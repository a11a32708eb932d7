"""The start of a run: intact checkpoints, the latest one, restarts, locks."""

import errno
import os
import shutil
import time
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config

from bootmae_mm.engine.recovery import choose_start, damage_of, latest_checkpoint, lock, write_last
from bootmae_mm.validation import ConfigError, MissingFileError


def save(path, number=0.0, age=0.0):
    """Write a checkpoint with a modification time ``age`` seconds ago."""
    path.parent.mkdir(exist_ok=True)
    torch.save(dict(state_dict={'a': torch.full((1000,), number)}, meta={}), path)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path):
    path = save(tmp_path / 'x.pth', 3.25)
    whole = path.read_bytes()
    assert damage_of(path) is None
    place = whole.index(torch.full((1000,), 3.25).numpy().tobytes())
    for offset in range(0, 4000, 97):
        for bit in (1, 128):
            content = bytearray(whole)
            content[place + offset] ^= bit
            path.write_bytes(content)
            assert 'checksum' in damage_of(path)


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    """The archive's headers and directory have no checksum; a flip there is found, or the same tensors are loaded."""
    path = save(tmp_path / 'x.pth', 3.25)
    whole = path.read_bytes()
    places = [*range(0, 1200, 7), *range(len(whole) - 1200, len(whole), 7)]
    found = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        if damage_of(path) is None:
            state = torch.load(path, weights_only=True)['state_dict']
            assert torch.equal(state['a'], torch.full((1000,), 3.25)), place
        else:
            found += 1
    assert found > len(places) / 4


def test_a_run_does_not_start_from_scratch_if_all_checkpoints_are_damaged(tmp_path):
    (tmp_path / 'epoch_1.pth').write_bytes(b'PK')
    with pytest.raises(ConfigError, match=r'^all 1 checkpoints in .* are damaged \(epoch_1.pth\)'):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / 'nothing') is None


def test_the_recorded_checkpoint_is_the_latest(tmp_path):
    save(tmp_path / 'epoch_2.pth')
    older = save(tmp_path / 'epoch_1.pth', age=60)
    assert latest_checkpoint(tmp_path).name == 'epoch_2.pth'
    write_last(tmp_path, older)
    assert latest_checkpoint(tmp_path) == older
    assert latest_checkpoint(tmp_path, since=time.time() - 30).name == 'epoch_2.pth'


def start(tmp_path, resume=None, restarted=False, resume_=False, **options):
    cfg = Config(dict(work_dir=str(tmp_path / 'work'), resume=resume_, **options))
    choose_start(cfg, resume, restarted)
    return cfg.get('load_from'), cfg.resume


def test_load_from_is_kept_without_a_checkpoint_to_resume_from(tmp_path):
    weights = str(save(tmp_path / 'weights.pth'))
    for given in (dict(), dict(resume='auto'), dict(restarted=True)):
        assert start(tmp_path, load_from=weights, **given) == (weights, False)
    assert start(tmp_path, 'auto') == (None, False)
    assert start(tmp_path, None, resume_=True) == (None, False)


def test_resume_prefers_a_checkpoint_of_the_run(tmp_path):
    weights = str(save(tmp_path / 'weights.pth'))
    written = str(save(tmp_path / 'work/epoch_1.pth'))
    assert start(tmp_path, 'auto', load_from=weights) == (written, True)
    assert start(tmp_path, load_from=weights) == (weights, False)
    assert start(tmp_path, weights) == (weights, True)
    with pytest.raises(MissingFileError, match='^no checkpoint .*gone.pth$'):
        start(tmp_path, str(tmp_path / 'gone.pth'))


def test_a_restart_resumes_from_its_own_run_only(tmp_path, monkeypatch):
    """Not from an older run in the same folder, and not again from the checkpoint that the run had resumed from."""
    older = str(save(tmp_path / 'work/epoch_9.pth', age=60))
    lock(tmp_path / 'work').close()
    assert start(tmp_path, restarted=True) == (None, False)
    assert start(tmp_path, older, restarted=True) == (older, True)
    newer = str(save(tmp_path / 'work/epoch_1.pth'))
    os.utime(newer, (time.time() + 1,) * 2)
    started = (tmp_path / 'work/.started').stat().st_mtime_ns
    lock(tmp_path / 'work', restarted=True).close()
    assert (tmp_path / 'work/.started').stat().st_mtime_ns == started
    assert start(tmp_path, restarted=True) == (newer, True)
    assert start(tmp_path, older, restarted=True) == (newer, True)
    # Another launch, whose first processes died before they locked the folder.
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    assert start(tmp_path, restarted=True) == (None, False)
    lock(tmp_path / 'work', restarted=True).close()
    assert (tmp_path / 'work/.started').read_text() == 'another'


def test_a_copied_folder_resumes_from_its_own_files(tmp_path):
    original = save(tmp_path / 'a/epoch_1.pth')
    write_last(tmp_path / 'a', original)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    assert latest_checkpoint(tmp_path / 'b') == tmp_path / 'b/epoch_1.pth'


def test_a_checkpoint_that_could_not_be_recorded_is_the_latest(tmp_path):
    """By number and by time: neither an older one that was copied later, nor one of an earlier run."""
    last = save(tmp_path / 'iter_20.pth')
    write_last(tmp_path, last)
    named = (tmp_path / 'last_checkpoint').stat().st_mtime

    def at(name, seconds):
        path = save(tmp_path / name)
        os.utime(path, (named + seconds, named + seconds))
        return path

    at('iter_10.pth', 5)
    at('iter_99.pth', -5)
    assert latest_checkpoint(tmp_path) == last
    at('iter_20_backup.pth', 6)
    at('iter_15-1a2b3c4d.pth', 6)
    assert latest_checkpoint(tmp_path) == last
    later = at('iter_30.pth', 1)
    assert latest_checkpoint(tmp_path) == later
    at('interrupted_15.pth', 2)
    assert latest_checkpoint(tmp_path) == later
    interrupted = at('interrupted_35.pth', 2)
    assert latest_checkpoint(tmp_path) == interrupted


def test_a_damaged_checkpoint_in_an_out_dir_is_skipped(tmp_path):
    """The out_dir is that of a CheckpointHook."""
    (tmp_path / 'work').mkdir()
    before, last = (save(tmp_path / f'out/iter_{number}.pth', age=30 - number) for number in (10, 20))
    write_last(tmp_path / 'work', last)
    assert latest_checkpoint(tmp_path / 'work') == last
    last.write_bytes(b'')
    assert latest_checkpoint(tmp_path / 'work') == before


def test_other_folders_are_ignored(tmp_path, monkeypatch):
    """Neither the folder that was copied, nor the current one if the record is empty."""
    save(tmp_path / 'a/iter_10.pth', age=30)
    last = save(tmp_path / 'a/iter_20.pth', age=20)
    lock(tmp_path / 'a').close()
    write_last(tmp_path / 'a', last)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    (tmp_path / 'b/iter_20.pth').unlink()
    later = save(tmp_path / 'a/iter_30.pth')
    os.utime(later, (time.time() + 9,) * 2)
    assert latest_checkpoint(tmp_path / 'b') in (last, tmp_path / 'b/iter_10.pth')
    save(tmp_path / 'c/iter_40.pth')
    monkeypatch.chdir(tmp_path / 'c')
    (tmp_path / 'b/last_checkpoint').write_text('')
    assert latest_checkpoint(tmp_path / 'b') == tmp_path / 'b/iter_10.pth'


def test_a_damaged_checkpoint_on_the_command_line_is_refused(tmp_path):
    path = save(tmp_path / 'epoch_1.pth')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r'^checkpoint .*epoch_1.pth is damaged: the checksum of'):
        start(tmp_path, str(path))
    with pytest.raises(ConfigError, match='is damaged'):
        start(tmp_path, load_from=str(path), resume_=True)


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_a_file_system_that_cannot_sync_folders(tmp_path, monkeypatch, number):
    sync = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr('os.fsync', refuse)
    with pytest.raises(OSError) if number == errno.EIO else nullcontext():
        write_last(tmp_path, tmp_path / 'epoch_1.pth')
    assert (tmp_path / 'last_checkpoint').is_file()


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr('fcntl.flock', refuse)
    lock(tmp_path).close()
    assert (tmp_path / '.started').exists()
