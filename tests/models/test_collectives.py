"""Clusters and contrast look at the images of all processes: two with half of a batch equal one with all of it."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from bootmae_mm.models.clustering import sinkhorn
from bootmae_mm.models.contrast import info_nce
from tests.tools.test_tools import free_port


def inputs():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 6, 5, generator=generator)  # (positions, images, clusters)
    prediction, target = torch.randn(2, 6, 4, generator=generator)  # (images, dims) each
    return logits, prediction, target


def work(rank, port, folder):
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    logits, prediction, target = inputs()
    half = slice(3 * rank, 3 * rank + 3)
    assignments = sinkhorn(logits[:, half])
    errors, accuracy = info_nce(prediction[half], target[half], 0.1)
    torch.save((assignments, errors, accuracy), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    # Not forked: a thread of this process may hold a lock, for which the new process would wait forever.
    torch.multiprocessing.start_processes(work, (free_port(), str(tmp_path)), nprocs=2, start_method='spawn')
    logits, prediction, target = inputs()
    halves = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    torch.testing.assert_close(torch.cat([half[0] for half in halves], dim=1), sinkhorn(logits))
    errors, accuracy = info_nce(prediction, target, 0.1)
    torch.testing.assert_close(torch.cat([half[1] for half in halves]), errors)
    torch.testing.assert_close((halves[0][2] + halves[1][2]) / 2, accuracy)
    assert not torch.allclose(sinkhorn(logits[:, :3]), sinkhorn(logits)[:, :3], atol=1e-3)  # halves alone would differ
