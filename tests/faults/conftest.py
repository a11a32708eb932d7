"""A summary table: tries and outcomes of each fault."""

from collections import Counter

import pytest

from tests.conftest import run_config, write_images
from tests.faults.runs import STEPS, run


def pytest_collection_modifyitems(items):
    """Start with the soak test, so that the other tests run in parallel to it."""
    items.sort(key=lambda item: 'test_soak' not in item.nodeid)


def fault_of(node):
    """Name of the fault that a test injects; numbered tries have the same name."""
    name = node.rsplit('::test_', 1)[-1]
    fault = name.split('[')[0].replace('_', ' ')
    if '[' in name and not name.split('[')[1].rstrip(']').isdigit():
        fault += f' ({name.split("[")[1].rstrip("]")})'
    return fault


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    # The worst outcome of each test; an error in its setup, or a crash of its process, counts as lost.
    outcomes: dict[str, str] = {}
    measured = {}
    for outcome in ('passed', 'skipped', 'failed', 'error'):
        for report in terminalreporter.stats.get(outcome, []):
            if 'tests/faults/' in getattr(report, 'nodeid', ''):
                outcomes[report.nodeid] = outcome
                measured.update(report.user_properties)
    tried = {outcome: Counter() for outcome in ('passed', 'skipped', 'failed', 'error')}
    for node, outcome in outcomes.items():
        tried[outcome][fault_of(node)] += 1
    if measured:
        terminalreporter.write_line('')
    for name, value in measured.items():
        terminalreporter.write_line(f'{name:40} {value}')
    if outcomes:
        terminalreporter.write_line(f'\n{"fault":60} tries  survived  lost  skipped')
        for fault in dict.fromkeys(map(fault_of, outcomes)):
            passed, skipped, failed, error = (tried[outcome][fault] for outcome in tried)
            lost = failed + error
            terminalreporter.write_line(f'{fault:60} {passed + lost:5}  {passed:8}  {lost:4}  {skipped:7}')


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
    """Config and last checkpoint of an uninterrupted run, for one or two processes; each runs once."""
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
