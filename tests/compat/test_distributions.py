"""Supported distributions of OpenMMLab."""

import subprocess
import sys

import pytest

from bootmae_mm.compat import distributions


def with_installed(monkeypatch, versions):
    monkeypatch.setattr(distributions, '_version', versions.get)


ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmpretrain': '1.3.6'}
UPSTREAM = {'mmengine': '0.11.0rc3', 'mmcv-lite': '2.1.0', 'mmpretrain': '1.2.0'}


@pytest.mark.parametrize('versions', [ONEDL, UPSTREAM, {**UPSTREAM, 'mmengine': '0.10.7'}])
def test_both_families_pass(monkeypatch, versions):
    with_installed(monkeypatch, versions)
    distributions.check_requirements()


@pytest.mark.parametrize(
    ('versions', 'message'),
    [
        ({}, r'needs mmengine.*bootmae_mm\[onedl\]'),
        ({**ONEDL, 'mmengine': '0.10.7'}, 'onedl-mmengine and mmengine are both installed'),
        ({**ONEDL, 'onedl-mmpretrain': '1.4.0'}, 'supports onedl-mmpretrain >= 1.3.6, < 1.4, but 1.4.0'),
        ({**UPSTREAM, 'mmcv-lite': '2.0.1'}, 'mmcv-lite >= 2.1.0'),
        ({**ONEDL, 'transformers': '5.1.0'}, 'onedl-mmpretrain cannot be imported beside transformers 5.1.0'),
        ({**UPSTREAM, 'transformers': '4.57.6'}, "'transformers<4.57', or uninstall"),
    ],
)
def test_unsupported_distributions_are_named_in_one_line(monkeypatch, versions, message):
    with_installed(monkeypatch, versions)
    with pytest.raises(ImportError, match=message) as caught:
        distributions.check_requirements()
    assert '\n' not in str(caught.value)


def test_import_is_cheap_and_starts_nothing():
    code = (
        'import sys, bootmae_mm; heavy = {"torch", "mmengine", "mmcv", "numpy"} & set(sys.modules); print(heavy or 0)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '0', done.stdout + done.stderr
