"""What the parts of a step share: the teacher's pass over whole images, and errors of the branches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoder import PretrainingEncoder
from .tokens import take_tokens


class TeacherView:
    """One pass of a teacher over the images of a batch; it runs when first needed, and once.

    Args:
        teacher: Momentum encoder or frozen encoder.
        images: Normalized images, (B, C, H, W).
        top_k: Largest number of last blocks whose outputs will be asked for.
    """

    def __init__(self, teacher: PretrainingEncoder, images: Tensor, top_k: int = 1) -> None:
        self.teacher = teacher
        self.images = images
        self.top_k = top_k

    @cached_property
    @torch.no_grad()
    def _hidden(self) -> list[Tensor]:
        return self.teacher.encode_hidden(self.images, max(1, self.top_k - 1))  # (B, 1 + L, D) each

    @cached_property
    @torch.no_grad()
    def _last(self) -> Tensor:
        return self.teacher.encode_last(self._hidden[-1])  # (B, 1 + L, D)

    @torch.no_grad()
    def latent(self) -> Tensor:
        """All tokens after the final norm, (B, 1 + L, D)."""
        return self.teacher.final_norm_of(self._last)

    def patch_tokens(self, norm: bool = True) -> Tensor:
        """Tokens of the patches, (B, L, D), after the final norm or before it."""
        return (self.latent() if norm else self._last)[:, self.teacher.num_extra_tokens :]

    @torch.no_grad()
    def features(self, ids_mask: Tensor, norm: bool = False, top_k: int = 1) -> Tensor:
        """Features of the masked patches: (B * K, M) -> (B * K, M, D), for K masks per image.

        Args:
            ids_mask: Indices of the masked patches.
            norm: Apply the final norm to the output of the last block.
            top_k: 1 for the output of the last block. Otherwise the mean over the last ``top_k`` blocks, each output
                normalized on its own, as in data2vec (arXiv 2202.03555).
        """
        hidden, ids = self._hidden, ids_mask + self.teacher.num_extra_tokens
        if '_last' in self.__dict__ or len(ids_mask) != len(self.images):  # needed as a whole, or by several masks
            last = take_tokens(self._last, ids)  # (B * K, M, D)
            last = self.teacher.final_norm_of(last) if norm else last  # a norm of each token on its own
        else:
            last = self.teacher.encode_last(hidden[-1], ids_mask, norm)  # (B, M, D)
        if top_k == 1:
            return last
        outputs = [*(take_tokens(x, ids) for x in hidden[-(top_k - 1) :]), last]  # (B * K, M, D) each
        return torch.stack([F.layer_norm(x.float(), x.shape[-1:]) for x in outputs]).mean(0)

    @torch.no_grad()
    def class_attention(self) -> Tensor:
        """Attention of the class token to the patches in the last block, (B, heads, L)."""
        return self.teacher.class_attention(self._hidden[-1])


@dataclass
class Step:
    """What masks, targets and branches of one step share.

    Attributes:
        teacher: The teacher's view of the images, if there is a teacher.
        view: Second view of the images, (B, C, H, W), if the data loader gives one.
        errors: Errors of the masked patches, (B * K, M), without gradient, by name of the branches computed so far.
        target_loss: Loss of the target computed last, if it learns itself.
    """

    teacher: TeacherView | None = None
    view: Tensor | None = None
    errors: dict[str, Tensor] = field(default_factory=dict)
    target_loss: Tensor | None = None
