"""From a file to a batch: load, pack, collate."""

from __future__ import annotations

import mmcv
import mmengine.fileio
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log

from bootmae_mm.registry import FUNCTIONS, TRANSFORMS

from ..models.tokens import to_pair


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded.

    Args:
        path: Of the file.
        reason: What the decoder said.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error survives the way out of a worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f'{self.path}: {self.reason}'


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Reads ``img_path`` into ``img``, uint8 (H, W, 3) in RGB.

    Orientation tags are followed, other modes (grey, palette, alpha, CMYK) are converted.

    Args:
        crop_size: Height and width of the crop that follows; a smaller image is enlarged by the crop, which is said
            once a process. None not to look.
        backend: Decoder, one of mmcv's (``'pillow'``, ``'cv2'``, ``'turbojpeg'``).
        backend_args: Of mmengine's file client, for images that are not in the local file system.

    Raises:
        UnreadableImageError: If the file cannot be read or decoded.
    """

    BACKENDS = ('pillow', 'cv2', 'turbojpeg')

    def __init__(
        self, crop_size: int | tuple[int, int] | None = None, backend: str = 'pillow', backend_args: dict | None = None
    ) -> None:
        if backend not in self.BACKENDS:
            raise ValueError(f'backend must be one of {", ".join(self.BACKENDS)}, but is {backend!r}')
        self.crop_size = None if crop_size is None else to_pair(crop_size, 'crop_size')
        self.backend = backend
        self.backend_args = backend_args
        self._warned = False

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape``."""
        path = results['img_path']
        try:
            data = mmengine.fileio.get(path, backend_args=self.backend_args)
            img = mmcv.imfrombytes(data, flag='color', channel_order='rgb', backend=self.backend)
        except Exception as error:  # noqa: BLE001  decoders raise whatever they like on a broken file
            raise UnreadableImageError(path, str(error) or type(error).__name__) from error
        if img is None:
            raise UnreadableImageError(path, 'not an image')
        if (
            self.crop_size
            and not self._warned
            and (img.shape[0] < self.crop_size[0] or img.shape[1] < self.crop_size[1])
        ):
            self._warned = True
            print_log(
                f'{path} is {img.shape[0]}x{img.shape[1]}, smaller than the crop of '
                f'{self.crop_size[0]}x{self.crop_size[1]}: such images are enlarged (said once)',
                logger='current',
                level=30,
            )
        results.update(img=np.ascontiguousarray(img), img_shape=img.shape[:2], ori_shape=img.shape[:2])
        return results


@TRANSFORMS.register_module()
class RandomShift(BaseTransform):
    """Moves ``img`` by a random number of pixels along both axes; the edge is repeated.

    (mmpretrain's ``RandomCrop`` with ``padding`` fills with a constant, whatever its ``padding_mode``.)

    Args:
        most: Largest shift, in pixels.
    """

    def __init__(self, most: int = 1) -> None:
        if most < 0:
            raise ValueError(f'the largest shift must be at least 0, but is {most}')
        self.most = most

    def transform(self, results: dict) -> dict:
        """Shift the image."""
        img, most = results['img'], self.most
        row, column = np.random.randint(0, 2 * most + 1, size=2)
        padded = np.pad(img, ((most, most), (most, most), (0, 0)), mode='edge')
        results['img'] = padded[row : row + img.shape[0], column : column + img.shape[1]]
        return results


@TRANSFORMS.register_module()
class PackImage(BaseTransform):
    """Packs a sample for :func:`collate`: the image as a uint8 tensor (C, H, W).

    Args:
        keys: Other keys to pass on.
    """

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        self.keys = tuple(keys)

    def transform(self, results: dict) -> dict:
        """Return the packed sample."""
        img = results['img']
        img = img[:, :, None] if img.ndim == 2 else img
        packed = dict(inputs=torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1))))
        packed.update({key: results[key] for key in self.keys})
        return packed


@FUNCTIONS.register_module()
def collate(samples: list[dict]) -> dict:
    """Stack samples; turn orders of patches into kept and masked ones.

    The orders of all images are rolled by the draw of the first one: the authors draw once a batch.

    Args:
        samples: Of :class:`PackImage`, with the keys of :class:`MaskSampling` where the dataset has ``masking``.

    Returns:
        ``inputs`` (B, C, H, W) uint8, and with masks ``ids_keep`` (B, V) and ``ids_mask`` (B, M), int64.

    Raises:
        ValueError: If the images differ in size.
    """
    shapes = {tuple(sample['inputs'].shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(
            f'images of one batch have different shapes {sorted(shapes)}; is there a crop in the pipeline?'
        )
    batch = dict(inputs=torch.stack([sample['inputs'] for sample in samples]))
    if 'mask_order' in samples[0]:
        order = torch.from_numpy(np.stack([sample['mask_order'] for sample in samples]))
        order = order.roll(samples[0]['mask_roll'], dims=1)
        num_kept = order.shape[1] - samples[0]['num_masked']
        batch.update(ids_keep=order[:, :num_kept].contiguous(), ids_mask=order[:, num_kept:].contiguous())
    for key in samples[0]:
        if key not in ('inputs', 'mask_order', 'mask_roll', 'num_masked'):
            batch[key] = [sample[key] for sample in samples]
    return batch
