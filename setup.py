"""Packaging of bootmae_mm."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

# One of the two families is needed. They share import names, so neither is a hard requirement: a plain install
# must not put one over the other.
ONEDL = ['onedl-mmengine>=0.10.12,<0.11', 'onedl-mmcv>=2.3.6,<2.4', 'onedl-mmpretrain>=1.3.6,<1.4']
OPENMMLAB = ['mmengine>=0.10.7,<0.12', 'mmcv-lite>=2.1.0,<2.2', 'mmpretrain>=1.2.0,<1.3', 'setuptools<81']


FOLDERS = ('configs', 'tools', 'benchmarks', 'weights')
# Tools for the repository: what they import is not installed.
UNINSTALLED = (
    'install.py',
    'check_parity.py',
    'demo.py',
    'demo_transfer.py',
    'make_digit_scenes.py',
    'make_instances.py',
)


def link_configs(target: Path) -> None:
    """Links to the repository, where mmengine looks for `bootmae_mm::` in an editable install."""
    target.mkdir(exist_ok=True)
    for name in (*FOLDERS, 'model-index.yml'):
        link = target / name
        if not link.exists():
            link.unlink(missing_ok=True)  # dangling
            link.symlink_to(ROOT / name)


class BuildWithConfigs(build_py):
    """Copies configs, tools, weights and model-index.yml to bootmae_mm/.mim, where OpenMMLab's tools look for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            link_configs(ROOT / 'bootmae_mm' / '.mim')
            return
        target = Path(self.build_lib) / 'bootmae_mm' / '.mim'
        for folder in FOLDERS:
            shutil.copytree(
                ROOT / folder,
                target / folder,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns('__pycache__', *UNINSTALLED),
            )
        shutil.copy2(ROOT / 'model-index.yml', target / 'model-index.yml')


def version() -> str:
    """The version, read without importing the package."""
    for line in (ROOT / 'bootmae_mm' / 'version.py').read_text().splitlines():
        if line.startswith('__version__'):
            return line.split('=')[1].strip().strip('\'"')
    raise RuntimeError('no __version__ in bootmae_mm/version.py')


setup(
    name='bootmae_mm',
    version=version(),
    description='Bootstrapped Masked Autoencoders (BootMAE) for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['bootmae_mm', 'bootmae_mm.*']),
    package_data={'bootmae_mm': ['py.typed']},
    entry_points={'console_scripts': ['bootmae = bootmae_mm.commands:main']},
    cmdclass={'build_py': BuildWithConfigs},
    install_requires=[
        'torch>=2.6,<2.12',
        'torchvision>=0.21,<0.27',
        'numpy>=2',
        'matplotlib',
        'pydantic>=2.8,<3',
        'rich',
        'safetensors',
        'tensorboard',
    ],
    extras_require={
        'onedl': ONEDL,
        'onedl-downstream': ONEDL + ['onedl-mmsegmentation>=1.4.2,<1.5', 'onedl-mmdetection>=3.5.1,<3.6'],
        'openmmlab': OPENMMLAB,
        'openmmlab-downstream': OPENMMLAB + ['mmsegmentation>=1.2.2,<1.3', 'mmdet>=3.3.0,<3.4', 'ftfy', 'regex'],
        # TIFF with many bands or deep colors, and DICOM.
        'images': ['tifffile', 'imagecodecs', 'pydicom>=3'],
        # Lists in Parquet, data sets of Hugging Face, archives from S3 (s3fs) and the web (aiohttp).
        'sources': ['aiohttp', 'datasets>=4', 'fsspec', 'pyarrow', 's3fs'],
        'demo': ['scikit-learn'],
        'export': ['onnx'],
        # To read what is exported to it. Not part of `test`: the original mmpretrain cannot be imported beside it.
        'huggingface': ['transformers<5'],
        'test': ['pytest', 'pytest-xdist', 'scikit-learn', 'onnx', 'onnxruntime', 'timm'],
    },
    zip_safe=False,
)
