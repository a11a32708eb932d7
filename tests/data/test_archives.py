"""Images in archives: any order, exact resume, from folders, patterns and the web."""

import functools
import http.server
import io
import pickle
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

import bootmae_mm
from bootmae_mm.data import ImageArchives, ImageFolder
from bootmae_mm.data.archives import Archives, expanded, find_archives, is_archives
from bootmae_mm.engine.training import data_options
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import write_images
from tests.engine.test_auto import tiny_options

LOAD = [dict(type='bootmae_mm.LoadImage')]


def write_archive(path, files, names=None, compressed=False):
    """Pack files, with a label beside each as in webdataset."""
    names = names or [file.relative_to(path.parent).as_posix() for file in files]
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
            for file, name in zip(files, names):
                archive.writestr(f'{name}.cls', '3')
                archive.write(file, name)
    else:
        with tarfile.open(path, 'w:gz' if compressed else 'w') as archive:
            for file, name in zip(files, names):
                label = tarfile.TarInfo(f'{name}.cls')
                label.size = 1
                archive.addfile(label, io.BytesIO(b'3'))
                archive.add(file, name)
    return path


@pytest.fixture
def images(tmp_path):
    return sorted(write_images(tmp_path / 'images', 6).rglob('*.png'))


@pytest.mark.parametrize('kind', ['tar', 'zip', 'deflated'])
def test_the_pixels_are_those_of_the_files(tmp_path, images, kind):
    (tmp_path / 'shards').mkdir()
    for number, part in enumerate((images[:4], images[4:])):
        name = f'shards/x-{number:03}.{"zip" if kind == "deflated" else kind}'
        write_archive(tmp_path / name, part, [f'{path.stem} ä{"x" * 120}.PNG' for path in part], kind == 'deflated')
    data = ImageArchives(data_root=str(tmp_path / 'shards'), pipeline=LOAD)
    data = pickle.loads(pickle.dumps(data))  # as a worker gets it
    folder = ImageFolder(data_root=str(tmp_path / 'images'), pipeline=LOAD)
    assert len(data) == len(folder) == 6
    for index in (5, 0, 3, -1):
        assert np.array_equal(data[index]['img'], folder[index]['img'])
    assert data.get_data_info(4)['img_path'].endswith(f'x-001.{"zip" if kind == "deflated" else kind}/{images[4].stem} '
                                                      f'ä{"x" * 120}.PNG')  # fmt: skip
    assert len(ImageArchives(data_root=str(tmp_path), folder='shards', max_images=5, pipeline=LOAD)) == 5


def test_uncompressed_entries_are_not_copied(tmp_path, images):
    file = write_archive(tmp_path / 'x.tar', images)
    archives = Archives([file], ['.png'])
    content = archives.content(2)
    assert content.readonly and content.obj is archives.content(3).obj
    assert bytes(content) == images[2].read_bytes()


def test_broken_entries_are_skipped_and_counted(tmp_path, images):
    images[1].write_bytes(b'no image')
    write_archive(tmp_path / 'x.zip', images, compressed=True)
    data = ImageArchives(data_root=str(tmp_path / 'x.zip'), max_unreadable=0.2, pipeline=LOAD)
    assert np.array_equal(data[1]['img'], data[2]['img'])
    with pytest.raises(ConfigError, match='1 of 6 images cannot be read, more than max_unreadable=0.1 .*x.zip/images/'):
        ImageArchives(data_root=str(tmp_path / 'x.zip'), max_unreadable=0.1, pipeline=LOAD)[1]


def test_a_run_on_archives_equals_one_on_the_folder(tmp_path, images):
    """The same order, crops and masks: a list of folders and archives is interchangeable."""
    write_archive(tmp_path / 'x.tar', images)
    options = dict(epochs=1, batch_size=3, options=tiny_options())
    runs = [
        bootmae_mm.pretrain(data, tmp_path / out, **options)
        for data, out in ((tmp_path / 'images', 'a'), (tmp_path / 'x.tar', 'b'))
    ]
    features = [bootmae_mm.embed(run, tmp_path / 'images').features for run in runs]
    assert np.array_equal(*features)


def test_patterns():
    assert expanded('a-{08..11}.tar') == ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']
    assert expanded('{0..1}/{1..2}.zip') == ['0/1.zip', '0/2.zip', '1/1.zip', '1/2.zip']


def test_what_is_taken_for_archives(tmp_path, images):
    write_archive(tmp_path / 'shards.tar', images)
    (tmp_path / 'shards').mkdir()
    write_archive(tmp_path / 'shards/x.tar', images, [path.name for path in images])
    (tmp_path / 'shards/sizes.json').touch()
    for root in (tmp_path / 'shards.tar', tmp_path / 'shards', 's3://bucket/x-{0..9}.tar'):
        assert data_options(str(root))['train_dataloader.dataset.type'] == 'bootmae_mm.ImageArchives'
    assert not is_archives(str(tmp_path)) and not is_archives(str(tmp_path / 'images'))
    assert find_archives(str(tmp_path / '*/x.tar')) == [tmp_path / 'shards/x.tar']
    assert data_options('hf://datasets/ORG/NAME') == {
        'data_root': 'ORG/NAME',
        'train_dataloader.dataset.type': 'bootmae_mm.HuggingFaceImages',
        'train_dataloader.dataset.folder': '',  # ImageNet's configs have one
        'test_dataloader.dataset.type': 'bootmae_mm.HuggingFaceImages',
        'test_dataloader.dataset.folder': '',
    }


def test_what_is_no_archive(tmp_path, images):
    write_archive(tmp_path / 'x.tar', images, compressed=True)
    with pytest.raises(ConfigError, match='x.tar is neither a ZIP file nor an uncompressed TAR file'):
        ImageArchives(data_root=str(tmp_path / 'x.tar'), pipeline=[])
    with tarfile.open(tmp_path / 'empty.tar', 'w'):
        pass
    with pytest.raises(ConfigError, match='no image in the 1 archive'):
        ImageArchives(data_root=str(tmp_path / 'empty.tar'), pipeline=[])
    for root in ('images', 'x-{0..1}.tar', 'nothing/*.tar'):
        with pytest.raises(MissingFileError, match='no archive'):
            ImageArchives(data_root=str(tmp_path / root), pipeline=[])
    with pytest.raises(ConfigError, match='nosuch://a/b.tar cannot be read: .*nosuch'):
        ImageArchives(data_root='nosuch://a/b.tar', pipeline=[], cache=str(tmp_path / 'cache'))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that counts its requests."""

    requests: list = []  # noqa: RUF012

    def log_message(self, *args):
        self.requests.append(self.path)


def test_archives_from_the_web_are_copied_once(tmp_path, images):
    pytest.importorskip('aiohttp', reason='aiohttp is not installed')
    (tmp_path / 'web').mkdir()
    for number, part in enumerate((images[:3], images[3:])):
        write_archive(tmp_path / f'web/x-{number}.tar', part, [path.name for path in part])
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=tmp_path / 'web'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    options = dict(pipeline=LOAD, cache=str(tmp_path / 'cache'))
    try:
        data = ImageArchives(data_root=f'{url}/x-{{0..1}}.tar', **options)
        first = len(Quiet.requests)
        assert len(ImageArchives(data_root=f'{url}/x-{{0..1}}.tar', **options)) == 6
        assert first >= 2 and len(Quiet.requests) == first
        with pytest.raises(MissingFileError, match=f'no archive {url}/nothing.tar'):
            ImageArchives(data_root=f'{url}/nothing.tar', **options)
    finally:
        server.shutdown()
    assert np.array_equal(data[4]['img'], np.asarray(Image.open(images[4]).convert('RGB')))
    assert not list((tmp_path / 'cache').glob('*.part'))
