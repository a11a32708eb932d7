"""Probes during pretraining: images, accuracies, and that the training stays the same."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import bootmae_mm
from bootmae_mm.data.class_folders import class_folders
from bootmae_mm.evaluation import knn_accuracy, ridge_accuracy
from bootmae_mm.validation import ConfigError, MissingFileError
from bootmae_mm.visualization import write_report
from tests.engine.test_auto import tiny_options


def write_classes(folder, counts, seed=0):
    """Images of classes that differ in brightness."""
    rng = np.random.RandomState(seed)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.randint(0, 40, (32, 32, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f'{index}.png')
    return folder


def test_a_fifth_of_each_class_is_held_out(tmp_path):
    folder = write_classes(tmp_path, dict(a=10, b=5, c=2))
    train, test = class_folders(folder, 100)
    assert train.classes == ['a', 'b', 'c'] == test.classes
    assert np.bincount(train.labels).tolist() == [8, 4, 1] and np.bincount(test.labels).tolist() == [2, 1, 1]
    assert not set(train.paths) & set(test.paths)
    assert all(f'/{images.classes[label]}/' in path for images in (train, test) for path, label in zip(*images[:2]))
    assert class_folders(folder, 100) == (train, test)
    few, _ = class_folders(folder, 2)
    assert max(np.bincount(few.labels)) == 3  # 4 of both sets together


def test_a_split_of_its_own_is_used(tmp_path):
    write_classes(tmp_path / 'train', dict(a=4, b=3))
    write_classes(tmp_path / 'val', dict(a=2, b=2))
    train, test = class_folders(tmp_path, 3)
    assert np.bincount(train.labels).tolist() == [3, 3] and np.bincount(test.labels).tolist() == [2, 2]
    assert all('/val/' in path for path in test.paths)
    (tmp_path / 'val/b').rename(tmp_path / 'val/c')
    with pytest.raises(ConfigError, match='train and val have different classes'):
        class_folders(tmp_path, 3)


def test_a_test_set_without_classes_is_no_split(tmp_path):
    """As ImageNet's."""
    for name in ('train', 'val'):
        write_classes(tmp_path / name, dict(a=3, b=3))
    write_classes(tmp_path, dict(test=4))
    assert all('/val/' in path for path in class_folders(tmp_path, 3)[1].paths)


def test_unfit_folders_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match='no folder .*nothing of labeled images'):
        class_folders(tmp_path / 'nothing', 3)
    folder = write_classes(tmp_path, dict(a=2))
    with pytest.raises(ConfigError, match=r"at least two classes, but has \['a'\]"):
        class_folders(folder, 3)
    (folder / 'b').mkdir()
    with pytest.raises(ConfigError, match='no image in .*b'):
        class_folders(folder, 3)


def test_ridge_is_scikit_learns():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    generator = torch.Generator().manual_seed(0)
    labels, others = torch.arange(60) % 3, torch.arange(45) % 3
    centers = torch.randn(3, 5, generator=generator)
    train, test = (centers[y] + 1.2 * torch.randn(len(y), 5, generator=generator) for y in (labels, others))
    scaler = StandardScaler().fit(train)
    model = RidgeClassifier(alpha=0.01 * 60).fit(scaler.transform(train), labels)
    expected = model.score(scaler.transform(test), others)
    assert ridge_accuracy(train, labels, test, others) == pytest.approx(expected, abs=1 / 44)
    assert 0.4 < expected < 1


def run(folder, images, probe=None, init=None):
    options = {key: value for key, value in tiny_options().items() if key[14:] not in ('curves', 'report')}
    options |= {'default_hooks.probe.times': 2, 'test_pipeline': [
        dict(type='bootmae_mm.LoadImage'), dict(type='bootmae_mm.PackImage'),
    ]}  # fmt: skip
    bootmae_mm.pretrain(images, folder, epochs=2, batch_size=2, probe=probe, init=init, options=options)
    return torch.load(folder / 'epoch_2.pth', weights_only=False)['state_dict']


def test_a_run_logs_its_accuracies_and_trains_the_same(tmp_path, image_folder):
    probe = write_classes(tmp_path / 'labeled', dict(dark=10, gray=10, light=10))
    (probe / 'dark/broken.png').write_bytes(b'no image')
    probed, plain = run(tmp_path / 'probed', image_folder, probe), run(tmp_path / 'plain', image_folder)
    assert all(torch.equal(value, plain[name]) for name, value in probed.items())
    found = probes_in(tmp_path / 'probed')
    assert [entry['step'] for entry in found] == [0, 4, 8]  # start, half and end of the run
    encoder = bootmae_mm.load_encoder(tmp_path / 'probed')
    train, test = class_folders(probe, 200)
    with torch.no_grad():
        good = [[i for i, path in enumerate(part.paths) if 'broken' not in path] for part in (train, test)]
        features = [
            encoder(torch.stack([pixels(part.paths[i]) for i in chosen])).mean
            for part, chosen in zip((train, test), good, strict=True)
        ]
    labels = [torch.tensor(part.labels)[chosen] for part, chosen in zip((train, test), good, strict=True)]
    arguments = features[0], labels[0], features[1], labels[1]
    assert found[-1]['probe_knn'] == pytest.approx(100 * knn_accuracy(*arguments, 20), abs=1e-6)
    assert found[-1]['probe_linear'] == pytest.approx(100 * ridge_accuracy(*arguments), abs=1e-6)
    assert found[-1]['probe_linear'] > 60
    (log,) = (tmp_path / 'probed').rglob('*.log')
    assert '25 labeled and 6 held-out images of 3 classes' in log.read_text()
    assert 'unreadable image left out' in log.read_text() and '(chance 33.3 %)' in log.read_text()

    check_report(tmp_path / 'probed', found)


def probes_in(folder):
    (scalars,) = folder.rglob('scalars.json')
    entries = [json.loads(line) for line in scalars.read_text().splitlines()]
    return [entry for entry in entries if 'probe_knn' in entry]


def test_the_first_probe_is_of_the_weights_that_a_run_starts_from(tmp_path, image_folder):
    probe = write_classes(tmp_path / 'labeled', dict(dark=10, gray=10, light=10))
    run(tmp_path / 'first', image_folder, probe)
    run(tmp_path / 'second', image_folder, probe, init=str(tmp_path / 'first/epoch_2.pth'))
    (start, *_), (*_, end) = probes_in(tmp_path / 'second'), probes_in(tmp_path / 'first')
    for name in ('probe_knn', 'probe_linear'):
        assert start[name] == pytest.approx(end[name], abs=1e-6)


def check_report(folder, probes):
    """The report needs no other file, and says what the log says."""
    text = (folder / 'report.html').read_text()
    sources = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', text)
    titles = ['Curves', 'Reconstructions at the end', 'Reconstructions early in the run']
    titles += ['Features at the end', 'Features early in the run']
    assert [name for name, _ in sources] == titles
    pictures = [sorted(folder.rglob(f'{name}_*.png'), reverse=True) for name in ('reconstruction', 'features')]
    files = [folder / 'curves.png', *pictures[0], *pictures[1]]
    assert [base64.b64decode(data) for _, data in sources] == [file.read_bytes() for file in files]
    assert not re.search(r'(src|href)="(?!data:)', text)
    for entry in probes:
        assert f'<td>{entry["step"]}</td><td>{entry["probe_knn"]:.1f}</td><td>{entry["probe_linear"]:.1f}</td>' in text
    assert '<td>2 of 2 epochs, 8 of 8 iterations</td>' in text and '<th>Images</th><td>8</td>' in text
    assert 'bootmae embed' in text and 'ema=dict(' in text and 'PyTorch' in text
    HTMLParser().feed(text)


def test_a_report_escapes_what_it_shows(tmp_path):
    path = write_report(tmp_path / 'report.html', '<b>', 'a & b', {'<i>': '"x"'}, [], [], ['a < b'], {'c': '<script>'})
    text = path.read_text()
    assert '&lt;b&gt;' in text and 'a &amp; b' in text and '&lt;i&gt;' in text and '<script>' not in text


def pixels(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
