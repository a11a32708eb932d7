"""An encoder with its preprocessing, against the parts that it is made of."""

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

import bootmae_mm
from bootmae_mm.config import load_config
from bootmae_mm.export.preprocessing import Preprocessing
from bootmae_mm.features import Encoder
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import ROOT, TINY_ARCH, build, write_images
from tests.features.runs import write_checkpoint


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('encoder'))


def test_tokens_are_those_of_the_backbone(checkpoint):
    path, model = checkpoint
    encoder = bootmae_mm.load_encoder(path)
    assert isinstance(encoder, Encoder) and not encoder.training
    assert (encoder.embed_dims, encoder.img_size, encoder.grid_size, encoder.channels) == (24, (32, 48), (4, 6), 3)
    images = torch.randn(2, 3, 32, 48)
    tokens = encoder(images)
    expected = model.backbone.encode_patches(images, torch.arange(24).expand(2, -1), norm=True)
    torch.testing.assert_close(tokens.patches, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.mean, expected.mean(dim=1), rtol=1e-5, atol=1e-5)
    latent, _ = model.backbone.encode_visible(images, torch.arange(24).expand(2, -1))  # (B, 1 + L, D), all visible
    torch.testing.assert_close(tokens.cls, latent[:, 0], rtol=1e-5, atol=1e-5)
    assert tokens.patches.requires_grad


def test_the_teacher_is_another_encoder(checkpoint):
    path, model = checkpoint
    images = torch.randn(1, 3, 32, 48)
    teacher = bootmae_mm.load_encoder(path, prefix='teacher.')
    expected = model.teacher.encode_patches(images, torch.arange(24).expand(1, -1), norm=True)
    torch.testing.assert_close(teacher(images).patches, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(bootmae_mm.load_encoder(path)(images).patches, expected, atol=1e-3)


def test_every_form_of_a_picture_gives_the_same(checkpoint, tmp_path):
    encoder = bootmae_mm.load_encoder(checkpoint[0])
    folder = write_images(tmp_path, 2, (50, 70))
    files = sorted(folder.rglob('*.png'))
    pictures = [Image.open(file) for file in files]
    arrays = [np.asarray(picture) for picture in pictures]
    expected = encoder(files).mean
    assert expected.shape == (2, 24)
    for images in (pictures, arrays, torch.stack([encoder.preprocess(file) for file in files])):
        torch.testing.assert_close(encoder(images).mean, expected)
    torch.testing.assert_close(encoder(pictures[1]).mean, expected[1:])
    small = torch.from_numpy(np.stack([array[:32, :48] for array in arrays])).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(small).mean, encoder((small.float() - 127.5) / 127.5).mean)


@pytest.mark.parametrize('size', [(300, 500), (500, 301), (100, 90), (256, 256)])
def test_pixels_are_those_of_the_test_pipeline(size, tmp_path):
    """The pipeline of the configs, by mmpretrain's ResizeEdge and CenterCrop."""
    init_default_scope('mmpretrain')
    cfg = load_config(ROOT / 'configs/pretrain/bootmae_vitb.py', {'model.backbone.arch': 't'})
    file = next(write_images(tmp_path, 1, size).rglob('*.png'))
    expected = Compose(cfg.test_pipeline)(dict(img_path=str(file)))['inputs']
    path = write_checkpoint(tmp_path, img_size=(224, 224), patch_size=16, pipeline=cfg.test_pipeline)[0]
    encoder = bootmae_mm.load_encoder(path)
    assert encoder.preprocessing.crop_pct == 0.875
    torch.testing.assert_close(encoder.preprocess(file), (expected.float() - 127.5) / 127.5)


def test_pictures_are_prepared_on_the_device_of_the_encoder(checkpoint, tmp_path):
    file = next(write_images(tmp_path, 1, (40, 60)).rglob('*.png'))
    assert bootmae_mm.load_encoder(checkpoint[0]).to('meta').preprocess(file).device.type == 'meta'


def test_orientation_and_transparency_are_handled_as_in_training(checkpoint, tmp_path):
    encoder = bootmae_mm.load_encoder(checkpoint[0])
    file = next(write_images(tmp_path, 1, (50, 70)).rglob('*.png'))
    picture = Image.open(file)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show it upright
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.jpg', exif=exif, quality=100, subsampling=0)
    turned = encoder.preprocess(Image.open(tmp_path / 'turned.jpg'))
    assert (turned - encoder.preprocess(file)).abs().mean() < 0.02  # of 2
    torch.testing.assert_close(encoder.preprocess(picture.convert('RGBA')), encoder.preprocess(picture))


@pytest.mark.parametrize(
    'images, message',
    [
        (torch.zeros(1, 3, 32, 32), r"a batch must be \('B', 3, 32, 48\), but is \(1, 3, 32, 32\)"),
        (torch.zeros(3, 32, 48), 'a batch must be'),
        (np.zeros((40, 60, 3)), 'float64 pixels need value_range'),
        (np.zeros((40, 60, 5), np.uint8), 'the image has 5 channels, not 3'),
        (np.zeros(40, np.uint8), r'an array must be \(height, width, channels\), but is \(40,\)'),
        ([], 'the list of pictures is empty'),
    ],
)
def test_wrong_images_are_refused(checkpoint, images, message):
    encoder = bootmae_mm.load_encoder(checkpoint[0])
    with pytest.raises(ConfigError, match=message):
        encoder(images)


def test_missing_files_are_named(checkpoint, tmp_path):
    with pytest.raises(MissingFileError, match='no image nowhere.png'):
        bootmae_mm.load_encoder(checkpoint[0]).preprocess('nowhere.png')
    with pytest.raises(MissingFileError, match=f'no checkpoint in {tmp_path}'):
        bootmae_mm.load_encoder(tmp_path)
    with pytest.raises(MissingFileError, match='no checkpoint nowhere.pth'):
        bootmae_mm.load_encoder('nowhere.pth')


def test_a_norm_after_the_mean_is_applied_to_the_mean(tmp_path):
    """Of an encoder fine-tuned for classification."""
    config = dict(
        type='bootmae_mm.BootMAEViT',
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
        final_norm=False,
    )
    backbone = build(config)
    path, _ = write_checkpoint(tmp_path, backbone=backbone, config=config)
    images = torch.randn(2, 3, 32, 32)
    encoder = bootmae_mm.load_encoder(path)
    torch.testing.assert_close(encoder(images).mean, backbone(images)[0])


def test_a_fourth_channel_does_not_change_the_others(tmp_path):
    backbone = dict(type='bootmae_mm.BootMAEViT', arch=dict(TINY_ARCH), img_size=32, patch_size=8, in_channels=4)
    preprocessing = Preprocessing(mean=(0.5,) * 4, std=(0.5,) * 4)
    encoder = Encoder(build(backbone), preprocessing)
    pixels = np.full((60, 90, 4), 200, np.uint8)
    pixels[:, :, 3] = 0
    assert encoder.resized(pixels)[:, :, :3].min() == 200
