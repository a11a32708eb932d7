"""Studies with real processes."""

import argparse
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import bootmae_mm
from bootmae_mm import commands
from bootmae_mm.engine.recovery import lock, wait_until_free
from bootmae_mm.studies import collect, read_study, run_study
from bootmae_mm.studies.commands import checkpoint_of, command_of, spec_of
from bootmae_mm.studies.plan import Job
from bootmae_mm.studies.results import finish, write_json
from bootmae_mm.studies.running import Failures, _last_error
from bootmae_mm.studies.slots import Slot, make_slots
from bootmae_mm.studies.slurm import submit
from bootmae_mm.validation import ConfigError
from tests.conftest import run_config, write_images

PIXELS = {'model.neck.feature': None, 'model.feature_head': None}


@pytest.fixture
def folder(tmp_path):
    images = write_images(tmp_path / 'images', 16)
    run_config(tmp_path / 'tiny.py', images)
    return tmp_path


def write_study(folder: Path, **changes) -> Path:
    values = dict(config='tiny.py', data=str(folder / 'images'), runs=dict(both=None))
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return path


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=False)['state_dict']


def start(folder: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        '-m',
        'bootmae_mm',
        'study',
        folder / 'study.yaml',
        '--out',
        folder / 'out',
        '--threads',
        1,
    ]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.program
def test_a_killed_study_resumes_and_ends_as_an_undisturbed_one(folder, monkeypatch):
    """Kill it within its first run; the same command then finishes that run, from its checkpoint, and the others."""
    runs = dict(both=dict(epochs=12), scratch=dict(untrained=True))
    probes = dict(features=dict(labels_per_class=[2], k=3, runs=['both']))
    path = write_study(folder, curve=dict(times=2), probes=probes, runs=runs)

    process = start(folder)
    first = folder / 'out/both/seed_0/train'
    end = time.monotonic() + 120
    while not list(first.glob('epoch_*.pth')):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    wait_until_free(first, 30)  # its run has got a signal, saves and ends
    assert not (first / 'epoch_12.pth').exists() and not (first / 'done.json').exists()

    out, _ = start(folder).communicate(timeout=400)
    study = read_study(path, folder / 'out')
    table = collect(study)
    assert [row.run for row in table.rows] == list(runs), out
    assert table.metrics == ['kNN', '2 labels', 'linear'] and '0 of 3 jobs left' in out
    assert 'resumed' in (first / 'console.log').read_text().lower()
    both, scratch = (row.trained[0] for row in table.rows)
    assert (both['steps'], scratch['steps']) == (48, 0) and both['seconds'] > 0
    assert [point['step'] for point in both['curve']] == [0, 24, 48]
    assert 0 <= table.rows[0].metrics['kNN'][0] <= 100
    for name in ('table.md', 'results.json', 'accuracy.png'):
        assert (folder / 'out' / name).stat().st_size > 100
    assert '| both | 0 | 12 |' in (folder / 'out/table.md').read_text()

    # The same run without the kill, by the command that the study gives.
    job = Job(study.runs['both'], 0)
    command = [text.replace(str(first), str(folder / 'alone')) for text in command_of(study, job, Slot((0,), 1))]
    subprocess.run(command, check=True, capture_output=True)
    expected, found = weights(folder / 'alone/epoch_12.pth'), weights(first / 'epoch_12.pth')
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

    monkeypatch.setattr(subprocess, 'Popen', None)
    run_study(study, [Slot((0,), 1)])  # nothing is left to start


def test_equal_time_is_as_many_epochs_as_take_it(folder):
    runs = dict(both=None, pixels=dict(options=PIXELS), longer=dict(like='pixels', time_of='both'))
    study = read_study(write_study(folder, runs=runs, seeds=[3, 4]), folder / 'out')
    for name, seconds in dict(both=100.0, pixels=39.0).items():
        write_json(folder / f'out/{name}/seed_3/train/done.json', dict(epochs=8, steps=32, seconds=seconds))
    for seed in (3, 4):  # by the first seed of both
        command = command_of(study, Job(study.runs['longer'], seed), Slot((0,), 1))
        assert 'train_cfg.max_epochs=21' in command and f'randomness.seed={seed}' in command  # 8 x 100 / 39 = 20.5
        assert 'model.neck.feature=None' in command


def test_random_weights_are_those_that_the_seed_starts_from(folder):
    runs = dict(scratch=dict(untrained=True, seeds=[0, 1]), given=dict(weights='mine.pth'))
    study = read_study(write_study(folder, runs=runs), folder / 'out')
    run_study(study, [Slot((0,), 1)])
    first, second = (weights(Path(checkpoint_of(study, Job(study.runs['scratch'], seed)))) for seed in (0, 1))
    name = 'backbone.layers.0.attn.qkv.weight'
    assert first[name].shape == (72, 24) and not torch.equal(first[name], second[name])
    assert checkpoint_of(study, Job(study.runs['given'], 0)) == 'mine.pth'
    # What a run with this seed has after an epoch in which nothing changes.
    still = {
        'optim_wrapper.optimizer.lr': 0.0,
        'param_scheduler.1.eta_min': 0.0,
        'randomness.seed': 1,
        'train_cfg.max_epochs': 1,
    }
    options = dict(out=folder / 'still', config=folder / 'tiny.py', options=still)
    after = weights(bootmae_mm.pretrain(folder / 'images', **options))
    assert all(torch.equal(value, after[name]) for name, value in second.items() if name.startswith('backbone.'))


def test_a_job_of_other_settings_is_not_taken_for_this_one(folder):
    for ratio in (0.5, 0.6):
        runs = dict(scratch=dict(untrained=True, options={'masking.ratio': ratio}))
        study = read_study(write_study(folder, runs=runs), folder / 'out')
        if ratio == 0.5:
            run_study(study, [Slot((0,), 1)])
    with pytest.raises(
        ConfigError, match=r'seed_0/train was started with other settings \(options\): delete .*/scratch,'
    ):
        run_study(study, [Slot((0,), 1)])
    # Nor is a probe of the old weights one of the new ones.
    study = read_study(write_study(folder, runs=runs, probes=dict(features=None)), folder / 'out')
    probe = study.jobs()[1]
    before = spec_of(study, probe)
    runs['scratch']['options'] = {'masking.ratio': 0.7}
    study = read_study(write_study(folder, runs=runs, probes=dict(features=None)), folder / 'out')
    assert spec_of(study, study.jobs()[1]) != before


def test_a_failure_is_told_and_the_rest_runs(folder):
    runs = dict(
        wrong=dict(options={'masking.ratio': 2.0}),
        after=dict(checkpoints={'model.teacher.checkpoint': 'wrong'}),
        scratch=dict(untrained=True),
    )
    study = read_study(write_study(folder, runs=runs), folder / 'out')
    with pytest.raises(Failures) as error:
        run_study(study, [Slot((0,), 1)])
    assert 'wrong/seed_0/train: status 1: error: ratio must be' in str(error.value)
    assert 'after/seed_0/train: it needs wrong/seed_0/train' in str(error.value)
    assert [row.run for row in collect(study).rows] == ['scratch']
    with pytest.raises(Failures, match='it needs wrong/seed_0/train'):  # alone, as in an array of a cluster
        run_study(study, [Slot((0,), 1)], [Job(study.runs['after'], 0)])


def test_cores_and_gpus_are_divided(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(8)))
    assert make_slots(2) == [Slot((0, 1, 2, 3), 4), Slot((4, 5, 6, 7), 4)]
    assert make_slots(threads=3) == [Slot(tuple(range(8)), 3)]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    assert [slot.gpus for slot in make_slots()] == [(0,), (1,), (2,), (3,)]
    assert [(slot.gpus, slot.threads) for slot in make_slots(gpus_per_run=2)] == [((0, 1), 2), ((2, 3), 2)]
    for options in (dict(jobs=5), dict(gpus_per_run=5), dict(jobs=3, gpus_per_run=2), dict(jobs=-1), dict(threads=0)):
        with pytest.raises(ConfigError):
            make_slots(**options)


SBATCH = """#!/bin/bash
printf '%s\\n' "$*" >> {folder}/calls.txt
wc -l < {folder}/calls.txt
"""


def test_a_cluster_gets_an_array_for_each_level(folder, monkeypatch):
    runs = dict(both=None, frozen=dict(checkpoints={'model.teacher.checkpoint': 'both'}))
    path = write_study(folder, seeds=[0, 1], probes=dict(features=None), runs=runs)
    fake = folder / 'bin/sbatch'
    fake.parent.mkdir()
    fake.write_text(SBATCH.format(folder=folder))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', f'{fake.parent}:{os.environ["PATH"]}')

    study = read_study(path, folder / 'out')
    assert submit(study, ['study.yaml', '--out', 'out'], '--partition=gpu --time=1-0') == ['1', '2', '3']
    calls = (folder / 'calls.txt').read_text().splitlines()
    assert calls[0] == f'--parsable --partition=gpu --time=1-0 {folder}/out/slurm/jobs_0.sh'
    assert calls[1].startswith('--parsable --partition=gpu --time=1-0 --dependency=afterany:1 ')
    scripts = [(folder / f'out/slurm/jobs_{level}.sh').read_text() for level in range(3)]
    assert 'jobs=(both/seed_0/train both/seed_1/train)' in scripts[0]
    assert 'jobs=(frozen/seed_0/features frozen/seed_1/features)' in scripts[2]
    script = scripts[1]
    assert '#SBATCH --array=0-3' in script
    # The script as Slurm would run it, with a program that prints its arguments instead of Python.
    runnable = folder / 'script.sh'
    runnable.write_text(script.replace(sys.executable, 'echo'))
    done = subprocess.run(['bash', runnable], env={**os.environ, 'SLURM_ARRAY_TASK_ID': '1'}, capture_output=True)
    assert done.stdout.decode().strip() == '-m bootmae_mm study study.yaml --out out --job frozen/seed_0/train'


def test_an_array_does_not_submit_itself(folder):
    from bootmae_mm.commands import study as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ['s.yaml', '--slurm=--gpus=1', '--out', 'o', '--jobs', '2', '--cfg-options', 'a.b=1e-3', "c=[1, 'x']"]
    again = command.command_again(parser.parse_args(given))
    assert again == ['s.yaml', '--out=o', '--gpus-per-run=1', '--cfg-options', 'a.b=1e-3', "c=[1, 'x']"]
    assert parser.parse_args(again).slurm is None


def test_values_mean_what_they_mean_on_the_command_line(folder):
    options = {'optim_wrapper.optimizer.lr': '1e-3', 'data_root': '/a b', 'x': [1, 2]}  # YAML reads 1e-3 as text
    study = read_study(write_study(folder, runs=dict(both=dict(options=options))), folder / 'out')
    command = command_of(study, Job(study.runs['both'], 0), Slot((0,), 1))
    assert {'optim_wrapper.optimizer.lr=1e-3', 'data_root=/a b', 'x=[1, 2]'} <= set(command)


def test_an_error_of_an_earlier_start_is_not_the_reason(folder):
    console = folder / 'console.log'
    console.write_text('error: out of memory\n')
    begin = console.stat().st_size
    with console.open('a') as file:
        file.write('Epoch 1\nthe end\n')
    assert _last_error(console, begin) == 'the end' and _last_error(console, 0) == 'error: out of memory'


def test_one_study_at_a_time(folder, monkeypatch):
    for name in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):  # restored afterwards
        monkeypatch.setenv(name, '0')
    held = lock(folder / 'out')
    with pytest.raises(SystemExit) as end:
        commands.main(['study', str(write_study(folder)), '--out', str(folder / 'out')])
    assert str(end.value).startswith(f'error: another run (process {os.getpid()} on ') and held.close() is None


def test_a_refusal_of_the_cluster(folder, monkeypatch):
    study = read_study(write_study(folder), folder / 'out')
    monkeypatch.setenv('PATH', str(folder))
    with pytest.raises(ConfigError, match='there is no sbatch on this machine'):
        submit(study, ['study.yaml'], '')


def test_results_of_fine_tuning_are_the_last_in_the_log(folder):
    """From a log as mmseg writes it."""
    (folder / 'tune.py').write_text('')
    probes = dict(tune=dict(config='tune.py', metric='mIoU', scale=100.0))
    study = read_study(write_study(folder, probes=probes), folder / 'out')
    job = Job(study.runs['both'], 0, study.probes[0])
    log = folder / 'out' / job.key / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(entry) for entry in (
        dict(loss=1.0, step=5), dict(mIoU=0.2, step=10), dict(loss=0.5, step=15), dict(mIoU=0.31, step=20),
    )))  # fmt: skip
    assert finish(study, job) == dict(metrics=dict(tune=31.0))
    log.write_text(json.dumps(dict(aAcc=0.5, step=5)))
    with pytest.raises(ConfigError, match="no 'mIoU' in the log in .*; it has aAcc, step"):
        finish(study, job)
    log.write_text(json.dumps({'coco/bbox_mAP': 0.25, 'coco/segm_mAP': 0.125, 'step': 5}))
    names = {'box AP': 'coco/bbox_mAP', 'mask AP': 'coco/segm_mAP'}
    study = read_study(write_study(folder, probes=dict(tune=dict(probes['tune'], metric=names))), folder / 'out')
    assert finish(study, job := Job(study.runs['both'], 0, study.probes[0])) == dict(
        metrics={'box AP': 25.0, 'mask AP': 12.5}
    )
    assert collect(study).metrics == []  # not before its run is done
