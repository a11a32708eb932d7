"""The losses of masked patches."""

import json

import pytest
import torch

from bootmae_mm.models import PatchCosine, PatchCrossEntropy, PatchMSE, PatchRanking, PatchSmoothL1
from bootmae_mm.models.losses import loss_weights
from tests.conftest import ROOT


def test_weights_by_hand():
    # 3 x 3 grid, masked: the corner 0, its right neighbor 1, and the middle 4.
    weights = loss_weights(torch.tensor([[4, 0, 1]]), (3, 3))
    torch.testing.assert_close(weights, torch.tensor([[1 + 3 / 9, 1 + 3 / 9, 1 + 3 / 9]]))
    weights = loss_weights(torch.tensor([[0, 8]]), (3, 3))
    torch.testing.assert_close(weights, torch.tensor([[1 + 1 / 9, 1 + 1 / 9]]))
    torch.testing.assert_close(loss_weights(torch.tensor([[0, 8]]), (3, 3), weighted=False), torch.ones(1, 2))


def test_mse_is_the_authors_mean_over_all_patches():
    prediction, target = torch.randn(2, 6, 3, 2, 2), torch.randn(2, 6, 3, 2, 2)
    mask = torch.tensor([[1.0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]])
    weights = mask * torch.rand(2, 6)
    wanted = (weights[:, :, None, None, None] * (prediction - target) ** 2).mean() / mask.mean()
    ids = torch.stack([row.nonzero().flatten() for row in mask])
    image = torch.arange(2)[:, None]
    found = PatchMSE()(prediction[image, ids], target[image, ids])
    torch.testing.assert_close((weights[image, ids] * found).mean(), wanted)


def test_errors_of_patches_by_hand():
    prediction, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    error = (prediction - target).abs()
    wanted = torch.where(error < 0.5, error**2 / (2 * 0.5), error - 0.25).mean(2)
    torch.testing.assert_close(PatchSmoothL1(beta=0.5)(prediction, target), wanted)
    lengths = prediction.norm(dim=2) * target.norm(dim=2)
    torch.testing.assert_close(PatchCosine()(prediction, target), 1 - (prediction * target).sum(2) / lengths)
    codes = torch.tensor([[0, 3, 1], [2, 2, 0]])
    wanted = -prediction.log_softmax(2).gather(2, codes[:, :, None])[:, :, 0]
    torch.testing.assert_close(PatchCrossEntropy()(prediction, codes), wanted)
    smooth = 0.9 * wanted - 0.1 * prediction.log_softmax(2).mean(2)
    torch.testing.assert_close(PatchCrossEntropy(label_smoothing=0.1)(prediction, codes), smooth)


@pytest.mark.parametrize('loss', [PatchMSE(), PatchSmoothL1(), PatchCosine(), PatchRanking()])
def test_errors_are_computed_in_float32(loss):
    prediction, target = torch.randn(2, 3, 1).bfloat16(), torch.randn(2, 3, 1)
    found = loss(prediction, target)
    assert found.dtype == torch.float32 and found.shape == (2, 3)
    torch.testing.assert_close(found, loss(prediction.float(), target))


def test_ranking_is_that_of_the_authors():
    """Numbers of ``forward_learning_loss(relative=True)`` in HPM's models_mae_learn_loss.py, at c15ae90."""
    reference = json.loads((ROOT / 'tests/reference/hpm.json').read_text())
    prediction, target = (torch.tensor(reference[name])[:, :, None] for name in ('loss_pred', 'loss_target'))
    prediction.requires_grad_()
    loss = PatchRanking()(prediction, target).mean()
    loss.backward()
    assert loss.item() == pytest.approx(reference['loss'], rel=1e-4)  # theirs adds 1e-6 within the logarithms
    torch.testing.assert_close(prediction.grad[:, :, 0], torch.tensor(reference['gradient']), rtol=1e-3, atol=1e-6)
