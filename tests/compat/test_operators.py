"""The replacement of mmcv's compiled operators, called through mmcv's own functions."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv import ops

from bootmae_mm.compat.operators import _Finder, register_stand_in, uses_stand_in

pytestmark = pytest.mark.skipif(not uses_stand_in(), reason="mmcv's compiled operators are installed and used")


def slow_nms(boxes, scores, threshold, offset):
    """Greedy suppression, one box at a time."""
    kept = []
    for index in np.argsort(-scores, kind='stable'):
        box = boxes[index]
        for other in kept:
            left, top = np.maximum(box[:2], boxes[other][:2])
            right, bottom = np.minimum(box[2:], boxes[other][2:])
            common = max(right - left + offset, 0) * max(bottom - top + offset, 0)
            areas = [np.prod(b[2:] - b[:2] + offset) for b in (box, boxes[other])]
            if common / (sum(areas) - common) > threshold:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.8])
def test_nms(offset, threshold):
    rng = np.random.RandomState(0)
    corner = rng.rand(200, 2) * 20
    boxes = np.concatenate([corner, corner + rng.rand(200, 2) * 12], axis=1).astype(np.float32)
    scores = rng.rand(200).astype(np.float32)
    kept, indices = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset=offset)
    wanted = slow_nms(boxes, scores, threshold, offset)
    assert indices.tolist() == [int(i) for i in wanted]
    np.testing.assert_array_equal(kept.numpy(), np.concatenate([boxes[wanted], scores[wanted, None]], axis=1))
    if offset and threshold == 0.5:  # the offset matters here
        assert wanted != slow_nms(boxes, scores, threshold, 0)


def test_nms_options_of_mmcv():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.05])
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.1)[1].tolist() == [0, 2]
    assert ops.nms(boxes, scores, 0.5, max_num=1)[1].tolist() == [0]
    labels = torch.tensor([0, 1, 0, 0])  # other classes do not suppress each other
    assert ops.batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5))[1].tolist() == [0, 1, 2, 3]
    assert ops.nms(boxes[:0], scores[:0], 0.5)[1].numel() == 0


def bilinear(image, y, x):
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(image))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    return (
        (1 - dy) * (1 - dx) * image[:, y0, x0]
        + (1 - dy) * dx * image[:, y0, x1]
        + dy * (1 - dx) * image[:, y1, x0]
        + dy * dx * image[:, y1, x1]
    )


def slow_roi_align(images, rois, size, scale, ratio, aligned):
    """Mean of bilinear samples, one sample at a time."""
    out = np.zeros((len(rois), images.shape[1], *size))
    for k, (index, *box) in enumerate(rois):
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        ny = ratio or int(np.ceil(height / size[0]))
        nx = ratio or int(np.ceil(width / size[1]))
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    bilinear(
                        images[int(index)],
                        y1 + (i + (a + 0.5) / ny) * height / size[0],
                        x1 + (j + (b + 0.5) / nx) * width / size[1],
                    )
                    for a in range(ny)
                    for b in range(nx)
                ]
                out[k, :, i, j] = np.mean(samples, axis=0)
    return out


ROIS = torch.tensor(
    [[0, 1.0, 2.0, 19.0, 14.0], [1, -6.0, 3.0, 9.5, 30.0], [1, 4.2, 4.1, 4.4, 4.5]], dtype=torch.float64
)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align(aligned, ratio):
    images = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    found = ops.roi_align(images, ROIS, (3, 2), 0.5, ratio, 'avg', aligned)
    wanted = slow_roi_align(images.numpy(), ROIS.tolist(), (3, 2), 0.5, ratio, aligned)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize('aligned', [True, False])
def test_gradient_of_roi_align(aligned):
    images = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.roi_align(x, ROIS, (2, 3), 0.5, 2, 'avg', aligned), images)


def test_other_operators_raise_when_called_and_say_what_to_install():
    images = torch.randn(1, 2, 8, 8)
    with pytest.raises(NotImplementedError, match='roi_pool_forward.*pip install'):
        ops.roi_pool(images, ROIS[:1].float(), 2)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        ops.roi_align(images, ROIS[:1].float(), 2, 1.0, 0, 'max')


def test_environment_report_of_mmcv_works():
    from mmcv.utils import collect_env

    assert collect_env()['MMCV Compiler'] == 'n/a'


def test_registering_twice_adds_one_finder():
    register_stand_in()
    assert sum(isinstance(finder, _Finder) for finder in sys.meta_path) == 1
    order = [getattr(finder, '__name__', type(finder).__name__) for finder in sys.meta_path]
    assert order.index('PathFinder') < order.index('_Finder')  # a compiled module is found first


@pytest.mark.slow
def test_compiled_operators_are_used_if_installed(tmp_path):
    (tmp_path / '_ext.py').write_text('compiled = True\n')
    code = (
        f'import bootmae_mm, mmcv; mmcv.__path__.append({str(tmp_path)!r}); import mmcv._ext; print(mmcv._ext.compiled)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'True', done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU: make test-gpu')
def test_cuda_equals_cpu():
    images = torch.randn(2, 3, 8, 10, requires_grad=True)
    on_gpu = images.detach().cuda().requires_grad_()
    one = ops.roi_align(images, ROIS.float(), (3, 2), 0.5, 0, 'avg', True)
    other = ops.roi_align(on_gpu, ROIS.float().cuda(), (3, 2), 0.5, 0, 'avg', True)
    torch.testing.assert_close(one, other.cpu())
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(images.grad, on_gpu.grad.cpu())
    boxes, scores = torch.rand(50, 4).cumsum(1) * 10, torch.rand(50)
    assert ops.nms(boxes.cuda(), scores.cuda(), 0.3)[1].cpu().tolist() == ops.nms(boxes, scores, 0.3)[1].tolist()
