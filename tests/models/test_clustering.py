"""CAPI's clustering: against numbers of the authors' program, and within the model."""

import json

import pytest
import torch

from bootmae_mm.models.clustering import ClusterHead, ClusterTarget, PatchSoftCrossEntropy, sinkhorn
from bootmae_mm.models.step import Step
from tests.conftest import ROOT, build, model_info, tiny_config

REFERENCE = json.loads((ROOT / 'tests/reference/capi.json').read_text())


class View:
    """A teacher that sees given tokens, (B, L, D)."""

    def __init__(self, tokens):
        self.tokens = tokens

    def patch_tokens(self):
        return self.tokens


def tensor(name):
    return torch.tensor(REFERENCE[name])


def test_sinkhorn_is_that_of_the_authors():
    torch.testing.assert_close(sinkhorn(tensor('logits'), 3), tensor('assignments'))


def test_assignments_and_loss_are_those_of_the_authors():
    """Numbers of ``OnlineClustering`` in CAPI's model.py, at 98b4fa1."""
    tokens = tensor('tokens')  # (B, L, D)
    target = ClusterTarget(model_info(teacher_dims=tokens.shape[2]), clusters=5)
    target.layer.weight.data, target.layer.bias.data = tensor('weight'), tensor('bias')
    step = Step(View(tokens))
    ids = torch.tensor([[3, 0], [1, 2], [2, 2], [0, 3]])
    with torch.no_grad():
        found = target(torch.empty(0), ids, step)
    torch.testing.assert_close(found, tensor('targets')[torch.arange(4)[:, None], ids])
    assert step.target_loss.item() == pytest.approx(REFERENCE['clustering_loss'], rel=1e-5)
    step.target_loss.backward()
    torch.testing.assert_close(target.layer.weight.grad, tensor('weight_gradient'), rtol=1e-4, atol=1e-6)
    twice = target(torch.empty(0), ids.repeat_interleave(2, 0), Step(View(tokens)))
    torch.testing.assert_close(twice, found.repeat_interleave(2, 0))  # several masks of an image


def test_prediction_is_that_of_the_authors():
    """Numbers of ``L2NormLinear`` and ``do_student``."""
    tokens, targets = tensor('student')[None], tensor('student_targets')[None]
    info = model_info(teacher_dims=6)
    head = ClusterHead(tokens.shape[2], info, target=dict(type='bootmae_mm.ClusterTarget', clusters=5))
    head.projection.weight.data = tensor('student_weight')
    errors, losses = head.loss(tokens, targets, torch.ones(tokens.shape[:2]))
    assert losses['loss'].item() == pytest.approx(REFERENCE['student_loss'], rel=1e-5)
    torch.testing.assert_close(PatchSoftCrossEntropy(0.12)(head(tokens), targets), errors)
    assert losses['mean_entropy'] <= torch.tensor(5.0).log() + 1e-6


def test_both_losses_train_their_parts(batch):
    config = tiny_config(feature_weight=0.5)
    config['feature_head'] = dict(
        type='bootmae_mm.ClusterHead', target=dict(type='bootmae_mm.ClusterTarget', clusters=7)
    )
    model = build(config)
    losses = model.loss(**batch)
    total, log = model.parse_losses(losses)
    wanted = losses['pixel_loss'] + 0.5 * losses['feature_loss'] + losses['feature_target_loss']
    torch.testing.assert_close(total, wanted)
    assert {'feature_target_entropy', 'feature_mean_entropy'} <= set(log)
    target = model.feature_head.target.layer.weight
    student = model.feature_head.projection.weight
    gradients = torch.autograd.grad(
        losses['feature_target_loss'], [target, student], retain_graph=True, allow_unused=True
    )
    assert gradients[0].abs().max() > 0 and gradients[1] is None
    total.backward()
    assert student.grad.abs().max() > 0 and not any(p.grad is not None for p in model.teacher.parameters())
