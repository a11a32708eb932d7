"""A table at the end: each fault, how often it was tried, and what became of the runs."""

from collections import Counter

import pytest

from tests.conftest import run_config, write_images
from tests.faults.runs import STEPS, run


def pytest_collection_modifyitems(items):
    """The hour's training first: the other tests run beside it."""
    items.sort(key=lambda item: 'test_soak' not in item.nodeid)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    tried, survived = Counter(), Counter()
    measured = {}
    for outcome in ('passed', 'failed', 'error'):
        for report in terminalreporter.stats.get(outcome, []):
            if 'tests/faults/' in report.nodeid and getattr(report, 'when', '') == 'call':
                name = report.nodeid.rsplit('::', 1)[-1].removeprefix('test_')
                fault = name.split('[')[0].replace('_', ' ')
                if '[' in name and not name.split('[')[1].rstrip(']').isdigit():
                    fault += f' ({name.split("[")[1].rstrip("]")})'
                tried[fault] += 1
                survived[fault] += outcome == 'passed'
                measured.update(report.user_properties)
    if measured:
        terminalreporter.write_line('')
    for name, value in measured.items():
        terminalreporter.write_line(f'{name:40} {value}')
    if tried:
        terminalreporter.write_line(f'\n{"fault":60} tries  survived  lost')
        for fault, count in tried.items():
            terminalreporter.write_line(f'{fault:60} {count:5}  {survived[fault]:8}  {count - survived[fault]:4}')


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
    """The end of a run that nothing happened to, for one and two processes: made once."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    images = write_images(folder / 'images', 8)
    made = {}

    def end(processes):
        if processes not in made:
            config = run_config(
                folder / f'config{processes}.py', images, batch_size=2, workers=2, accumulate=2, epochs=6 * processes
            )
            status, said = run(config, folder / f'work{processes}', processes=processes)
            assert status == 0, said[-3000:]
            made[processes] = config, folder / f'work{processes}/iter_{STEPS}.pth'
        return made[processes]

    return end
