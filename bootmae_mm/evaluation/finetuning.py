"""Fine-tuning of a whole encoder on a few labeled images."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bootmae_mm.validation import Count, NonNegative, Options, Positive, Rate, require


class FineTuning(Options):
    """Recipe of :func:`finetuned_accuracy`.

    Attributes:
        steps: Number of steps.
        batch_size: Images of a step, drawn with replacement.
        lr: Peak learning rate of AdamW; rises over a tenth of the steps, then falls to zero as a cosine.
        weight_decay: Weight decay.
        label_smoothing: Label smoothing of the cross-entropy.
        shift: Images are shifted by up to this share of their side, with the lowest value of the batch where nothing
            is left.
        flip: Mirror half of the images.
    """

    steps: Count = 400
    batch_size: Count = 64
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    label_smoothing: Rate = 0.1
    shift: Rate = 1 / 16
    flip: bool = False


class Classifier(nn.Module):
    """A copy of an encoder with a norm and a linear layer on the mean of its patch tokens.

    Args:
        backbone: A :class:`BootMAEViT`; it is not changed.
        num_classes: Number of classes.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.norm = nn.LayerNorm(backbone.embed_dims)
        self.head = nn.Linear(backbone.embed_dims, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        rows, columns = backbone.grid_size
        self.register_buffer('all_ids', torch.arange(rows * columns), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, classes) of normalized images (B, C, H, W)."""
        tokens = self.backbone.encode_patches(images, self.all_ids.expand(len(images), -1))  # (B, L, D)
        return self.head(self.norm(tokens.mean(dim=1)))


def finetuned_accuracy(
    backbone: nn.Module,
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    labels_per_class: int | None = None,
    seed: int = 0,
    recipe: FineTuning | None = None,
) -> float:
    """Accuracy after fine-tuning all weights of an encoder on some of the labeled images.

    Args:
        backbone: A :class:`BootMAEViT`; a copy is trained, on its device.
        train: Normalized images, (N, C, H, W), on the CPU.
        train_labels: (N,), int64.
        test: Normalized images, (K, C, H, W).
        test_labels: (K,), int64.
        labels_per_class: Number of labels of each class to use; all by default.
        seed: Seed of the choice of labels, as in :func:`linear_accuracy`, and of the training.
        recipe: Length, learning rate and augmentation.

    Returns:
        Share of correctly classified test images, in 0..1.

    Raises:
        ConfigError: If a class has fewer labels.
    """
    recipe, device = recipe or FineTuning(), next(backbone.parameters()).device
    chosen = torch.from_numpy(draw_labels(train_labels.numpy(), labels_per_class, seed))
    images, labels = train[chosen], train_labels[chosen]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(backbone, int(max(train_labels.max(), test_labels.max())) + 1).to(device).train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_lr(step, recipe.steps))
        for _ in range(recipe.steps):
            batch = torch.randint(len(images), (recipe.batch_size,))
            inputs = _augmented(images[batch].to(device), recipe)  # (B, C, H, W)
            loss = F.cross_entropy(model(inputs), labels[batch].to(device), label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(part.to(device)).argmax(dim=1).cpu() == wanted).sum())
            for part, wanted in zip(test.split(256), test_labels.split(256), strict=True)
        )
    return right / len(test)


def draw_labels(labels: np.ndarray, labels_per_class: int | None, seed: int) -> np.ndarray:
    """Indices of as many images of each class, drawn with a seed; all without a number.

    Raises:
        ConfigError: If a class has fewer images.
    """
    if labels_per_class is None:
        return np.arange(len(labels))
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    require(labels_per_class <= smallest, f'{labels_per_class} labels of each class, but one has {smallest} images')
    rng = np.random.RandomState(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:labels_per_class] for c in np.unique(labels)])


def _share_of_lr(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _augmented(images: Tensor, recipe: FineTuning) -> Tensor:
    """Shift and mirror each image by its own draw."""
    count, _, height, width = images.shape
    if recipe.flip:
        images = torch.where(torch.rand(count, 1, 1, 1, device=images.device) < 0.5, images.flip(-1), images)
    most: Sequence[int] = [round(recipe.shift * side) for side in (height, width)]
    if not any(most):
        return images
    padded = F.pad(images, (most[1], most[1], most[0], most[0]), value=float(images.min()))
    rows, columns = (
        torch.randint(2 * far + 1, (count, 1), device=images.device) + torch.arange(side, device=images.device)
        for far, side in zip(most, (height, width), strict=True)
    )  # (B, H), (B, W)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, C, H, W)
