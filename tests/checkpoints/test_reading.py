import importlib
import os
import pickle

import pytest
import torch
from mmengine.logging import HistoryBuffer

from bootmae_mm.checkpoints.reading import allow_mmengine_checkpoints, config_of, load_file, load_model
from tests.conftest import build, tiny_config


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Reaching:
    """Asks for something through getattr, as mmengine's history does, but not for a statistic."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('harmful', [lambda path: Harmful(path), lambda path: Reaching()])
def test_code_in_a_checkpoint_is_not_run(tmp_path, harmful):
    torch.save(dict(state_dict={}, extra=harmful(str(tmp_path / 'made'))), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='bad.pth is not a checkpoint that loads safely'):
        load_file(tmp_path / 'bad.pth')
    assert not (tmp_path / 'made').exists()


def test_reading_a_file_leaves_what_was_allowed(tmp_path):
    allow_mmengine_checkpoints()
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'x.pth')
    load_file(tmp_path / 'x.pth')
    assert torch.load(tmp_path / 'x.pth', weights_only=True)['history'].mean() == 1.0


def test_what_mmengine_saves_loads(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(message_hub=dict(log_scalars=dict(loss=history))), tmp_path / 'x.pth')
    loaded = load_file(tmp_path / 'x.pth')['message_hub']['log_scalars']['loss']
    assert loaded.mean() == 1.5 and loaded.statistics('max') == 2.0


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        (None, FileNotFoundError, 'no checkpoint'),
        (b'', ValueError, 'not a checkpoint'),
        (b'garbage', ValueError, 'not a checkpoint'),
        (pickle.dumps([1]), ValueError, 'x.pth'),
    ],
    ids=['missing', 'empty', 'garbage', 'list'],
)
def test_files_that_are_no_checkpoints(tmp_path, content, error, message):
    path = tmp_path / 'x.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        load_file(path)


def test_config_in_a_checkpoint_is_data():
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
    ):
        with pytest.raises(ValueError):
            config_of(dict(meta=dict(cfg=bad)))
    with pytest.raises(ValueError, match='no config'):
        config_of({})


def test_model_that_does_not_fit(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'model = {tiny_config()!r}\n')
    model = build(tiny_config())
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'x.pth')
    loaded, _ = load_model(tmp_path / 'x.pth', config)
    assert torch.equal(loaded.backbone.cls_token, model.backbone.cls_token) and not loaded.training
    torch.save(dict(state_dict=model.backbone.state_dict()), tmp_path / 'y.pth')
    with pytest.raises(ValueError, match='does not fit'):
        load_model(tmp_path / 'y.pth', config)
    with pytest.raises(FileNotFoundError, match='no config'):
        load_model(tmp_path / 'x.pth', tmp_path / 'none.py')


def test_a_folder_of_that_name_is_no_reason_to_refuse(tmp_path, monkeypatch):
    """Beside a clone, say; importing it would run nothing."""
    (tmp_path / 'LayerNorm').mkdir()
    (tmp_path / 'BootMAE').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    text = 'model = dict(type="bootmae_mm.BootMAE", norm_cfg=dict(type="LayerNorm"))'
    assert config_of(dict(meta=dict(cfg=text))).model.norm_cfg.type == 'LayerNorm'
    (tmp_path / 'LayerNorm/__init__.py').write_text('')
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match="asks for 'LayerNorm', which may be any code"):
        config_of(dict(meta=dict(cfg=text)))
