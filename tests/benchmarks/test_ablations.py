"""Both forms of a ablation compute the same."""

import pytest
import torch

from benchmarks.ablations import Ablations, measure_ablations
from benchmarks.step import TrainingStep
from bootmae_mm.data import MaskSampling
from bootmae_mm.engine.launch import read_config
from tests.conftest import run_config


@pytest.fixture
def step(tmp_path, image_folder):
    return TrainingStep(
        read_config(str(run_config(tmp_path / 'config.py', image_folder)), {}), 3, torch.device('cpu'), 'float32'
    )


@pytest.fixture
def masking():
    return MaskSampling(grid_size=(4, 6), min_block=2, max_block=6)


def test_both_forms_of_parts_of_the_model_agree(step, masking, monkeypatch):
    """Outputs and gradients: what a form leaves behind is caught where it would be thrown away."""
    found = []

    def caught(ablations, forward):
        def run():
            out = forward()
            gradients = []
            if out.requires_grad:
                wanted = [parameter for parameter in ablations.model.parameters() if parameter.requires_grad]
                # Not of the squares' sum, which is the same after any norm.
                weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
                gradients = torch.autograd.grad((weight * out).sum(), wanted, allow_unused=True)
            found.append([out, *(value for value in gradients if value is not None)])

        return run

    monkeypatch.setattr(Ablations, '_trained', caught)
    monkeypatch.setattr(Ablations, '_frozen', caught)
    names = []
    for name, plain, used in Ablations(step, masking):
        if name.startswith(('student', 'teacher', 'pixel', 'feature')):
            names.append(name)
            plain()
            used()
            before, after = found[-2:]
            assert len(before) == len(after)
            for one, other in zip(before, after, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    assert len(names) == len(set(names)) == 7


def test_both_forms_of_the_average_and_of_the_masks_agree(step, masking):
    ablations = {name.split(':')[0]: forms for name, *forms in Ablations(step, masking)}
    start = [value.clone() for value in step.teacher]
    with torch.no_grad():
        for value in step.student:
            value.add_(1.0)
    ends = []
    for form in ablations['EMA']:
        torch._foreach_copy_(step.teacher, start)
        form()
        ends.append([value.clone() for value in step.teacher])
    assert not torch.equal(ends[0][0], start[0])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)
    single, together = (form() for form in ablations['masks'])
    # The roll is drawn once a batch: beyond the first image the same patches in another order.
    assert (single[0][0][0] == together[0][0]).all() and len(single) == len(together[0]) == 3


def test_times_of_all_levers(step, masking):
    results = measure_ablations(step, masking, warmup=0, repeats=1)
    assert len(results) == 10
    assert all(item['before_ms'] > 0 and item['after_ms'] > 0 for item in results)
    assert all(parameter.grad is None for parameter in step.model.parameters())
