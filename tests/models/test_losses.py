"""The weighted loss of both heads."""

import torch

from bootmae_mm.models.losses import loss_weights, weighted_mse


def test_weights_by_hand():
    # 3 x 3 grid, masked: the corner 0, its right neighbor 1, and the middle 4.
    weights = loss_weights(torch.tensor([[4, 0, 1]]), (3, 3))
    torch.testing.assert_close(weights, torch.tensor([[1 + 3 / 9, 1 + 3 / 9, 1 + 3 / 9]]))
    weights = loss_weights(torch.tensor([[0, 8]]), (3, 3))
    torch.testing.assert_close(weights, torch.tensor([[1 + 1 / 9, 1 + 1 / 9]]))
    torch.testing.assert_close(loss_weights(torch.tensor([[0, 8]]), (3, 3), weighted=False), torch.ones(1, 2))


def test_weighted_mse_is_the_authors_mean_over_all_patches():
    prediction, target = torch.randn(2, 6, 3, 2, 2), torch.randn(2, 6, 3, 2, 2)
    mask = torch.tensor([[1.0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]])
    weights = mask * torch.rand(2, 6)
    wanted = (weights[:, :, None, None, None] * (prediction - target) ** 2).mean() / mask.mean()
    ids = torch.stack([row.nonzero().flatten() for row in mask])
    image = torch.arange(2)[:, None]
    found = weighted_mse(prediction[image, ids], target[image, ids], weights[image, ids])
    torch.testing.assert_close(found, wanted)
