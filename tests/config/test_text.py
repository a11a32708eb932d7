"""The text of a config is formatted once for each content, also in copies."""

import copy

from mmengine.config import Config

from bootmae_mm.config import load_config
from tests.conftest import ROOT


def test_copies_share_the_text_and_changes_show(monkeypatch):
    calls = []
    formatted = Config.pretty_text.fget
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: calls.append(1) or formatted(self)))
    cfg = load_config(ROOT / 'configs/pretrain/bootmae_vitt_digits.py', {'train_cfg.max_epochs': 77})
    text = cfg.pretty_text
    assert text == copy.deepcopy(cfg).pretty_text == cfg.pretty_text and len(calls) == 1
    assert Config.fromstring(text, '.py').to_dict() == cfg.to_dict()
    cfg.train_cfg.max_epochs = 78
    assert 'max_epochs=78' in cfg.pretty_text and len(calls) == 2


def test_the_text_is_that_of_mmengine():
    path = ROOT / 'configs/pretrain/bootmae_vitt_digits.py'
    assert load_config(path).pretty_text == Config.fromfile(path).pretty_text
