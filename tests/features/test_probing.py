"""Probes of an encoder on labeled images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import bootmae_mm
from bootmae_mm.evaluation.probes import knn_accuracy, linear_accuracy
from bootmae_mm.features.probing import with_random_weights
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.features.runs import write_checkpoint


def write_classes(folder, shuffle=False):
    """Dark and bright noise in two folders, or both in both."""
    rng = np.random.RandomState(0)
    for label, name in enumerate(('dark', 'light')):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            level = 100 * rng.randint(2) if shuffle else 100 * label
            img = (level + rng.randint(0, 100, (40, 50, 3))).astype(np.uint8)
            Image.fromarray(img).save(folder / name / f'{index}.png')
    return folder


def test_what_is_easy_and_what_is_chance(tmp_path):
    path = write_checkpoint(tmp_path / 'run')[0]
    easy = bootmae_mm.probe(path, write_classes(tmp_path / 'easy'), k=5, labels_per_class=(1, 10, 16))
    assert list(easy) == ['features', 'random weights', 'pixels']
    assert list(easy['features']) == ['kNN', '1 label', '10 labels', 'linear']  # there are 16 of each class, no more
    assert all(values['linear'] == 100 for values in easy.values())
    hard = bootmae_mm.probe(path, write_classes(tmp_path / 'hard', shuffle=True), k=5)
    assert all(0 <= values['kNN'] <= 87.5 for values in hard.values())


def test_the_numbers_are_those_of_the_features(tmp_path):
    path, data = write_checkpoint(tmp_path / 'run')[0], tmp_path / 'data'
    for split in ('train', 'test'):
        write_classes(data / split, shuffle=True)
    found = bootmae_mm.probe(path, data, k=3, labels_per_class=[2], baselines=False)
    assert list(found) == ['features']
    sets = []
    for split in ('train', 'test'):
        result = bootmae_mm.embed(path, data / split)
        labels = torch.tensor([int('light' in name) for name in result.paths])
        sets += [torch.from_numpy(result.features), labels]
    assert found['features']['kNN'] == pytest.approx(100 * knn_accuracy(*sets, k=3), abs=0.01)
    assert found['features']['linear'] == pytest.approx(100 * linear_accuracy(*sets), abs=0.01)


def test_random_weights_are_new_ones_of_the_same_model(tmp_path):
    encoder = bootmae_mm.load_encoder(write_checkpoint(tmp_path / 'run')[0])
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fresh = with_random_weights(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])
    name = 'backbone.layers.0.attn.qkv.weight'
    assert (fresh.state_dict()[name] - before[name]).abs().min() > 0
    again = with_random_weights(encoder).state_dict()[name]
    assert torch.equal(fresh.state_dict()[name], again)


def test_from_the_command_line(tmp_path, run_tool):
    path, data = write_checkpoint(tmp_path / 'run')[0], write_classes(tmp_path / 'data')
    (data / 'dark/broken.png').write_bytes(b'nothing')
    status, out, message = run_tool('probe.py', path, data, '--labels', 1, '--out', tmp_path / 'probe.json')
    assert status == 0, message
    lines = out.strip().splitlines()[-4:]
    assert lines[0].split() == ['accuracy', 'in', '%', 'kNN', '1', 'label', 'linear']
    rows = json.loads((tmp_path / 'probe.json').read_text())
    assert [float(part) for part in lines[1].split()[1:]] == pytest.approx(list(rows['features'].values()), abs=0.05)
    assert 'no folder' in run_tool('probe.py', path, tmp_path / 'nothing')[2]
    with pytest.raises(MissingFileError):
        bootmae_mm.probe(tmp_path / 'nothing.pth', data)
    with pytest.raises(ConfigError, match='k must be greater than or equal to 1'):
        bootmae_mm.probe(path, data, k=0)


def test_fine_tuning_beside_the_frozen_features(tmp_path):
    path, data = write_checkpoint(tmp_path / 'run')[0], write_classes(tmp_path / 'data')
    options = dict(k=5, labels_per_class=(), finetune=(1, 4), recipe=dict(steps=12), draws=2)
    found = bootmae_mm.probe(path, data, **options)
    assert list(found['features']) == ['kNN', 'linear', 'fine-tuned, 1 label', 'fine-tuned, 4 labels']
    assert set(found['random weights']) == set(found['features'])
    assert set(found['pixels']) == {'kNN', 'linear'}
    assert found['features']['fine-tuned, 4 labels'] >= 75
    with pytest.raises(ConfigError, match='17 labels of each class, but one has 16 images'):
        bootmae_mm.probe(tmp_path / 'nothing.pth', data, finetune=[17])  # before anything is read
