"""The table of a study, from results written by hand."""

import json

import pytest
import yaml

from bootmae_mm.studies import collect, read_study
from bootmae_mm.studies.results import deviation, difference
from bootmae_mm.studies.running import write_results
from bootmae_mm.validation import ConfigError, MissingFileError
from bootmae_mm.visualization.study import _curve, draw_study

# Run -> seed -> seconds, kNN. By hand: differences to `a` are +3 and +1 for b, whose third seed has no partner.
FOUND = dict(a={0: (60, 40.0), 1: (80, 44.0)}, b={0: (30, 43.0), 1: (30, 45.0), 2: (30, 99.0)})


@pytest.fixture
def study(tmp_path):
    (tmp_path / 'full.py').write_text('')
    runs = {name: dict(seeds=list(seeds)) for name, seeds in FOUND.items()}
    values = dict(config='full.py', data='/images', runs={**runs, 'c': None}, probes=dict(knn=None))
    (tmp_path / 'study.yaml').write_text(yaml.safe_dump(values))
    for name, seeds in FOUND.items():
        for seed, (seconds, accuracy) in seeds.items():
            curve = [dict(step=5, seconds=seconds / 2, knn=accuracy / 2), dict(step=10, seconds=seconds, knn=accuracy)]
            results = dict(
                train=dict(epochs=8, steps=10, seconds=seconds, curve=curve), knn=dict(metrics=dict(kNN=accuracy))
            )
            for job, result in results.items():
                folder = tmp_path / f'out/{name}/seed_{seed}/{job}'
                folder.mkdir(parents=True)
                (folder / 'done.json').write_text(json.dumps(result))
    return read_study(tmp_path / 'study.yaml', tmp_path / 'out')


def test_means_deviations_and_paired_differences(study):
    lines = collect(study).markdown().splitlines()
    assert lines[0] == '| run | seeds | epochs | time | kNN |'
    assert lines[2] == '| a | 0, 1 | 8 | 1.2 min | 42.0 ± 2.8 |'
    assert lines[3] == '| b | 0, 1, 2 | 8 | 30.0 s | 62.3 ± 31.8 (+2.0 ± 1.4) |'
    assert len(lines) == 4  # c has not begun


def test_results_of_another_machine_are_added(study, tmp_path):
    def run(name: str, values: dict[str, float]) -> dict:
        trained = {seed: dict(epochs=8, steps=10, seconds=60, curve=[]) for seed in values}
        return {name: dict(pretraining=trained, metrics={'kNN': values})}

    other = dict(title='study', baseline='a', runs={**run('c', {'0': 45.0}), **run('a', {'1': 0.0, '2': 97.0})})
    (tmp_path / 'other.json').write_text(json.dumps(other))
    lines = write_results(study, [tmp_path / 'other.json']).markdown().splitlines()
    assert lines[2] == '| a | 0, 1, 2 | 8 | 1.1 min | 60.3 ± 31.8 |'  # seed 1 is that of this machine, 44
    assert lines[3:] == [
        '| b | 0, 1, 2 | 8 | 30.0 s | 62.3 ± 31.8 (+2.0 ± 1.0) |',
        '| c | 0 | 8 | 1.0 min | 45.0 (+5.0) |',
    ]
    results = json.loads((tmp_path / 'out/results.json').read_text())
    assert results['runs']['a']['metrics']['kNN'] == {'0': 40.0, '1': 44.0, '2': 97.0}
    (tmp_path / 'other.json').write_text(json.dumps({**other, 'baseline': 'b'}))
    with pytest.raises(ConfigError, match='of another study'):
        collect(study).add(tmp_path / 'other.json')
    with pytest.raises(MissingFileError, match='no file'):
        collect(study).add(tmp_path / 'missing.json')


def test_a_second_probe_of_features_is_told_apart_for_all_seeds(study, tmp_path):
    values = yaml.safe_load((tmp_path / 'study.yaml').read_text())
    values['probes'] = dict(knn=None, later=None)
    (tmp_path / 'study.yaml').write_text(yaml.safe_dump(values))
    assert collect(read_study(tmp_path / 'study.yaml', tmp_path / 'out')).metrics == ['knn: kNN']


def test_differences_are_of_equal_seeds():
    assert difference({0: 5.0, 1: 9.0}, {1: 4.0, 0: 1.0}) == (4.5, pytest.approx(0.7071068))
    assert difference({0: 5.0}, {0: 1.0}) == (4.0, None)
    assert difference({0: 5.0}, {1: 1.0}) is None
    assert deviation([1.0]) is None


def test_the_picture_has_a_line_for_each_run(study, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, 'fill_between', lambda axes, *points, **options: drawn.append(points))
    assert draw_study(collect(study).as_dict(), tmp_path / 'x.png').stat().st_size > 5000
    (steps_a, steps_b), (time_a, time_b) = drawn[:2], drawn[2:]
    assert steps_a == ([5, 10], [20, 40], [22, 44])  # lowest and highest of both seeds
    assert time_a[0] == pytest.approx([35 / 60, 70 / 60]) and time_b[0] == [0.25, 0.5]
    assert steps_b[2] == [49.5, 99]


def test_curves_are_averaged_where_all_seeds_have_a_probe():
    def point(step: int, accuracy: float) -> dict:
        return dict(step=step, seconds=2.0 * step, knn=accuracy)

    curves = [[point(5, 10.0), point(10, 20.0)], [point(10, 30.0)]]
    run = dict(pretraining={str(seed): dict(curve=curve) for seed, curve in enumerate(curves)})
    assert _curve(run, 'step') == [(10, [20.0, 30.0])] and _curve(run, 'seconds') == [(20, [20.0, 30.0])]
