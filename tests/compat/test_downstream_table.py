"""The tables of models of mmdet and mmseg in docs/openmmlab.md say what happens."""

import pytest
import torch

from bootmae_mm.compat.operators import uses_stand_in
from tests.compat import downstream_table
from tests.compat.downstream_table import CASES, Case, check, outcome, section, written, written_outcomes

QUICK = {('mmdet', 'FCOS'), ('mmdet', 'DETR'), ('mmseg', 'DPT')}  # one of each kind of input
MINUTES = (pytest.mark.slow, pytest.mark.long)
ALL = [
    pytest.param(library, case, id=f'{library} {case.name}', marks=() if (library, case.name) in QUICK else MINUTES)
    for library, cases in CASES.items()
    for case in cases
]


@pytest.mark.parametrize(('library', 'case'), ALL)
def test_a_loss_step_ends_as_the_table_says(library, case):
    if not uses_stand_in():
        pytest.skip('the tables are for mmcv without compiled operators')
    assert outcome(library, case) == written_outcomes()[library][case.name]


def test_the_tables_have_these_models_and_replacements():
    assert section(written_outcomes()) == written()
    assert all(len({case.name for case in cases}) == len(cases) for cases in CASES.values())


def test_a_reason_has_one_line(monkeypatch):
    def fail(library, case):
        raise case

    monkeypatch.setattr(downstream_table, 'run_step', fail)
    assert outcome('mmdet', ValueError('a\nb')) == 'no: ValueError: a'
    assert outcome('mmdet', KeyError()) == 'no: KeyError: '
    missing = NotImplementedError('the operator x needs y, which are not installed: z')
    assert outcome('mmdet', missing) == 'no: the operator x needs y'


@pytest.mark.parametrize(
    ('losses', 'gradient', 'message'),
    [
        (dict(loss=float('nan')), torch.ones(2), 'not finite: loss'),
        (dict(loss=1.0, other=float('inf')), torch.ones(2), 'not finite: other'),
        (dict(loss=1.0), None, 'no finite gradient'),
        (dict(loss=1.0), torch.tensor([1.0, float('nan')]), 'no finite gradient'),
        (dict(loss=1.0), torch.zeros(2), 'gradient of the backbone is zero'),
    ],
)
def test_a_step_without_finite_loss_and_gradient_fails(losses, gradient, message):
    check(dict(loss=torch.tensor(1.0)), torch.ones(2))
    with pytest.raises(AssertionError, match=message):
        check({name: torch.tensor(value) for name, value in losses.items()}, gradient)


def test_a_changed_key_must_exist():
    case = Case('FCOS', CASES['mmdet'][0].config, {'rpn_head.nothing': 1})
    with pytest.raises(AssertionError, match='has no rpn_head.nothing'):
        downstream_table.read('mmdet', case)
