"""Reading of checkpoints: as data, without running code in them."""

import importlib
import os
import pickle
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer

from bootmae_mm.checkpoints.reading import allow_mmengine_checkpoints, load_file, load_model
from bootmae_mm.checkpoints.saved_config import config_of
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import build, tiny_config


class Harmful:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Reaching:
    """Asks for an attribute through getattr, as mmengine's history does, but not for a statistic."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('harmful', [lambda path: Harmful(path), lambda path: Reaching()])
def test_code_in_a_checkpoint_is_not_run(tmp_path, harmful):
    torch.save(dict(state_dict={}, extra=harmful(str(tmp_path / 'made'))), tmp_path / 'bad.pth')
    with pytest.raises(ConfigError, match='bad.pth is not a checkpoint that loads safely'):
        load_file(tmp_path / 'bad.pth')
    assert not (tmp_path / 'made').exists()


def test_reading_a_file_keeps_the_list_of_allowed_classes(tmp_path):
    allow_mmengine_checkpoints()
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'x.pth')
    load_file(tmp_path / 'x.pth')
    assert torch.load(tmp_path / 'x.pth', weights_only=True)['history'].mean() == 1.0


def test_checkpoints_of_mmengine_can_be_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(message_hub=dict(log_scalars=dict(loss=history))), tmp_path / 'x.pth')
    loaded = load_file(tmp_path / 'x.pth')['message_hub']['log_scalars']['loss']
    assert loaded.mean() == 1.5 and loaded.statistics('max') == 2.0


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        (None, MissingFileError, 'no checkpoint .*x.pth'),
        (b'', ConfigError, 'x.pth is not a checkpoint'),
        (b'garbage', ConfigError, 'x.pth is not a checkpoint'),
        (pickle.dumps([1]), ConfigError, 'x.pth is not a checkpoint'),
    ],
    ids=['missing', 'empty', 'garbage', 'plain pickle'],
)
def test_files_that_are_not_checkpoints(tmp_path, content, error, message):
    path = tmp_path / 'x.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        load_file(path)


def test_a_file_of_another_type_is_not_a_checkpoint(tmp_path):
    torch.save([1], tmp_path / 'x.pth')
    with pytest.raises(ConfigError, match='x.pth is not a checkpoint .*: it holds a list, not a dict'):
        load_file(tmp_path / 'x.pth')


def test_the_config_in_a_checkpoint_is_read_as_data():
    text = "model = dict(type='A', size=(1, 2), inner=[dict(x=-1.5), {'y': None}])\nflag = True\n"
    text += "keys = dict({'a.b': dict(c=1)}, d=2)\n"
    cfg = config_of(dict(meta=dict(cfg=text)))
    assert cfg.model.size == (1, 2) and cfg.model.inner[0].x == -1.5 and cfg.flag is True
    assert cfg['keys'] == {'a.b': {'c': 1}, 'd': 2}
    for bad in (
        "x = __import__('os').getcwd()",
        'import os',
        "x = dict([('a', 1)])",
        'x = dict({}, {})',
        'x = dict(1)',
        'x = open("/etc/passwd")',
        'x.y = 1',
        'x = y = 1',
        'x = (',
    ):
        with pytest.raises(ConfigError, match='the config in the checkpoint must be assignments of literals'):
            config_of(dict(meta=dict(cfg=bad)))
    with pytest.raises(ConfigError, match='the checkpoint holds no config; give one with --config'):
        config_of({})


@pytest.mark.parametrize('kind', ['os.system', 'bootmae_mm.models.BootMAE', 'posix', 'sys', 3, ['BootMAE']])
def test_types_in_a_checkpoint_must_be_registered_components(kind):
    for model in (dict(type=kind), dict(type='bootmae_mm.BootMAE', parts=[dict(x=dict(type=kind))])):
        with pytest.raises(ConfigError, match='which could execute arbitrary code'):
            config_of(dict(meta=dict(cfg=f'model = {model!r}\n')))
    with pytest.raises(ConfigError, match="refers to 'os'"):
        config_of(dict(meta=dict(cfg="model = dict(type='BootMAE', _scope_='os')\n")))


def test_the_running_script_is_not_a_component(monkeypatch):
    monkeypatch.setattr(sys.modules['__main__'], '__spec__', None)  # as in a script that is not run with -m
    with pytest.raises(ConfigError, match="refers to '__main__'"):
        config_of(dict(meta=dict(cfg="model = dict(type='__main__')\n")))


def test_a_model_that_does_not_fit(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'model = {tiny_config()!r}\n')
    model = build(tiny_config())
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'x.pth')
    loaded, _ = load_model(tmp_path / 'x.pth', config)
    assert torch.equal(loaded.backbone.cls_token, model.backbone.cls_token) and not loaded.training
    torch.save(dict(state_dict=model.backbone.state_dict()), tmp_path / 'y.pth')
    with pytest.raises(ConfigError, match='does not fit'):
        load_model(tmp_path / 'y.pth', config)
    with pytest.raises(MissingFileError, match='no config'):
        load_model(tmp_path / 'x.pth', tmp_path / 'none.py')


def test_a_component_with_the_name_of_a_plain_folder_is_allowed(tmp_path, monkeypatch):
    """Such as a folder beside a clone: importing it would run no code."""
    (tmp_path / 'LayerNorm').mkdir()
    (tmp_path / 'BootMAE').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    text = 'model = dict(type="bootmae_mm.BootMAE", norm_cfg=dict(type="LayerNorm"))'
    assert config_of(dict(meta=dict(cfg=text))).model.norm_cfg.type == 'LayerNorm'
    (tmp_path / 'LayerNorm/__init__.py').write_text('')
    importlib.invalidate_caches()
    with pytest.raises(
        ConfigError, match="refers to 'LayerNorm', which could execute arbitrary code; give a config with --config"
    ):
        config_of(dict(meta=dict(cfg=text)))
