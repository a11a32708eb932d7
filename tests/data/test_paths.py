"""Paths of images: links, folders that cannot be listed, lists that lead out of their folder, hidden files."""

import os

import pytest
from PIL import Image

from bootmae_mm.data import ImageFolder, LabelledFolder
from bootmae_mm.data.paths import check_inside, found_images
from bootmae_mm.validation import ConfigError
from tests.conftest import run_without_rights, write_images


def test_links_are_followed_once(tmp_path):
    """Links to the folder itself, to each other, and twice to another folder: every image is found once."""
    elsewhere = write_images(tmp_path / 'elsewhere', 2)
    folder = write_images(tmp_path / 'images', 4)
    for place in (elsewhere, folder):
        Image.new('RGB', (4, 4)).save(place / 'at the top.png')
    for name in ('a', 'b'):
        (folder / name).mkdir()
        (folder / name / 'up').symlink_to(folder)
        (folder / name / 'up again').symlink_to(folder)
        (folder / f'to {name}').symlink_to(elsewhere)
    (folder / 'a/across').symlink_to(folder / 'b')
    (folder / 'b/across').symlink_to(folder / 'a')
    (folder / 'to nothing').symlink_to(tmp_path / 'nothing')
    paths = found_images(folder, ('.png',))
    assert len({os.path.realpath(path) for path in paths}) == len(paths) == 4 + 2 + 2
    assert all('to a' in path for path in paths if 'to ' in path)  # the first one in order, so that all processes agree


@pytest.mark.skipif(not hasattr(os, 'setuid'), reason='needs users')
def test_a_folder_that_cannot_be_listed(tmp_path):
    write_images(tmp_path / 'images', 4)
    (tmp_path / 'images/part1').chmod(0)
    imports, statement = 'from bootmae_mm.data.paths import found_images', "found_images(sys.argv[1], ('.png',))"
    done = run_without_rights(imports, statement, tmp_path, tmp_path / 'images')
    (tmp_path / 'images/part1').chmod(0o755)
    assert done.returncode == 1 and 'Permission denied' in done.stderr and 'part1' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize('name', ['../secret.png', '/etc/secret.png', 'cat/../../secret.png', '..'])
def test_a_list_must_not_lead_out_of_its_folder(tmp_path, name):
    write_images(tmp_path / 'images', 2)
    Image.new('RGB', (4, 4)).save(tmp_path / 'secret.png')
    (tmp_path / 'list.txt').write_text(f'part0/image 0.png 0\n{name} 1\n')
    for kind in (ImageFolder, LabelledFolder):
        options = dict(data_root=str(tmp_path / 'images'), ann_file=str(tmp_path / 'list.txt'), pipeline=[])
        if kind is LabelledFolder:
            options['metainfo'] = dict(classes=('a', 'b'))
        with pytest.raises(ConfigError, match='1 of the paths in .*list.txt lead out of .*images/?, such as'):
            kind(**options)


def test_dots_that_stay_inside_are_allowed():
    check_inside(['a/../b.png', 'a..b.png', '...', './a.png'], 'root', 'list')


def test_a_list_with_labels_in_its_folder(tmp_path):
    write_images(tmp_path / 'images', 2)
    (tmp_path / 'list.txt').write_text('part0/image 0.png 0\npart1/image 1.png 1\n')
    dataset = LabelledFolder(
        data_root=str(tmp_path),
        data_prefix='images',
        ann_file='list.txt',
        metainfo=dict(classes=('a', 'b')),
        pipeline=[dict(type='bootmae_mm.LoadImage')],
    )
    assert [dataset[index]['gt_label'] for index in range(2)] == [0, 1]


def test_a_list_in_another_encoding_is_refused(tmp_path):
    write_images(tmp_path / 'images', 2)
    (tmp_path / 'list.txt').write_bytes('Bär.png 0\n'.encode('latin-1'))
    with pytest.raises(ConfigError, match='list.txt .ann_file. is not a list in UTF-8'):
        ImageFolder(data_root=str(tmp_path / 'images'), ann_file=str(tmp_path / 'list.txt'))


def add_hidden(root):
    """Add hidden files and folders, as macOS and Jupyter create them."""
    first = sorted(root.rglob('*.png'))[0]
    (first.parent / f'._{first.name}').write_bytes(b'not an image')
    for name in ('.ipynb_checkpoints', '__MACOSX'):
        (first.parent / name).mkdir()
        (first.parent / name / first.name).write_bytes(first.read_bytes())
        (root / name).mkdir(exist_ok=True)
        (root / name / first.name).write_bytes(first.read_bytes())


def test_hidden_files_are_not_images(tmp_path, monkeypatch):
    root = write_images(tmp_path / 'images', 4)
    wanted = found_images(root, ('.png',))
    add_hidden(root)
    logged = []
    monkeypatch.setattr('bootmae_mm.data.paths.print_log', lambda text, **_: logged.append(text))
    assert found_images(root, ('.png',)) == wanted and len(wanted) == 4
    assert logged[0].startswith('5 hidden files and folders are skipped, such as ')


def test_hidden_folders_are_not_classes(tmp_path):
    root = write_images(tmp_path / 'images', 4)
    add_hidden(root)
    dataset = LabelledFolder(data_root=str(root), pipeline=[])
    assert dataset.metainfo['classes'] == ('part0', 'part1')
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert sorted(info['gt_label'] for info in infos) == [0, 0, 1, 1]
    assert not any('/.' in info['img_path'] or '__MACOSX' in info['img_path'] for info in infos)


def write_table(path, kind):
    rows = [('images/part0/image 0.png', 'a'), ('images/part1/image, 1.png', 'b')]
    if kind == 'parquet':
        pyarrow = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(dict(label=[row[1] for row in rows], path=[row[0] for row in rows])), path)
    else:
        sign, quote = (',', '"') if kind == 'csv' else ('\t', '')
        lines = [f'label{sign}path', *(f'{label}{sign}{quote}{name}{quote}' for name, label in rows)]
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'parquet'])
def test_a_table_of_paths(tmp_path, kind):
    write_images(tmp_path / 'images', 4)
    (tmp_path / 'images/part1/image 1.png').rename(tmp_path / 'images/part1/image, 1.png')
    write_table(tmp_path / f'list.{kind}', kind)
    options = dict(data_root=str(tmp_path), ann_file=str(tmp_path / f'list.{kind}'), pipeline=[])
    data = ImageFolder(**options)
    names = [os.path.relpath(data[index]['img_path'], tmp_path) for index in range(len(data))]
    assert names == ['images/part0/image 0.png', 'images/part1/image, 1.png']
    with pytest.raises(ConfigError, match=r"has no column 'file', but \['label', 'path'\]; set column of the data set"):
        ImageFolder(**options, column='file')


def test_absolute_paths_inside_the_folder(tmp_path):
    folder = write_images(tmp_path / 'images', 2)
    (tmp_path / 'list.txt').write_text(f'{folder}/part0/image 0.png\n')
    data = ImageFolder(data_root=str(folder), ann_file=str(tmp_path / 'list.txt'), pipeline=[])
    assert [item['img_path'] for item in data] == [f'{folder}/part0/image 0.png']


def test_arrays_are_images_where_there_are_no_others(tmp_path):
    (tmp_path / 'a.npy').touch()
    (tmp_path / 'b.DCM').touch()
    assert [os.path.basename(path) for path in found_images(tmp_path)] == ['a.npy', 'b.DCM']
    Image.new('RGB', (4, 4)).save(tmp_path / 'c.png')
    assert [os.path.basename(path) for path in found_images(tmp_path)] == ['c.png']
    assert [os.path.basename(path) for path in found_images(tmp_path, ['.npy'])] == ['a.npy']
    with pytest.raises(ConfigError, match='no image in .*: no file ends in .jpeg'):
        found_images(tmp_path, ['.jpeg'])
