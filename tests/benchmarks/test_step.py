"""The measured steps are those of training."""

import statistics
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.step import DECAY, TrainingStep, measure_step, precision, random_batch
from benchmarks.timing import Stopwatch, alternately, matrix_ceiling, seconds_of
from bootmae_mm.engine.hooks.compilation import compile_blocks
from bootmae_mm.engine.launch import read_config
from tests.conftest import ROOT, run_config


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
    step()  # the methods are the original ones again
    assert 'encode_visible' not in vars(step.model.backbone)
    result = measure_step(step, 0, 1)
    assert result['images_per_second'] == pytest.approx(2e3 / result['step_ms'])
    flops = 2 * sum(result['macs_per_image'].values()) * result['images_per_second']
    assert result['flops'] == pytest.approx(flops)
    assert result['share_of_ceiling'] == pytest.approx(flops / result['ceiling_flops'])


def test_the_precision_of_a_step_is_that_of_the_optimizer_wrapper(cfg):
    cpu = torch.device('cpu')
    step = TrainingStep(cfg, 2, cpu, 'bfloat16')
    assert step.dtype == torch.bfloat16
    scaled = SimpleNamespace(loss_scaler=object(), cast_dtype=torch.float16)
    assert precision(scaled, cpu) == torch.float16
    assert precision(SimpleNamespace(loss_scaler=object(), cast_dtype=None), torch.device('cuda')) == torch.float16
    assert precision(SimpleNamespace(), cpu) == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU: make test-gpu')
@pytest.mark.parametrize('compiled', [False, True])
def test_a_step_on_a_gpu_does_not_synchronize_and_agrees_with_the_cpu(compiled):
    """ViT-B in bfloat16 against float32 on the CPU."""
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    step = TrainingStep(cfg, 8, torch.device('cuda'), 'bfloat16')
    reference = TrainingStep(cfg, 8, torch.device('cpu'), 'float32')
    if compiled:
        compile_blocks(step.model)
    losses = []
    for one in (step, reference):
        with torch.no_grad(), one.optim_wrapper.optim_context(one.model):
            losses.append(one.model(**one.model.data_preprocessor(dict(one.data), True), mode='loss'))
    for name, value in losses[1].items():
        assert losses[0][name].item() == pytest.approx(value.item(), rel=0.02), name
    step()
    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    parts = step.parts(repeats=2)
    assert parts['optimizer'] > 0 and parts['EMA'] > 0


def test_batches_have_the_form_of_those_of_the_loader(cfg):
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
    for _ in range(2):
        with watch.part('sleep'):
            time.sleep(0.01)
    assert 0.02 <= watch.seconds['sleep'] < 1
