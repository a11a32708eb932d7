"""Timed steps are real ones."""

import statistics
import time

import pytest
import torch

from bootmae_mm.benchmark.step import DECAY, TrainingStep, measure_step, random_batch
from bootmae_mm.benchmark.timing import Stopwatch, alternately, matrix_ceiling, seconds_of
from bootmae_mm.engine.launch import read_config
from tests.conftest import run_config


@pytest.fixture
def cfg(tmp_path, image_folder):
    return read_config(str(run_config(tmp_path / 'config.py', image_folder)), {})


def test_a_step_trains_the_student_and_moves_the_teacher(cfg):
    step = TrainingStep(cfg, 3, torch.device('cpu'), 'float32')
    student = {name: value.clone() for name, value in step.model.backbone.state_dict().items()}
    teacher = {name: value.clone() for name, value in step.model.teacher.state_dict().items()}
    step()
    name = 'layers.1.attn.proj.weight'
    new = step.model.backbone.state_dict()[name]
    assert not torch.equal(new, student[name])
    torch.testing.assert_close(step.model.teacher.state_dict()[name], DECAY * teacher[name] + (1 - DECAY) * new)


def test_a_step_has_all_parts(cfg):
    step = TrainingStep(cfg, 2, torch.device('cpu'), 'float32')
    parts = step.parts(repeats=1)
    wanted = {'student', 'teacher', 'decoders and heads', 'backward', 'optimizer', 'EMA', 'rest'}
    assert parts.keys() == wanted and all(seconds > 0 for seconds in parts.values())
    step()  # the methods are what they were
    assert 'encode_visible' not in vars(step.model.backbone)
    result = measure_step(step, 0, 1)
    assert result['images_per_second'] == pytest.approx(2e3 / result['step_ms'])
    flops = 2 * sum(result['macs_per_image'].values()) * result['images_per_second']
    assert result['flops'] == pytest.approx(flops)
    assert result['share_of_ceiling'] == pytest.approx(flops / result['ceiling_flops'])


def test_batches_are_like_those_of_the_loader(cfg):
    batch = random_batch(cfg, 4)
    assert batch['inputs'].shape == (4, 3, 32, 48) and batch['inputs'].dtype == torch.uint8
    ids = torch.cat([batch['ids_keep'], batch['ids_mask']], dim=1).sort(dim=1).values
    assert torch.equal(ids, torch.arange(24).expand(4, -1))


def test_timing():
    cpu = torch.device('cpu')
    calls = []
    seconds = seconds_of(lambda: calls.append(time.sleep(0.01)), cpu, warmup=2, repeats=3)
    assert len(calls) == 5 and len(seconds) == 3 and statistics.median(seconds) >= 0.01
    order = []
    functions = {name: lambda name=name: order.append(name) for name in 'ab'}
    assert alternately(functions, cpu, 1, 2).keys() == {'a', 'b'} and order == list('ababab')
    assert matrix_ceiling(cpu, torch.float32) > 1e8
    watch = Stopwatch(cpu)
    with pytest.raises(RuntimeError, match='stop'), watch.watching((watch, 'part', 'x')):
        raise RuntimeError('stop')
    assert 'part' not in vars(watch)
