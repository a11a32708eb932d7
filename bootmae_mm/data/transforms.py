"""Steps of a pipeline from an image to a batch: crop, flip, erase, pack, collate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmpretrain.datasets.transforms import RandomErasing as MMPretrainRandomErasing
from mmpretrain.datasets.transforms import RandomResizedCrop as MMPretrainRandomResizedCrop
from mmpretrain.datasets.transforms import ResizeEdge as MMPretrainResizeEdge
from pydantic import AfterValidator, Field
from torch.utils.data import default_collate

from bootmae_mm.registry import FUNCTIONS, TRANSFORMS
from bootmae_mm.validation import Few, Natural, Pair, Positive, Share, Size, require, validated


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    require(value[0] <= value[1], f'must be (min, max) with min <= max, but is {value}')
    return value


Range = Annotated[Pair[Positive], AfterValidator(_check_order)]
LabelId = Annotated[int, Field(ge=0, le=255)]


@TRANSFORMS.register_module()
class RandomResizedCrop(MMPretrainRandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``: the same crops, resized several times as fast.

    Args:
        scale: Height and width of the result, or one number for both.
        backend: ``'torch'``: bicubic with antialiasing, less than 0.02 of 255 from Pillow on average. ``'pillow'`` and
            ``'cv2'``: as in mmpretrain (OpenCV does not antialias).
        interpolation: Interpolation; ``'torch'`` has ``'bicubic'`` and ``'bilinear'``.
        retry: Draw area and aspect again if the crop does not fit, up to ``max_attempts`` times, as torchvision does.
            False: draw once and clip the crop to the image, as in MAE's linear probe (``mae_util/crop.py`` of the
            authors): larger crops of images that are not square.
        crop_ratio_range: Smallest and largest area of the crop over that of the image.
        aspect_ratio_range: Smallest and largest width over height of the crop.
        max_attempts: Number of attempts before the center is cropped.
        **kwargs: Arguments of mmpretrain's.

    Raises:
        ConfigError: If ``'torch'`` does not have the interpolation.
    """

    @validated
    def __init__(
        self,
        scale: Size,
        backend: Literal['torch', 'pillow', 'cv2'] = 'torch',
        interpolation: str = 'bicubic',
        retry: bool = True,
        crop_ratio_range: Range = (0.08, 1.0),
        aspect_ratio_range: Range = (3 / 4, 4 / 3),
        max_attempts: Few = 10,
        **kwargs: Any,
    ) -> None:
        known = backend != 'torch' or interpolation in ('bicubic', 'bilinear')
        require(known, f"interpolation must be 'bicubic' or 'bilinear' with torch, but is {interpolation!r}")
        self.retry = retry
        ranges = dict(crop_ratio_range=crop_ratio_range, aspect_ratio_range=aspect_ratio_range)
        super().__init__(
            scale=scale, backend=backend, interpolation=interpolation, max_attempts=max_attempts, **ranges, **kwargs
        )

    def rand_crop_params(self, img: np.ndarray) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a crop."""
        if self.retry:
            return super().rand_crop_params(img)
        rows, columns = img.shape[:2]
        area = rows * columns * np.random.uniform(*self.crop_ratio_range)  # in pixels
        aspect = np.exp(np.random.uniform(*np.log(self.aspect_ratio_range)))  # log-uniform
        width = min(max(1, round(float(np.sqrt(area * aspect)))), columns)
        height = min(max(1, round(float(np.sqrt(area / aspect)))), rows)
        top, left = np.random.randint(0, rows - height + 1), np.random.randint(0, columns - width + 1)
        return int(top), int(left), height, width

    def transform(self, results: dict) -> dict:
        """Crop and resize ``img``."""
        if self.backend != 'torch':
            return super().transform(results)
        top, left, height, width = self.rand_crop_params(results['img'])
        img = resize(results['img'][top : top + height, left : left + width], self.scale, self.interpolation)
        results.update(img=img, img_shape=img.shape)
        return results


def resize(img: np.ndarray, size: tuple[int, int], interpolation: str = 'bicubic') -> np.ndarray:
    """Resize like Pillow, antialiased, in a fraction of the time.

    uint8 (H, W, C) or (H, W) -> uint8 (height, width, C) or (height, width); other types give float32.
    """
    if img.ndim == 2:
        return resize(img[:, :, None], size, interpolation)[:, :, 0]
    if img.dtype != np.uint8:
        img = img.astype(np.float32)
    img = img if img.flags.writeable else img.copy()  # torch wants writable memory, which a pack is not
    # The batch axis before the permutation: only then does torch see an image with channels last, and makes one;
    # otherwise it would move every pixel twice.
    image = torch.from_numpy(img)[None].permute(0, 3, 1, 2)  # (1, C, H, W)
    return F.interpolate(image, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


def resize_for_test(img: np.ndarray, size: tuple[int, int], interpolation: str = 'bicubic') -> np.ndarray:
    """Resize with exactly the pixels of Pillow where it can (uint8, one or three channels), else by :func:`resize`.

    (H, W, C) -> (height, width, C) of the same type.
    """
    if img.dtype == np.uint8 and img.shape[2] in (1, 3):
        flat = img[:, :, 0] if img.shape[2] == 1 else img  # Pillow's gray pictures have two axes
        return np.atleast_3d(mmcv.imresize(flat, size[::-1], interpolation=interpolation, backend='pillow'))
    # Pillow has no other channels but a fourth, which it takes for transparency, and changes the others by it.
    return resize(img, size, interpolation)


@TRANSFORMS.register_module()
class ResizeEdge(MMPretrainResizeEdge):
    """mmpretrain's ``ResizeEdge``, for any number of channels and types of values; see :func:`resize_for_test`."""

    def _resize_img(self, results: dict) -> None:
        if self.backend != 'pillow':
            super()._resize_img(results)
            return
        (width, height), (rows, columns) = results['scale'], results['img'].shape[:2]
        img = resize_for_test(results['img'], (height, width), self.interpolation)
        results.update(img=img, img_shape=img.shape[:2], scale_factor=(width / columns, height / rows))


@TRANSFORMS.register_module()
class RandomErasing(MMPretrainRandomErasing):
    """mmpretrain's ``RandomErasing``, filled as the authors do (timm's ``pixel`` mode after normalization).

    The noise is N(mean, std) on the scale 0..255, which becomes N(0, 1) once the image is normalized, and is not
    clipped: the image becomes float32. (mmpretrain's own fills uint8, where a third of such noise lies outside 0..255.)

    Args:
        mean: Mean of each channel in the data_preprocessor.
        std: Standard deviation of each channel.
        **kwargs: Arguments of mmpretrain's: ``erase_prob``, ``min_area_ratio``, ``max_area_ratio``, ``aspect_range``.
    """

    def __init__(
        self,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(mode='rand', fill_color=tuple(mean), fill_std=tuple(std), **kwargs)

    def transform(self, results: dict) -> dict:
        """Erase a rectangle of ``img``, with the probability ``erase_prob``."""
        results['img'] = results['img'].astype(np.float32)  # one type for all images of a batch, erased or not
        return super().transform(results)

    def _fill_pixels(self, img: np.ndarray, top: int, left: int, h: int, w: int) -> np.ndarray:
        img[top : top + h, left : left + w] = np.random.normal(self.fill_color, self.fill_std, (h, w, img.shape[2]))
        return img


@TRANSFORMS.register_module()
class RandomFlip(BaseTransform):
    """Decides whether to mirror an image (``flip``); :class:`BootMAEDataPreprocessor` does it on the device.

    Args:
        prob: Probability, in [0, 1].
    """

    @validated
    def __init__(self, prob: Share = 0.5) -> None:
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Add ``flip``."""
        results['flip'] = np.random.random() < self.prob
        return results


@TRANSFORMS.register_module()
class RandomShift(BaseTransform):
    """Shifts ``img`` by a random number of pixels along both axes, and repeats its border.

    (mmpretrain's ``RandomCrop`` with ``padding`` fills with a constant, whatever its ``padding_mode``.)

    Args:
        most: Largest shift, in pixels.
    """

    @validated
    def __init__(self, most: Natural = 1) -> None:
        self.most = most

    def transform(self, results: dict) -> dict:
        """Shift the image."""
        img, most = results['img'], self.most
        row, column = np.random.randint(0, 2 * most + 1, size=2)  # most, most: no shift
        padded = np.pad(img, ((most, most), (most, most), (0, 0)), mode='edge')  # (H + 2 most, W + 2 most, C)
        results['img'] = padded[row : row + img.shape[0], column : column + img.shape[1]]
        return results


@TRANSFORMS.register_module()
class ShiftedView(BaseTransform):
    """Cuts two views out of ``img``: the top left corner, and another crop that is shifted by some pixels (CMAE).

    Place it after a crop that is larger than the model's images.

    Args:
        size: Height and width of the views.
        transforms: Transforms of the second view, such as changes of color.

    Raises:
        ConfigError: If an image is smaller than ``size``.
    """

    @validated
    def __init__(self, size: Size, transforms: list = []) -> None:  # noqa: B006  not changed
        self.size = size
        self.pipeline = Compose(transforms)

    def transform(self, results: dict) -> dict:
        """Cut ``img``, and add ``view``."""
        img, (height, width) = results['img'], self.size
        rows, columns = img.shape[0] - height, img.shape[1] - width  # largest shifts
        found = f'{img.shape[0]}x{img.shape[1]}'
        require(rows >= 0 and columns >= 0, f'ShiftedView needs images of at least {height}x{width}, but got {found}')
        top, left = np.random.randint(rows + 1), np.random.randint(columns + 1)
        second = self.pipeline(dict(img=img[top : top + height, left : left + width].copy()))
        return {**results, 'img': img[:height, :width], 'view': second['img']}


@TRANSFORMS.register_module()
class MapLabels(BaseTransform):
    """Replaces ids in a segmentation map, ``gt_seg_map`` (H, W); place it after ``LoadAnnotations``.

    Args:
        mapping: New id of each old one, such as ``{255: 1}`` for a foreground written as 255. Other ids stay.
    """

    @validated
    def __init__(self, mapping: dict[Annotated[LabelId, Field(strict=False)], LabelId]) -> None:
        self.table = np.arange(256, dtype=np.uint8)  # new id of each old one
        for old, new in mapping.items():
            self.table[old] = new

    def transform(self, results: dict) -> dict:
        """Replace the ids."""
        results['gt_seg_map'] = self.table[results['gt_seg_map']]
        return results


@TRANSFORMS.register_module()
class Repeat(BaseTransform):
    """Repeated augmentation: runs the rest of the pipeline ``times`` times per decoded image.

    Less decoding where that limits training, but another algorithm: the model's batch is ``times`` that of the loader
    (reduce ``batch_size`` accordingly) with several crops of each image, and an epoch sees every image ``times`` times.
    Off in all configs.

    Args:
        times: Number of samples per image.
        transforms: The rest of the pipeline, from the crop to :class:`PackImage`.
    """

    @validated
    def __init__(self, times: Few, transforms: list) -> None:
        self.times = times
        self.pipeline = Compose(transforms)

    def transform(self, results: dict) -> list[dict]:
        """Make the samples."""
        return [self.pipeline(dict(results)) for _ in range(self.times)]


@TRANSFORMS.register_module()
class PackImage(BaseTransform):
    """Packs a sample for :func:`collate`: the image as a tensor (C, H, W) with channels last in memory, and ``flip``.

    A second view (:class:`ShiftedView`) is packed like the image.

    uint8 stays uint8, other types become float32, as torch has few operations for uint16.

    Args:
        keys: Further keys to pass on.
    """

    @validated
    def __init__(self, keys: Sequence[str] = ()) -> None:
        self.keys = tuple(keys)

    def transform(self, results: dict) -> dict:
        """Return the packed sample."""
        packed = dict(inputs=_as_tensor(results['img']))
        if 'view' in results:
            packed['view'] = _as_tensor(results['view'])
        if 'flip' in results and 'flip_direction' not in results:  # mmcv's flip, done already, sets both
            packed['flip'] = results['flip']
        packed.update({key: results[key] for key in self.keys})
        return packed


def _as_tensor(img: np.ndarray) -> torch.Tensor:
    """(H, W, C) or (H, W) -> (C, H, W), channels last in memory."""
    img = np.atleast_3d(img)  # (H, W, C)
    img = img if img.dtype == np.uint8 else img.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)


def _stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Images (C, H, W) as a batch (B, C, H, W), channels last in memory."""
    # In a worker, torch's collate writes directly into memory shared with the main process.
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


@FUNCTIONS.register_module()
def collate(samples: list) -> dict:
    """Stack samples and draw their masks.

    Args:
        samples: Samples of :class:`PackImage`, with the keys of :class:`MaskSampling` if the dataset has ``masking``;
            or lists of samples, of :class:`Repeat`.

    Returns:
        ``inputs`` (B, C, H, W) uint8, channels last in memory; with masks ``ids_keep`` (B * K, V) and ``ids_mask``
        (B * K, M), int64, for K masks per image, usually 1; with :class:`RandomFlip` ``flip`` (B,) bool; with
        :class:`ShiftedView` ``view``, like ``inputs``.

    Raises:
        ConfigError: If the images differ in size.
    """
    # A sample of Repeat is a list.
    samples = [part for sample in samples for part in (sample if isinstance(sample, list) else [sample])]
    shapes = {tuple(sample['inputs'].shape) for sample in samples}
    advice = 'is there a crop in the pipeline?'
    require(len(shapes) == 1, f'images of a batch have different shapes {sorted(shapes)}; {advice}')
    batch: dict = dict(inputs=_stacked([sample['inputs'] for sample in samples]))  # (B, C, H, W)
    if 'view' in samples[0]:
        batch['view'] = _stacked([sample['view'] for sample in samples])
    if 'masking' in samples[0]:
        ids = samples[0]['masking'].batch([sample['mask_seed'] for sample in samples])
        batch['ids_keep'], batch['ids_mask'] = map(torch.from_numpy, ids)  # (B * K, V), (B * K, M)
    if 'flip' in samples[0]:
        batch['flip'] = torch.tensor([bool(sample['flip']) for sample in samples])  # (B,)
    for key in samples[0]:
        if key not in ('inputs', 'view', 'masking', 'mask_seed', 'flip'):
            batch[key] = [sample[key] for sample in samples]  # such as paths: not stacked
    return batch
