"""An hour of training with constant memory, open files and throughput."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_config, write_images
from tests.faults.runs import children, start, steps_logged

WARM_UP = 12.0  # minutes that are not measured, while caches fill


def megabytes(pid):
    """Memory of a process; shared pages are divided among the processes that share them (PSS)."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('Pss:')) / 1024


def open_files(pid):
    return len(list(Path(f'/proc/{pid}/fd').iterdir()))


def processor_seconds(pid):
    """Processor time of a process, in user and kernel mode."""
    user, system = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def slope(hours, values):
    return float(np.polyfit(hours, values, 1)[0])


def ends(values):
    """Medians of the first and the last quarter."""
    return [round(float(np.median(part)), 2) for part in np.array_split(values, 4)[::3]]


@pytest.mark.fault
@pytest.mark.long
@pytest.mark.timeout(0)
def test_an_hour_of_training(tmp_path, request, record_property):
    """One sample every ten seconds; slopes are those of lines fitted to the samples after the warm-up."""
    seconds = 60 * request.config.getoption('--soak-minutes')
    warm_up = 60 * WARM_UP / seconds
    assert warm_up < 1, f'--soak-minutes must be more than {WARM_UP}'
    config = run_config(
        tmp_path / 'config.py',
        write_images(tmp_path / 'images', 256, size=(100, 130)),
        batch_size=8,
        workers=2,
        epochs=10**6,
    )
    work_dir = tmp_path / 'work'
    with open(tmp_path / 'out', 'w') as out:
        process = start(
            config,
            work_dir,
            options=[
                'default_hooks.logger.interval=50',
                'default_hooks.reconstruction.interval=1000',
                'default_hooks.checkpoint.interval=20',
                'default_hooks.checkpoint.max_keep_ckpts=3',
            ],
            stdout=out,
        )
        samples = []
        start_time = time.monotonic()
        while time.monotonic() - start_time < seconds:
            time.sleep(10)
            assert process.poll() is None, (tmp_path / 'out').read_text()[-3000:]
            workers = children(process.pid)[:2]
            samples.append(
                [
                    (time.monotonic() - start_time) / 3600,
                    megabytes(process.pid),
                    sum(megabytes(worker) for worker in workers),
                    open_files(process.pid),
                    sum(open_files(worker) for worker in workers),
                    len(workers),
                    sum(processor_seconds(pid) for pid in (process.pid, *workers)),
                    steps_logged(work_dir),
                ]
            )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 75, (tmp_path / 'out').read_text()[-3000:]
    samples = np.array(samples[int(warm_up * len(samples)) :])
    hours, main, workers, files, worker_files, count, processor, step = samples.T
    quarters = [(part[0], part[-1]) for part in np.array_split(np.arange(len(samples)), 4)[::3]]
    milliseconds, waited = (
        [round(float(1e3 * (of[last] - of[first]) / (step[last] - step[first])), 2) for first, last in quarters]
        for of in (processor, 3600 * hours)
    )
    done = int(next(work_dir.glob('interrupted_*.pth')).stem.split('_')[1])
    report = {
        'minutes': seconds / 60,
        'iterations': done,
        'memory of the process, MB': float(main.mean()),
        'its slope, MB per hour': slope(hours, main),
        'memory of the workers, MB': float(workers.mean()),
        'their slope, MB per hour': slope(hours, workers),
        'open files, first and last quarter': ends(files),
        'of the workers': ends(worker_files),
        'ms per step, first and last quarter': waited,
        'processor ms per step': milliseconds,
    }
    for name, value in report.items():
        record_property(name, value)
    assert set(count) == {2}
    # Batches in transit from the workers are open files, too; their number varies.
    assert ends(files)[1] - ends(files)[0] <= 3 and ends(worker_files)[1] - ends(worker_files)[0] <= 3, report
    # A leak of one image (39 kB) per ten iterations would be hundreds of MB per hour.
    assert slope(hours, main) < 20 and slope(hours, workers) < 20, report
    # Unlike wall-clock time, processor time hardly depends on other programs.
    assert milliseconds[1] < 1.3 * milliseconds[0], report
