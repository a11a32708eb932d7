"""What a study file says, and the jobs that follow from it."""

import re

import pytest
import yaml

from bootmae_mm.studies import read_study, run_study
from bootmae_mm.studies.running import write_results
from bootmae_mm.studies.slurm import submit
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import ROOT

RUNS = dict(
    both=None,
    pixels=dict(config='pixels.py', options={'a.b': 1}, epochs=4),
    longer=dict(like='pixels', time_of='both', seeds=[1]),
    frozen=dict(checkpoints={'model.teacher.checkpoint': 'both'}, options={'c': 2}),
    scratch=dict(untrained=True, seeds=[0]),
)


@pytest.fixture
def write(tmp_path):
    for name in ('full.py', 'pixels.py', 'tune.py'):
        (tmp_path / name).write_text('')

    def study(**changes):
        values = dict(config='full.py', data='/images', seeds=[0, 1], runs=RUNS, probes=dict(features=None))
        path = tmp_path / 'parts.yaml'
        path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
        return path

    return study


def test_runs_take_over_what_they_do_not_say(write, tmp_path):
    study = read_study(write(options={'c': 1, 'd': 1}), options={'d': 3})
    assert study.title == 'parts' and str(study.out) == 'work_dirs/parts' and study.baseline == 'both'
    both, pixels, longer, frozen, _ = study.runs.values()
    assert both.config == str(tmp_path / 'full.py') and both.options == {'c': 1, 'd': 3}
    assert pixels.config == longer.config == str(tmp_path / 'pixels.py')
    assert pixels.options == longer.options == {'c': 1, 'd': 3, 'a.b': 1, 'train_cfg.max_epochs': 4}
    assert frozen.options['c'] == 2  # its own is stronger than that of all runs
    assert longer.seeds == (1,) and both.seeds == (0, 1)


def test_jobs_start_after_what_they_need_and_seed_by_seed(write):
    study = read_study(write())
    keys = [job.key for job in study.jobs()]
    trains = [key.removesuffix('/train') for key in keys if key.endswith('train')]
    # `longer` has its seed 1 alone, and needs the times of both and pixels with that seed.
    assert trains == [
        *('both/seed_0', 'pixels/seed_0', 'both/seed_1', 'pixels/seed_1', 'longer/seed_1'),
        *('frozen/seed_0', 'scratch/seed_0', 'frozen/seed_1'),
    ]
    for job in study.jobs():
        for need in study.needs(job):
            assert keys.index(need.key) < keys.index(job.key)
    assert keys[:2] == ['both/seed_0/train', 'both/seed_0/features']


def test_some_runs_bring_what_they_need_without_its_probes(write):
    keys = [job.key for job in read_study(write()).jobs(['longer'])]
    assert keys == ['both/seed_1/train', 'pixels/seed_1/train', 'longer/seed_1/train', 'longer/seed_1/features']


def test_a_probe_may_be_for_some_runs_and_seeds(write):
    probes = dict(tune=dict(config='tune.py', metric='mIoU', runs=['both', 'scratch'], seeds=[0]))
    keys = [job.key for job in read_study(write(probes=probes)).jobs()]
    assert [key for key in keys if key.endswith('tune')] == ['both/seed_0/tune', 'scratch/seed_0/tune']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(runs={}), 'has no runs'),
        (dict(run={}), "study has unknown option(s) ['run']; valid options: title, config"),
        (dict(runs=dict(a=dict(epochs=0))), 'study.runs.a.epochs must be greater than or equal to 1, but is 0'),
        (dict(runs=dict(a=dict(like='b'))), "runs.a.like: no run 'b'; runs: a"),
        (dict(runs=dict(a=dict(like='b'), b=dict(like='a'))), 'runs.a.like: a -> b -> a is a circle'),
        (dict(runs=dict(a=dict(time_of='a'))), 'runs.a.time_of needs like: the run whose speed is known'),
        (dict(runs=dict(a=None, b=dict(like='a', time_of='a', epochs=2))), 'runs.b: time_of and epochs exclude'),
        (dict(runs=dict(a=dict(like='a'))), 'runs.a.like: a -> a is a circle'),
        (
            dict(runs=dict(a=dict(checkpoints={'x': 'b'}), b=dict(checkpoints={'x': 'a'})), seeds=[0]),
            'the runs wait for each other: a/seed_0/train -> b/seed_0/train -> a/seed_0/train',
        ),
        (dict(baseline='none'), "baseline: no run 'none'; runs: both, pixels"),
        (dict(runs={'a b': None, 'a_b': None}), "runs 'a b' and 'a_b' would have the same folder a_b"),
        (dict(runs=dict(a=dict(seeds=[1, 1]))), 'runs.a.seeds must be different numbers'),
        (dict(runs=dict(a=dict(untrained=True, weights='w.pth'))), 'runs.a: weights and untrained exclude each other'),
        (dict(probes=dict(x=dict(config='tune.py'))), 'probes.x needs config and metric, or neither'),
        (
            dict(probes=dict(x=dict(config='tune.py', metric={}))),
            'probes.x.metric must be a key of the log, such as mIoU, or keys by the names to show, but is {}',
        ),
        (dict(probes=dict(x=dict(config='tune.py', metric=['mIoU']))), "by the names to show, but is ['mIoU']"),
        (dict(probes=dict(x=dict(config='tune.py', metric={'a': 5}))), "by the names to show, but is {'a': 5}"),
        (
            dict(probes={name: dict(config='tune.py', metric={'AP': name}) for name in 'xy'}),
            "probes 'x' and 'y' have a metric of the same name 'AP'",
        ),
        (dict(probes={'a b': None, 'a_b': None}), "probes 'a b' and 'a_b' would have the same folder"),
        (
            dict(runs=dict(a=dict(seeds=[0, 1]), b=dict(seeds=[2], checkpoints={'x': 'a'}))),
            'runs.b: a has no seeds [2]',
        ),
        (dict(probes=dict(train=None)), "a probe cannot have the name 'train'"),
        (dict(probes=dict(x=dict(runs=['y']))), "probes.x.runs: no run 'y'; runs: both"),
        (dict(config=None), 'runs.both.config is missing, and there is none for all runs'),
    ],
)
def test_mistakes(write, changes, message):
    with pytest.raises(ConfigError) as error:
        read_study(write(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(), 'probes.features.data is missing, and the study has no data'),
        (dict(probes={}, curve=dict(times=2)), 'curve.data is missing, and the study has no data'),
    ],
)
def test_images_are_needed_to_run_but_not_for_the_table(write, tmp_path, changes, message):
    study = read_study(write(data=None, **changes), tmp_path / 'out')
    for start in (lambda: run_study(study, []), lambda: submit(study, [], '')):
        with pytest.raises(ConfigError, match=message):
            start()
    assert not (tmp_path / 'out').exists()
    assert write_results(study).rows == []


def test_missing_files(write, tmp_path):
    with pytest.raises(MissingFileError, match='no study'):
        read_study(tmp_path / 'other.yaml')
    with pytest.raises(MissingFileError, match='no config .*/other.py'):
        read_study(write(config='other.py'))
    (tmp_path / 'bad.yaml').write_text('runs: [')
    with pytest.raises(ConfigError, match='bad.yaml is not YAML'):
        read_study(tmp_path / 'bad.yaml')


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/studies/**/*.yaml')), ids=lambda path: path.stem)
def test_the_studies_of_the_project_are_right(path):
    assert read_study(path, data='/images').jobs()


def test_the_examples_of_the_page_are_studies(tmp_path):
    blocks = re.findall(r'```yaml\n(.*?)```', (ROOT / 'docs/studies.md').read_text(), re.DOTALL)
    assert len(blocks) == 3
    for name in ('my_config.py', 'pixel.py', 'finetune.py', 'my_mask_rcnn.py'):
        (tmp_path / name).write_text('')
    whole = yaml.safe_load(blocks[0])
    for changes in ({}, yaml.safe_load(blocks[1]) | dict(baseline=None), yaml.safe_load(blocks[2])):
        (tmp_path / 'study.yaml').write_text(yaml.safe_dump({**whole, **changes}, sort_keys=False))
        study = read_study(tmp_path / 'study.yaml')
        assert len(study.jobs()) >= 12
