"""Ablations: both forms compute the same."""

import pytest
import torch

from benchmarks.ablations import Ablations, measure_ablations
from benchmarks.step import TrainingStep
from bootmae_mm.engine.launch import read_config
from tests.conftest import run_config


@pytest.fixture
def step(tmp_path, image_folder):
    return TrainingStep(
        read_config(str(run_config(tmp_path / 'config.py', image_folder)), {}), 3, torch.device('cpu'), 'float32'
    )


def test_both_forms_of_parts_of_the_model_agree(step, monkeypatch):
    """Outputs and gradients, which are recorded here, as the benchmark discards them."""
    found = []

    def recorded(ablations, forward):
        def run():
            out = forward()
            gradients = []
            if out.requires_grad:
                wanted = [parameter for parameter in ablations.model.parameters() if parameter.requires_grad]
                # Not of the sum of squares, which is constant after a norm.
                weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
                gradients = torch.autograd.grad((weight * out).sum(), wanted, allow_unused=True)
            found.append([out, *(value for value in gradients if value is not None)])

        return run

    monkeypatch.setattr(Ablations, '_trained', recorded)
    monkeypatch.setattr(Ablations, '_frozen', recorded)
    names = []
    for name, plain, used in Ablations(step):
        if name.startswith(('student', 'teacher', 'pixel', 'feature')):
            names.append(name)
            plain()
            used()
            before, after = found[-2:]
            assert len(before) == len(after)
            for one, other in zip(before, after, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    assert len(names) == len(set(names)) == 5


def test_both_forms_of_the_average_agree(step):
    ablations = {name.split(':')[0]: forms for name, *forms in Ablations(step)}
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


def test_both_forms_of_the_optimizer_agree(step):
    ablations = {name.split(':')[0]: forms for name, *forms in Ablations(step)}
    ends = []
    for form in ablations['AdamW']:
        optimizer = form.__self__
        ends.append(optimizer.param_groups[0]['params'])
        start = [value.detach().clone() for value in ends[-1]]
        form()
        assert not any(torch.equal(old, new) for old, new in zip(start, ends[-1], strict=True))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


def test_times_of_all_ablations(step):
    results = measure_ablations(step, warmup=0, repeats=1)
    assert len(results) == len({item['name'] for item in results}) == 7
    assert all(item['before_ms'] > 0 and item['after_ms'] > 0 for item in results)
    assert all(parameter.grad is None for parameter in step.model.parameters())
