"""Model cards, and the upload of an exported folder."""

import json

import pytest
import torch
import yaml

huggingface_hub = pytest.importorskip('huggingface_hub', reason='huggingface_hub is not installed')

RUN = dict(
    model=None,
    train_dataloader=dict(batch_size=64, dataset=dict(type='x', masking=dict(strategy='block', ratio=0.6))),
    optim_wrapper=dict(
        type='OptimWrapper', accumulative_counts=2, optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    ),
    train_cfg=dict(max_epochs=9),
    init='hf-hub:timm/vit_tiny.dino',
)


@pytest.fixture
def run(tmp_path):
    """The folder of a run with probes in its log."""
    from tests.export.test_exporting import SQUARE, build, tiny_config

    config = tiny_config(backbone=dict(SQUARE))
    text = '\n'.join(f'{key} = {value!r}' for key, value in {**RUN, 'model': config}.items())
    meta = dict(cfg=text + '\n', epoch=7, iter=1234)
    torch.save(dict(state_dict=build(config).state_dict(), meta=meta), tmp_path / 'epoch_7.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_7.pth'))
    log = tmp_path / '2026/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    entries = [
        dict(step=10, loss=2.5, pixel_loss=1.5),
        dict(step=20, probe_knn=41.26, probe_linear=50.0),
        dict(step=30, loss=1.25, pixel_loss=0.75),
    ]
    log.write_text('\n'.join(map(json.dumps, entries)))
    return tmp_path


@pytest.mark.parametrize('target', ['timm', 'hf'])
def test_a_dry_run_writes_the_folder_and_the_card(run, run_tool, target):
    options = ['--push', 'me/birds', '--license', 'cc-by-4.0', '--about', 'Birds.', '--dry-run']
    status, out, message = run_tool('export.py', run, '--to', target, '--out', run / 'out', *options)
    assert status == 0 and 'nothing was uploaded' in out, message
    assert {'model.safetensors', 'config.json', 'README.md'} <= {path.name for path in (run / 'out').iterdir()}
    card = (run / 'out/README.md').read_text()
    head = yaml.safe_load(card.split('---')[1])
    assert head['license'] == 'cc-by-4.0' and head['library_name'] == dict(timm='timm', hf='transformers')[target]
    for text in (
        'me/birds', '3 blocks, 24 wide, 3 heads, patches of 8 pixels, images of 32 x 32', '\nBirds.\n',
        '| epochs | 7 of 9 |', '| iterations | 1,234 |', '64 images of a process x 2 accumulated', 'lr 0.001',
        '| masks | block, ratio 0.6 |', '| targets | pixel, feature |', 'kNN 41.3 %, linear 50.0 %',
        'loss 1.2500, pixel_loss 0.7500', 'Training started from `hf-hub:timm/vit_tiny.dino`; the license of those',
    ):  # fmt: skip
        assert text in card, text
    state = torch.load(run / 'epoch_7.pth')['state_dict']
    weights = sum(value.numel() for name, value in state.items() if name.startswith('backbone.'))
    assert f', {weights:,} weights.' in card


@torch.no_grad()
@pytest.mark.parametrize('target', ['timm', 'hf'])
def test_the_code_of_the_card_runs(run, run_tool, target, monkeypatch):
    """From the folder instead of the hub."""
    pytest.importorskip(dict(timm='timm', hf='transformers')[target])
    options = ['--push', 'me/birds', '--dry-run']
    assert run_tool('export.py', run, '--to', target, '--out', run / 'out', *options)[0] == 0
    code = (run / 'out/README.md').read_text().split('```')[1].removeprefix('python\n')
    code = code.replace('hf-hub:me/birds', f'local-dir:{run}/out').replace('me/birds', f'{run}/out')
    from PIL import Image

    names = dict(image=Image.new('RGB', (50, 40), (200, 30, 90)))
    exec(code, names)  # noqa: S102
    assert names['features'].shape == (1, 24) and names['features'].std() > 0


def test_no_folder_of_the_machine_is_in_the_card(run, run_tool):
    checkpoint = torch.load(run / 'epoch_7.pth')
    checkpoint['meta']['cfg'] = checkpoint['meta']['cfg'].replace(RUN['init'], '/home/me/weights.pth')
    torch.save(checkpoint, run / 'epoch_7.pth')
    options = ['--push', 'me/birds', '--dry-run', '--license', 'mine: see below']
    status, _, message = run_tool('export.py', run, '--to', 'timm', '--out', run / 'out', *options)
    card = (run / 'out/README.md').read_text()
    assert status == 0 and card.count('weights.pth') == 2 and '/home' not in card and str(run) not in card, message
    assert yaml.safe_load(card.split('---')[1])['license'] == 'mine: see below'


def test_an_upload_creates_the_model_and_sends_the_folder(run, run_tool, monkeypatch):
    calls = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, 'create_repo', lambda self, *a, **k: calls.append((a, k)) or 'https://hub/me/birds'
    )
    monkeypatch.setattr(huggingface_hub.HfApi, 'upload_folder', lambda self, **k: calls.append(k))
    arguments = [run, '--to', 'timm', '--out', run / 'out', '--push', 'me/birds', '--private']
    status, out, message = run_tool('export.py', *arguments)
    assert status == 0 and 'uploaded: https://hub/me/birds' in out, message
    assert calls[0] == (('me/birds',), dict(private=True, exist_ok=True))
    assert calls[1]['repo_id'] == 'me/birds' and calls[1]['folder_path'] == str(run / 'out')
    assert 'license: other' in (run / 'out/README.md').read_text()


def test_mistakes_end_in_one_line(run, run_tool, monkeypatch):
    export = ['export.py', run, '--out', run / 'out']
    assert "named ORG/NAME, not 'birds'" in run_tool(*export, '--to', 'timm', '--push', 'birds')[2]
    assert "a model card is for timm or hf, not 'onnx'" in run_tool(*export, '--to', 'onnx', '--push', 'me/birds')[2]
    assert not (run / 'out').exists()

    def fail(self, *_, **__):
        raise OSError('no network\nmore lines')

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', fail)
    message = run_tool(*export, '--to', 'timm', '--push', 'me/birds')[2]
    assert message == f'error: me/birds could not be uploaded: OSError: no network; the folder is {run / "out"}'
