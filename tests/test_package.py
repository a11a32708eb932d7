"""The package as pip installs it, its registries as other configs use them, and its documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import bootmae_mm
from bootmae_mm.config import load_config
from bootmae_mm.data import MaskSampling
from tests.conftest import ROOT, write_images
from tests.engine.test_auto import tiny_options

PUBLIC = ['BootMAE', 'BootMAEViT', 'BootMAENeck', 'BootMAEPixelHead', 'BootMAEFeatureHead', 'BootMAEDataPreprocessor']


@pytest.mark.program
def test_installed_package_is_complete(tmp_path):
    install = [sys.executable, '-m', 'uv', '--quiet', 'pip', 'install', '--no-deps', '--no-build-isolation']
    done = subprocess.run([*install, '--target', tmp_path / 'site', ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = tmp_path / 'site/bootmae_mm'
    assert (package / '.mim/model-index.yml').read_text().startswith('Import:')
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').rglob('*.*')
        if path.suffix in ('.py', '.yml', '.yaml', '.md')
    }
    theirs = {path.relative_to(package / '.mim').as_posix() for path in (package / '.mim/configs').rglob('*.*')}
    assert ours == theirs and len(ours) > 20
    assert (package / 'py.typed').is_file()
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path / "site")!r}); import bootmae_mm; print(bootmae_mm.__file__);'
        'from bootmae_mm.registry import MODELS; print(MODELS.get("bootmae_mm.BootMAE").__name__)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(package) in done.stdout and done.stdout.strip().endswith('BootMAE')
    # The commands work without the repository: configs, tools and benchmarks come along.
    site = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}
    command = [sys.executable, '-m', 'bootmae_mm']
    done = subprocess.run([*command, 'config'], capture_output=True, text=True, cwd=tmp_path, env=site)
    assert len(done.stdout.split()) == len([path for path in ours if path.endswith('.py') and '_base_' not in path])
    (tmp_path / 'child.py').write_text("_base_ = 'bootmae_mm::pretrain/bootmae_auto.py'\n")
    done = subprocess.run([*command, 'config', 'child.py'], capture_output=True, text=True, cwd=tmp_path, env=site)
    assert done.returncode == 0 and "max_epochs='auto'" in done.stdout, done.stderr
    step = ['bench', 'step', package / '.mim/configs/pretrain/bootmae_vitt_digits.py', '--batch', '2', '--repeats', '1']
    done = subprocess.run([*command, *step], capture_output=True, text=True, cwd=tmp_path, env=site)
    assert done.returncode == 0 and 'images/s' in done.stdout, done.stderr
    assert (tmp_path / 'site/bin/bootmae').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg', 'mmdet'])
def test_components_are_found_from_any_scope_without_custom_imports(scope):
    """In a new process, where only mmengine's registry imports this project."""
    code = (
        'from mmengine.registry import MODELS, HOOKS, DefaultScope\n'
        f'DefaultScope.get_instance("x", scope_name={scope!r})\n'
        f'for name in {PUBLIC}:\n'
        '    assert MODELS.get("bootmae_mm." + name).__name__ == name\n'
        'assert HOOKS.get("bootmae_mm.BootMAEEMAHook").__name__ == "BootMAEEMAHook"\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='/')
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_error():
    init_default_scope('mmpretrain')
    with pytest.raises(KeyError, match='BootMAX'):
        MODELS.build(dict(type='bootmae_mm.BootMAX'))


def test_version():
    assert bootmae_mm.__version__.count('.') == 2


def blocks(language: str) -> list[str]:
    """Code blocks of the README."""
    return re.findall(rf'```{language}\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


@pytest.mark.program
def test_three_lines_of_the_readme_run(tmp_path):
    """As they stand, but for a small model."""
    write_images(tmp_path / 'images', 8)
    options = tiny_options()
    (python,) = [block for block in blocks('python') if 'pretrain(' in block]
    python = python.replace("out='run')", f"out='run', epochs=1, options={options!r})")
    python += "\nassert features.shape == (8, 24) and encoder('images/part0/image 0.png').mean.shape == (1, 24)\n"
    shell = blocks('shell')[0].splitlines()
    assert len(shell) == 3
    shell[0] += ' --epochs 1 --cfg-options ' + ' '.join(f'"{key}={value}"' for key, value in options.items())
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for command in ([sys.executable, '-c', python], ['bash', '-ec', 'rm -r run\n' + '\n'.join(shell)]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PATH': path})
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / 'features.npy').is_file() and (tmp_path / 'run/epoch_1_timm/config.json').is_file()


def test_example_of_the_readme_builds(tmp_path):
    (example,) = [block for block in blocks('python') if '_base_' in block]
    (tmp_path / 'child.py').write_text(example)
    cfg = load_config(tmp_path / 'child.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.backbone.grid_size == (14, 24) and model.backbone.embed_dims == 384
    assert len(model.neck.decoders['pixel'].blocks) == 4 and model.neck.context_blocks == {0, 8}
    masking = MaskSampling(**cfg.train_dataloader.dataset.masking)
    assert masking.num_masked == round(0.6 * 14 * 24) and masking.num_blocked == round(14 * 24 * 120 / 196)


def test_links_in_the_documents_exist():
    documents = [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'), *(ROOT / 'configs').rglob('*.md')]
    assert len(documents) > 10
    for document in documents:
        for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', document.read_text()):
            assert (document.parent / link).exists(), f'{document.name}: {link}'


def test_main_files_are_there():
    documents = ('README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CITATION.cff')
    for name in (*documents, 'model-index.yml', 'setup.py', 'Makefile'):
        assert (ROOT / name).stat().st_size > 20, name
