"""Exports, loaded with the libraries they are for, give the same features."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from bootmae_mm.export.exporting import export, read_encoder
from bootmae_mm.export.preprocessing import Preprocessing, read_preprocessing
from bootmae_mm.models import BootMAEViT
from bootmae_mm.validation import ConfigError
from tests.checkpoints.test_official import SIZES, official_checkpoint
from tests.conftest import TINY_ARCH, build, tiny_config

PAPER = Preprocessing()
SQUARE = dict(type='bootmae_mm.BootMAEViT', arch=dict(TINY_ARCH), img_size=32, patch_size=8)


def save(path, backbone=SQUARE):
    """Write a checkpoint as a Runner does, with weights other than the initial ones."""
    config = tiny_config(backbone=dict(backbone))
    model = build(config)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=f'model = {config!r}\n')), path)
    return model


@pytest.fixture
def encoder(tmp_path):
    save(tmp_path / 'epoch_1.pth')
    return read_encoder(tmp_path / 'epoch_1.pth')


def close(found, wanted, share=1e-5):
    """Assert that values agree within a share of the largest one."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= share * wanted.abs().max()


@torch.no_grad()
def test_timm(encoder, tmp_path):
    timm = pytest.importorskip('timm')
    folder = export(encoder, 'timm', tmp_path / 'timm', source='epoch_1.pth', preprocessing=PAPER)
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    close(model.forward_features(images), encoder(images)[0])
    close(model(images), encoder(images)[0][:, 1:].mean(dim=1))
    assert tuple(timm.data.resolve_model_data_config(model)['mean']) == (0.5, 0.5, 0.5)
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        assert file.metadata()['source'] == 'epoch_1.pth'
    # The names are those of timm's own ViT-B.
    names = set(timm.create_model('vit_base_patch16_224', num_classes=0).state_dict())
    assert set(model.state_dict()) == {
        name for name in names if not name.startswith('blocks') or name[7] in '012' and name[8] == '.'
    }


@torch.no_grad()
def test_timm_with_images_that_are_not_square(tmp_path):
    timm = pytest.importorskip('timm')
    save(tmp_path / 'x.pth', dict(SQUARE, img_size=(32, 48)))
    encoder = read_encoder(tmp_path / 'x.pth', prefix='teacher.')
    model = timm.create_model(
        f'local-dir:{export(encoder, "timm", tmp_path / "t", "x", preprocessing=PAPER)}', pretrained=True
    ).eval()
    images = torch.randn(1, 3, 32, 48)
    tokens = model.forward_features(images)
    assert tokens.shape[1] == 1 + (32 // 8) * (48 // 8)
    close(tokens, encoder(images)[0])


@torch.no_grad()
def test_huggingface(encoder, tmp_path):
    transformers = pytest.importorskip('transformers')
    folder = export(encoder, 'hf', tmp_path / 'hf', source='epoch_1.pth', preprocessing=PAPER)
    model, info = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys'] and not info['mismatched_keys']
    images = torch.randn(2, 3, 32, 32)
    close(model.eval()(images).last_hidden_state, encoder(images)[0])
    preprocessor = json.loads((folder / 'preprocessor_config.json').read_text())
    assert preprocessor['image_mean'] == preprocessor['image_std'] == [0.5, 0.5, 0.5]
    picture = np.full((32, 32, 3), 255, np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert torch.as_tensor(np.asarray(processor(picture)['pixel_values'][0])).eq(1).all()


@torch.no_grad()
def test_mmpretrain(encoder, tmp_path):
    from mmpretrain.models import VisionTransformer

    file = export(encoder, 'mmpretrain', tmp_path / 'mm', source='epoch_1.pth', preprocessing=PAPER)
    model = VisionTransformer(
        arch=dict(TINY_ARCH),
        img_size=32,
        patch_size=8,
        out_type='raw',
        init_cfg=dict(type='Pretrained', checkpoint=str(file), prefix='backbone.'),
    )
    model.init_weights()
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    close(model(images)[0], encoder(images)[0])


@torch.no_grad()
@pytest.mark.filterwarnings('ignore')
def test_onnx_with_any_batch(encoder, tmp_path):
    onnx = pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    file = export(encoder, 'onnx', tmp_path / 'onnx', source='epoch_1.pth', preprocessing=PAPER)
    session = runtime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    for batch in (1, 3):
        images = torch.randn(batch, 3, 32, 32)
        (tokens,) = session.run(None, dict(images=images.numpy()))
        close(torch.from_numpy(tokens), encoder(images)[0], share=1e-4)
    metadata = {item.key: item.value for item in onnx.load(file).metadata_props}
    assert metadata['source'] == 'epoch_1.pth'


@torch.no_grad()
@pytest.mark.filterwarnings('ignore')
def test_an_encoder_fine_tuned_for_classification(tmp_path):
    timm, runtime = pytest.importorskip('timm'), pytest.importorskip('onnxruntime')
    options = dict(SQUARE, out_type='avg_featmap', final_norm=False, drop_path_rate=0.1)
    model = BootMAEViT(**{key: value for key, value in options.items() if key != 'type'})
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    state = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(5, 24)
    config = f'model = dict(backbone={options!r}, head=dict(num_classes=5))\n'
    torch.save(dict(state_dict=state, meta=dict(cfg=config)), tmp_path / 'ft.pth')
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    wanted = model(images)[0]
    encoder = read_encoder(tmp_path / 'ft.pth')
    close(encoder(images)[0], wanted)
    theirs = timm.create_model(
        f'local-dir:{export(encoder, "timm", tmp_path / "t", "ft.pth", preprocessing=PAPER)}', pretrained=True
    )
    close(theirs.eval()(images), wanted)
    session = runtime.InferenceSession(str(export(encoder, 'onnx', tmp_path / 'o', 'ft.pth', preprocessing=PAPER)))
    close(torch.from_numpy(session.run(['features'], dict(images=images.numpy()))[0]), wanted, share=1e-4)
    with pytest.raises(ConfigError, match='ViTModel has its norm before the mean.*--to timm'):
        export(encoder, 'hf', tmp_path / 'h', 'ft.pth', preprocessing=PAPER)


@torch.no_grad()
def test_another_epsilon_and_gray_images(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = tiny_config(backbone=dict(SQUARE, in_channels=1, norm_cfg=dict(type='LN', eps=1e-2)))
    config['data_preprocessor'] = dict(type='bootmae_mm.BootMAEDataPreprocessor', mean=[127.5], std=[127.5])
    torch.save(dict(state_dict=build(config).state_dict(), meta=dict(cfg=f'model = {config!r}\n')), tmp_path / 'x.pth')
    encoder = read_encoder(tmp_path / 'x.pth')
    preprocessing = read_preprocessing(tmp_path / 'x.pth', channels=1)
    assert preprocessing.mean == preprocessing.std == (0.5,)
    folder = export(encoder, 'hf', tmp_path / 'hf', 'x.pth', preprocessing)
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    images = torch.randn(2, 1, 32, 32)
    close(model(images).last_hidden_state, encoder(images)[0])
    with pytest.raises(ConfigError, match='norms of timm.* eps of 1e-6, those of this encoder 0.01'):
        export(encoder, 'timm', tmp_path / 't', 'x.pth', preprocessing=PAPER)


def test_a_url_is_exported_to_the_current_folder(tmp_path, monkeypatch, run_tool):
    save(tmp_path / 'epoch_1.pth')
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(
        'bootmae_mm.checkpoints.reading.local_file', lambda path: tmp_path / str(path).rsplit('/', 1)[1]
    )
    status, out, message = run_tool('export.py', 'https://host/x/epoch_1.pth', '--to', 'mmpretrain')
    assert status == 0, message
    assert (here / 'epoch_1_mmpretrain/mmpretrain.pth').is_file()
    assert f'-> {Path("epoch_1_mmpretrain/mmpretrain.pth")}' in out


def test_the_authors_checkpoint_with_a_config(tmp_path, run_tool):
    shape, backbone = SIZES['tiny']
    torch.save(official_checkpoint(**shape), tmp_path / 'theirs.pth')
    config = tmp_path / 'config.py'
    config.write_text(f"model = dict(backbone=dict(type='bootmae_mm.BootMAEViT', **{backbone!r}))\n")
    status, out, message = run_tool(
        'export.py', tmp_path / 'theirs.pth', '--to', 'timm', '--config', config, '--prefix', 'teacher.'
    )
    assert status == 0, message
    assert (tmp_path / 'theirs_timm/model.safetensors').is_file() and 'theirs_timm' in out
    status, _, message = run_tool('export.py', tmp_path / 'theirs.pth', '--to', 'hf')
    assert status == 1 and 'give a config (--config)' in message


def test_unsupported_encoders_and_targets(tmp_path, encoder, run_tool):
    seg = dict(SQUARE, layer_scale_init_value=1.0)
    config = tiny_config(backbone=seg)
    torch.save(dict(state_dict=build(config).state_dict(), meta=dict(cfg=f'model = {config!r}\n')), tmp_path / 'x.pth')
    status, _, message = run_tool('export.py', tmp_path / 'x.pth', '--to', 'timm')
    assert status == 1 and 'cannot be exported' in message and 'layers.0.attn.gamma1.weight' in message
    status, _, message = run_tool('export.py', tmp_path / 'none.pth', '--to', 'timm')
    assert status == 1 and 'no checkpoint' in message
    with pytest.raises(ConfigError, match=r"'jax'.*timm, hf, mmpretrain, onnx"):
        export(encoder, 'jax', tmp_path, '', PAPER)


MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture
def photograph(tmp_path):
    """A run with other statistics and bilinear resizing, and an image file."""
    config = tiny_config(backbone=dict(SQUARE))
    config['data_preprocessor'] = dict(type='bootmae_mm.BootMAEDataPreprocessor', mean=list(MEAN), std=list(STD))
    pipeline = [
        dict(type='ResizeEdge', scale=40, edge='short', backend='pillow', interpolation='bilinear'),
        dict(type='CenterCrop', crop_size=32),
    ]
    text = f'model = {config!r}\ntest_dataloader = dict(dataset=dict(pipeline={pipeline!r}))\n'
    torch.save(dict(state_dict=build(config).state_dict(), meta=dict(cfg=text)), tmp_path / 'run.pth')
    pixels = np.random.RandomState(0).randint(0, 255, (8, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((70, 56), Image.Resampling.BICUBIC).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


def own_features(folder, picture):
    """Features of the run's encoder for pixels that are preprocessed by hand."""
    pixels = (np.asarray(picture, dtype=np.float32) - np.float32(MEAN)) / np.float32(STD)
    return read_encoder(folder / 'run.pth')(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]


@torch.no_grad()
def test_timm_from_an_image_file_to_features(tmp_path, photograph, run_tool):
    timm = pytest.importorskip('timm')
    status, _, message = run_tool('export.py', tmp_path / 'run.pth', '--to', 'timm', '--out', tmp_path / 'timm')
    assert status == 0, message
    model = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = Image.open(photograph)
    found = model.forward_features(transform(picture)[None])
    resized = picture.resize((50, 40), Image.Resampling.BILINEAR).crop((9, 4, 41, 36))
    close(found, own_features(tmp_path, resized), share=1e-4)


@torch.no_grad()
def test_huggingface_from_an_image_file_to_features(tmp_path, photograph, run_tool):
    transformers = pytest.importorskip('transformers')
    status, _, message = run_tool('export.py', tmp_path / 'run.pth', '--to', 'hf', '--out', tmp_path / 'hf')
    assert status == 0, message
    model = transformers.ViTModel.from_pretrained(tmp_path / 'hf', add_pooling_layer=False).eval()
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / 'hf')
    picture = Image.open(photograph)
    found = model(**processor(picture, return_tensors='pt')).last_hidden_state
    close(found, own_features(tmp_path, picture.resize((32, 32), Image.Resampling.BILINEAR)), share=1e-4)


@pytest.mark.parametrize('target', ['mmpretrain', 'onnx'])
def test_statistics_in_the_metadata(tmp_path, photograph, run_tool, target):
    status, _, message = run_tool('export.py', tmp_path / 'run.pth', '--to', target, '--out', tmp_path / 'out')
    assert status == 0, message
    if target == 'onnx':
        onnx = pytest.importorskip('onnx')
        metadata = {item.key: item.value for item in onnx.load(tmp_path / 'out/encoder.onnx').metadata_props}
    else:
        metadata = torch.load(tmp_path / 'out/mmpretrain.pth', weights_only=True)['meta']
    found = json.loads(metadata['preprocessing'])
    assert found['mean'] == pytest.approx([value / 255 for value in MEAN])
    assert found['interpolation'] == 'bilinear' and found['crop_pct'] == 0.8


def test_statistics_of_other_channels(tmp_path, photograph):
    with pytest.raises(ConfigError, match='data_preprocessor.mean has 3 values, the encoder 4 channels'):
        read_preprocessing(tmp_path / 'run.pth', channels=4)


@pytest.mark.parametrize(
    ('steps', 'interpolation', 'crop'),
    [
        ([dict(type='ResizeEdge', scale=40), dict(type='CenterCrop', crop_size=32)], 'bilinear', 0.8),
        ([dict(type='mmpretrain.ResizeEdge', scale=32), dict(type='CenterCrop', crop_size=(32, 32))], 'bilinear', 1.0),
        ([dict(type='Resize', scale=(32, 32), interpolation='bicubic')], 'bicubic', 1.0),
        ([dict(type='bootmae_mm.LoadImage')], 'bicubic', 1.0),  # whole images
    ],
)
@pytest.mark.parametrize('wrapped', [True, False])
def test_preprocessing_is_that_of_the_evaluation_pipeline(tmp_path, steps, interpolation, crop, wrapped):
    dataset = dict(dataset=dict(pipeline=steps)) if wrapped else dict(pipeline=steps)
    train = dict(dataset=dict(pipeline=[dict(type='RandomResizedCrop', scale=32, interpolation='nearest')]))
    config = tmp_path / 'config.py'
    config.write_text(f'test_dataloader = dict(dataset={dataset!r})\ntrain_dataloader = {train!r}\n')
    found = read_preprocessing('unused.pth', config)
    assert (found.interpolation, found.crop_pct) == (interpolation, crop)


def test_a_preprocessor_without_statistics(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text('data_preprocessor = dict(num_classes=3)\n')
    found = read_preprocessing('unused.pth', config)
    assert found.mean == (0.0,) * 3 and found.std == (1 / 255,) * 3
