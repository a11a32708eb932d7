"""From a file to a batch: load, crop, flip, pack, collate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import mmengine.fileio
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmpretrain.datasets.transforms import RandomErasing as MMPretrainRandomErasing
from mmpretrain.datasets.transforms import RandomResizedCrop as MMPretrainRandomResizedCrop
from torch.utils.data import default_collate

from bootmae_mm.registry import FUNCTIONS, TRANSFORMS
from bootmae_mm.values import check_bool, integer, number, to_pair

from .decoding import PILLOW_LIMIT, Decoding, UnreadableImageError, ValueRangeError, decode


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Reads ``img_path`` into ``img``, uint8 (H, W, 3) in RGB; or ``img_bytes``, or leaves an ``img`` that is there.

    Orientation tags are followed, other modes (gray, palette, CMYK) are converted, of an animation the first frame is
    taken, transparency is dropped. What a file is, its content tells, not its name.

    Args:
        crop_size: Height and width of the crop that follows; a smaller image is enlarged by the crop, which is said
            once a process. None not to look.
        backend: Decoder. ``'auto'``: OpenCV for JPEG files, faster with the pixels of Pillow (CMYK within 1 of 255),
            and Pillow for all others. Or one of mmcv's for all (``'pillow'``, ``'cv2'``, ``'turbojpeg'``).
        backend_args: Of mmengine's file client, for images that are not in the local file system.
        min_edge: For large photographs: decode a JPEG file at 1/2, 1/4 or 1/8 of its size, inside the decoder (in the
            frequency domain), as long as the shorter edge keeps so many pixels. Another pipeline than the full size:
            small crops are enlarged from fewer pixels. None, the default, for the full size; needs ``'auto'``.
        max_pixels: Larger images are refused before they are decoded: a file of a few kB may take all memory. At most
            178,956,970, Pillow's own limit.
        channels: 3 for RGB, 1 for gray, 4 for files of four channels (RGBA); then ``in_channels`` of the backbone and
            ``mean`` and ``std`` of the data_preprocessor have as many.
        value_range: For gray files of more than 8 bits: the values that become 0 and 255, such as ``(-1000, 2000)`` for
            CT; or a number of bits, such as 12 for ``(0, 4095)``. Values outside are cut off. By default that of the
            file's type where it is 16 bits without a sign, ``(0, 65535)``; all others need it. If a file uses less than
            an eighth of the range, a warning says so, once a process.

    Raises:
        UnreadableImageError: If the file cannot be read or decoded, or has other channels.
        ValueError: On an unknown backend, a ``max_pixels``, ``channels`` or ``value_range`` that makes no sense, or a
            ``min_edge`` that is not positive or has another backend; on an image that needs a ``value_range``.
    """

    BACKENDS = ('auto', 'pillow', 'cv2', 'turbojpeg')

    def __init__(
        self,
        crop_size: int | tuple[int, int] | None = None,
        backend: str = 'auto',
        backend_args: dict | None = None,
        min_edge: int | None = None,
        max_pixels: int = 100_000_000,
        channels: int = 3,
        value_range: tuple[float, float] | int | None = None,
    ) -> None:
        if value_range is not None and backend not in ('auto', 'pillow'):
            raise ValueError(f"value_range needs backend 'auto' or 'pillow', but it is {backend!r}")
        if backend not in self.BACKENDS:
            raise ValueError(f'backend must be one of {", ".join(self.BACKENDS)}, but is {backend!r}')
        if min_edge is not None:
            integer(min_edge, 'min_edge', least=1)
        if min_edge is not None and backend != 'auto':
            raise ValueError(f"min_edge needs backend 'auto', but it is {backend!r}")
        integer(max_pixels, 'max_pixels', 1, PILLOW_LIMIT)
        if channels not in (1, 3, 4):
            raise ValueError(f'channels must be 1, 3 or 4, but is {channels!r}')
        self.decoding = Decoding(backend, max_pixels, min_edge, channels, _range(value_range), self._notice_range)
        self.crop_size = None if crop_size is None else to_pair(crop_size, 'crop_size')
        self.backend_args = backend_args
        self._warned = self._warned_of_range = False

    def _notice_range(self, smallest: float, largest: float, given: tuple[float, float]) -> None:
        if not self._warned_of_range and largest - smallest < (given[1] - given[0]) / 8:
            self._warned_of_range = True
            print_log(
                (
                    f'most values of an image lie outside of {given[0]:g} to {given[1]:g}'
                    if smallest == largest
                    else f'an image has values of {smallest:g} to {largest:g} only, of {given[0]:g} to {given[1]:g}'
                )
                + ', which become 0 and 255: few gray levels are left; set value_range in LoadRGB (said once)',
                logger='current',
                level=30,
            )

    def _read(self, path: str) -> bytes:
        if self.backend_args is None and '://' not in path:  # mmengine's client takes as long as the reading
            with open(path, 'rb') as file:
                return file.read()
        return mmengine.fileio.get(path, backend_args=self.backend_args)

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape``."""
        path = results['img_path']
        try:
            if 'img' in results:  # of a pack
                if self.decoding.value_range is not None:
                    raise ValueRangeError('the pack holds 8 bits already: value_range has no effect on it')
                img = results['img']
            else:
                data = results['img_bytes'] if 'img_bytes' in results else self._read(path)
                img = decode(data, self.decoding)
        except ValueRangeError as error:
            raise ValueError(f'{path}: {error}') from error
        except Exception as error:  # noqa: BLE001  decoders raise whatever they like on a broken file
            reason = re.sub(r' ?<[^<>]* at 0x[0-9a-f]+>', '', str(error))  # Pillow names the buffer it was given
            raise UnreadableImageError(path, reason or type(error).__name__) from error
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


def _range(value_range: Sequence[float] | int | None) -> tuple[float, float] | None:
    """Two values, of bits the smallest and the largest number that they hold."""
    if value_range is None:
        return None
    if isinstance(value_range, int):
        return 0.0, 2.0 ** integer(value_range, 'value_range', 1, 32) - 1
    good = isinstance(value_range, Sequence) and not isinstance(value_range, str) and len(value_range) == 2
    if not good or number(value_range[0], 'value_range') >= number(value_range[1], 'value_range'):
        raise ValueError(
            f'value_range must be (low, high) with low < high, or a number of bits, but is {value_range!r}'
        )
    return float(value_range[0]), float(value_range[1])


@TRANSFORMS.register_module()
class RandomResizedCrop(MMPretrainRandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``, the same crops, resized several times faster.

    Args:
        scale: Height and width of the result, or one number for both.
        backend: ``'torch'``: bicubic with antialiasing, less than 0.02 of 255 from Pillow on average. ``'pillow'`` and
            ``'cv2'``: as mmpretrain's (OpenCV does not antialias).
        interpolation: Of the other backends; ``'torch'`` has ``'bicubic'`` and ``'bilinear'``.
        retry: Draw area and aspect again where the crop does not fit, up to ``max_attempts`` times, as torchvision
            does. False: draw once and cut the crop to the image, as MAE's linear probe (``mae_util/crop.py`` of the
            authors): larger crops of images that are not square.
        **kwargs: As for mmpretrain's: ``crop_ratio_range``, ``aspect_ratio_range``, ``max_attempts``.

    Raises:
        ValueError: On an unknown backend or interpolation, or a range that is none.
    """

    def __init__(
        self,
        scale: int | tuple[int, int],
        backend: str = 'torch',
        interpolation: str = 'bicubic',
        retry: bool = True,
        **kwargs: Any,
    ) -> None:
        self.retry = check_bool(retry, 'retry')
        if backend not in ('torch', 'pillow', 'cv2'):
            raise ValueError(f"backend must be 'torch', 'pillow' or 'cv2', but is {backend!r}")
        if backend == 'torch' and interpolation not in ('bicubic', 'bilinear'):
            raise ValueError(f"interpolation must be 'bicubic' or 'bilinear' with torch, but is {interpolation!r}")
        size = to_pair(scale, 'scale')
        for name in ('crop_ratio_range', 'aspect_ratio_range'):
            values = kwargs.get(name, (1.0, 1.0))
            if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2:
                raise ValueError(f'{name} must be two numbers, but is {values!r}')
            if number(values[0], name, above=0) > number(values[1], name, above=0):
                raise ValueError(f'{name} must be (least, most), but is {values!r}')
        integer(kwargs.get('max_attempts', 10), 'max_attempts', 1, 1000)
        super().__init__(scale=size, backend=backend, interpolation=interpolation, **kwargs)

    def rand_crop_params(self, img: np.ndarray) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop."""
        if self.retry:
            return super().rand_crop_params(img)
        rows, columns = img.shape[:2]
        area = rows * columns * np.random.uniform(*self.crop_ratio_range)
        aspect = np.exp(np.random.uniform(*np.log(self.aspect_ratio_range)))
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
    """Resize as Pillow does, antialiased, in a fraction of the time.

    uint8 (H, W, C) -> uint8 (height, width, C), without C for images without; other types give float32.
    """
    if img.ndim == 2:
        return resize(img[:, :, None], size, interpolation)[:, :, 0]
    if img.dtype != np.uint8:
        img = img.astype(np.float32)
    # torch has no tensors that cannot be written to, as the pixels of a pack.
    img = img if img.flags.writeable else img.copy()
    # The new axis before the permutation: then torch takes it for an image whose channels are last, and makes one;
    # otherwise it moves every pixel twice.
    image = torch.from_numpy(img)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


@TRANSFORMS.register_module()
class RandomErasing(MMPretrainRandomErasing):
    """mmpretrain's ``RandomErasing``, filled as the authors do (timm's ``pixel`` mode after normalization).

    Noise of N(mean, std) on the scale 0..255, and so of N(0, 1) once the image is normalized, is not cut off: the image
    becomes float32. (mmpretrain's own fills uint8, in which a third of such noise lies outside 0..255.)

    Args:
        mean: Mean of each channel of the data_preprocessor.
        std: Standard deviation of each channel.
        **kwargs: As for mmpretrain's: ``erase_prob``, ``min_area_ratio``, ``max_area_ratio``, ``aspect_range``.
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
        results['img'] = results['img'].astype(np.float32)  # all images of a batch, erased or not, in one type
        return super().transform(results)

    def _fill_pixels(self, img: np.ndarray, top: int, left: int, h: int, w: int) -> np.ndarray:
        img[top : top + h, left : left + w] = np.random.normal(self.fill_color, self.fill_std, (h, w, img.shape[2]))
        return img


@TRANSFORMS.register_module()
class RandomFlip(BaseTransform):
    """Draws whether an image is to be mirrored (``flip``); :class:`BootMAEDataPreprocessor` does it, on the device.

    Args:
        prob: Probability, in [0, 1].
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = number(prob, 'prob', least=0, most=1)

    def transform(self, results: dict) -> dict:
        """Add ``flip``."""
        results['flip'] = np.random.random() < self.prob
        return results


@TRANSFORMS.register_module()
class RandomShift(BaseTransform):
    """Moves ``img`` by a random number of pixels along both axes; the edge is repeated.

    (mmpretrain's ``RandomCrop`` with ``padding`` fills with a constant, whatever its ``padding_mode``.)

    Args:
        most: Largest shift, in pixels.
    """

    def __init__(self, most: int = 1) -> None:
        self.most = integer(most, 'most', least=0)

    def transform(self, results: dict) -> dict:
        """Shift the image."""
        img, most = results['img'], self.most
        row, column = np.random.randint(0, 2 * most + 1, size=2)
        padded = np.pad(img, ((most, most), (most, most), (0, 0)), mode='edge')
        results['img'] = padded[row : row + img.shape[0], column : column + img.shape[1]]
        return results


@TRANSFORMS.register_module()
class MapLabels(BaseTransform):
    """Replaces ids of a segmentation map; to stand after ``LoadAnnotations``.

    Changes ``gt_seg_map``, (H, W).

    Args:
        mapping: New id of each old one, such as ``{255: 1}`` for a foreground that is written as 255. Other ids stay.

    Raises:
        ValueError: If an id is no int in 0..255.
    """

    def __init__(self, mapping: dict[int, int]) -> None:
        self.table = np.arange(256, dtype=np.uint8)
        for old, new in mapping.items():
            self.table[integer(int(old), 'mapping', 0, 255)] = integer(new, 'mapping', 0, 255)

    def transform(self, results: dict) -> dict:
        """Replace the ids."""
        results['gt_seg_map'] = self.table[results['gt_seg_map']]
        return results


@TRANSFORMS.register_module()
class Repeat(BaseTransform):
    """Makes several samples of one decoded image: the steps that follow, so many times.

    Where decoding limits training, so many times less of it is done. Another algorithm: a batch of the loader is
    ``times`` as many images for the model (set ``batch_size`` lower), which share photographs, and an epoch visits
    every photograph ``times`` times. Off in all configs.

    Args:
        times: Samples of an image, at least 1.
        transforms: The rest of the pipeline, from the crop to :class:`PackImage`.

    Raises:
        ValueError: If ``times`` is less than 1.
    """

    def __init__(self, times: int, transforms: list[dict]) -> None:
        self.times = integer(times, 'times', least=1)
        self.pipeline = Compose(transforms)

    def transform(self, results: dict) -> list[dict]:
        """The samples."""
        return [self.pipeline(dict(results)) for _ in range(self.times)]


@TRANSFORMS.register_module()
class PackImage(BaseTransform):
    """Packs a sample for :func:`collate`: the image as a tensor (C, H, W), not moved in memory.

    uint8 stays uint8, other types become float32: torch can do little with uint16.

    ``flip`` of :class:`RandomFlip` goes with it.

    Args:
        keys: Other keys to pass on.
    """

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        self.keys = tuple(keys)

    def transform(self, results: dict) -> dict:
        """Return the packed sample."""
        img = results['img']
        img = img[:, :, None] if img.ndim == 2 else img
        img = img if img.dtype == np.uint8 else img.astype(np.float32)
        packed = dict(inputs=torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1))
        if 'flip' in results and 'flip_direction' not in results:  # mmcv's flip, which is done already, has both
            packed['flip'] = results['flip']
        packed.update({key: results[key] for key in self.keys})
        return packed


@FUNCTIONS.register_module()
def collate(samples: list) -> dict:
    """Stack samples; draw their masks.

    Args:
        samples: Of :class:`PackImage`, with the keys of :class:`MaskSampling` where the dataset has ``masking``; or
            lists of them, of :class:`Repeat`.

    Returns:
        ``inputs`` (B, C, H, W) uint8, the channels last in memory; with masks ``ids_keep`` (B * K, V) and ``ids_mask``
        (B * K, M), int64, the K masks of an image (``masking.per_image``, usually one) in succession; with
        :class:`RandomFlip` ``flip`` (B,) bool.

    Raises:
        ValueError: If the images differ in size.
    """
    samples = [part for sample in samples for part in (sample if isinstance(sample, list) else [sample])]
    shapes = {tuple(sample['inputs'].shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(
            f'images of one batch have different shapes {sorted(shapes)}; is there a crop in the pipeline?'
        )
    # torch's collate writes into memory shared with the main process right away, if this is a worker.
    images = default_collate([sample['inputs'].permute(1, 2, 0) for sample in samples])
    batch: dict = dict(inputs=images.permute(0, 3, 1, 2))
    if 'masking' in samples[0]:
        ids = samples[0]['masking'].batch([sample['mask_seed'] for sample in samples])
        batch['ids_keep'], batch['ids_mask'] = map(torch.from_numpy, ids)
    if 'flip' in samples[0]:
        batch['flip'] = torch.tensor([bool(sample['flip']) for sample in samples])
    for key in samples[0]:
        if key not in ('inputs', 'masking', 'mask_seed', 'flip'):
            batch[key] = [sample[key] for sample in samples]
    return batch
