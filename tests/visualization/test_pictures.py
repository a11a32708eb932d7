"""Pictures: reconstructions and curves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bootmae_mm.validation import ConfigError
from bootmae_mm.visualization import draw_curves, draw_panels, feature_panels, read_scalars, reconstruct
from bootmae_mm.visualization.features import heat_colors, principal_colors
from bootmae_mm.visualization.reconstruction import shown_channels
from tests.conftest import build, random_batch, tiny_config


@pytest.mark.parametrize('normalize', ['channel', 'patch', 'none'])
def test_a_perfect_prediction_restores_the_image(model, normalize, monkeypatch):
    model.pixel_head.normalize = normalize
    batch = random_batch(batch=2)
    batch['inputs'] = batch['inputs'].clamp(-1, 1)
    ids = torch.cat([batch['ids_keep'], batch['ids_mask']], dim=1)
    perfect = model.pixel_head.target(batch['inputs'], ids)
    monkeypatch.setattr(model.pixel_head, 'forward', lambda tokens: perfect)
    panels = reconstruct(model, images=batch['inputs'], ids_keep=batch['ids_keep'], ids_mask=batch['ids_mask'])
    wanted = batch['inputs'] / 2 + 0.5
    for name in ('original', 'reconstruction', 'prediction'):
        torch.testing.assert_close(panels[name], wanted, rtol=0, atol=1e-5)


def test_contents_of_the_panels(model):
    batch = random_batch(batch=2)
    batch['inputs'] = batch['inputs'].clamp(-1, 1)
    panels = reconstruct(model, batch['inputs'], batch['ids_keep'], batch['ids_mask'])
    assert list(panels) == ['original', 'masked', 'reconstruction', 'prediction']
    for image in range(2):
        for patch in range(24):
            row, column = divmod(patch, 6)
            place = (image, slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            same = torch.equal(panels['reconstruction'][place], panels['original'][place])
            if patch in batch['ids_keep'][image]:
                assert same
                assert torch.equal(panels['masked'][place], panels['original'][place])
            else:
                assert not same
                torch.testing.assert_close(panels['masked'][place], torch.full((3, 8, 8), 0.5))
                assert torch.equal(panels['prediction'][place], panels['reconstruction'][place])


def test_a_picture_has_one_row_per_image_and_one_labeled_column_per_panel(model):
    batch = random_batch(batch=3)
    panels = reconstruct(model, batch['inputs'], batch['ids_keep'], batch['ids_mask'])
    picture = draw_panels(panels, names=['one.jpg', 'two.jpg', 'three.jpg'])
    assert picture.dtype == np.uint8 and picture.shape[0] == 24 + 3 * (128 + 6)  # 32 pixels enlarged 4 times
    assert picture[:24].min() < 100  # titles
    assert picture[24:, :40].min() < 100  # names
    plain = draw_panels(panels)
    original = plain[24 : 24 + 128, 6 : 6 + 192][::4, ::4]
    np.testing.assert_allclose(original / 255, panels['original'][0].permute(1, 2, 0), atol=0.003)
    assert draw_panels(panels, min_height=32).shape[0] == 24 + 3 * (32 + 6)
    assert draw_panels(panels, min_height=33).shape[0] == 24 + 3 * (64 + 6)


def test_a_model_without_pixel_branch_has_no_picture():
    config = tiny_config(pixel_head=None)
    config['neck']['pixel'] = None
    batch = random_batch()
    with pytest.raises(ConfigError, match='no pixel branch'):
        reconstruct(build(config), batch['inputs'], batch['ids_keep'], batch['ids_mask'])


def test_curves_of_a_resumed_run(tmp_path):
    for run, steps in (('20260101_000000', (1, 2, 3)), ('20260102_000000', (3, 4))):
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        lines = [
            dict(step=step, loss=step * (2.0 if run > '20260102' else 1.0), lr=0.1, ema_decay=0.99) for step in steps
        ]
        lines.append({'val/loss': 3.0, 'step': 9})
        half = '{"loss": 2.0, "st'  # the disk was full, or the run was killed
        (folder / 'scalars.json').write_text('\n'.join([*map(json.dumps, lines), half]))
    scalars = read_scalars(tmp_path)
    assert [(entry['step'], entry['loss']) for entry in scalars] == [(1, 1.0), (2, 2.0), (3, 6.0), (4, 8.0)]
    assert len(read_scalars(tmp_path, run='20260101_000000')) == 3
    path = draw_curves(scalars, tmp_path / 'curves.png')
    picture = np.asarray(Image.open(path).convert('L'))
    assert picture.shape[0] > 300 and (picture < 128).sum() > 1000


def test_chosen_channels_are_shown():
    images = torch.rand(2, 5, 8, 8)
    assert torch.equal(shown_channels(images), images[:, :3])
    assert torch.equal(shown_channels(images, (4, 2, 0)), images[:, [4, 2, 0]])
    assert torch.equal(shown_channels(images, [3]), images[:, [3, 3, 3]])
    assert torch.equal(shown_channels(images[:, :2]), images[:, [0, 0, 0]])
    picture = draw_panels({'original': images}, channels=[4, 2, 0], min_height=8)
    wanted = (images[0, [4, 2, 0]] * 255).round().byte().permute(1, 2, 0).numpy()
    assert (picture[24:32, 6:14] == wanted).all()
    for wrong in ((0, 1), (0, 1, 5), (-1,)):
        with pytest.raises(ConfigError, match='a picture shows one or three of the channels 0 to 4'):
            shown_channels(images, wrong)


def test_colors_are_the_principal_components_of_the_features():
    from sklearn.decomposition import PCA

    tokens = torch.randn(3, 20, 7) * torch.tensor([9.0, 4, 2, 0.1, 0.1, 0.1, 0.1])
    colors = principal_colors(tokens).flatten(0, 1).numpy()
    wanted = PCA(3).fit_transform(tokens.flatten(0, 1).numpy())
    for channel in range(3):
        inside = (colors[:, channel] > 0) & (colors[:, channel] < 1)
        assert inside.mean() > 0.9
        correlation = np.corrcoef(colors[inside, channel], wanted[inside, channel])[0, 1]
        assert abs(correlation) > 0.9999
        loading = np.corrcoef(colors[inside, channel], tokens.flatten(0, 1)[inside, channel])[0, 1]
        assert loading > 0.9  # the sign is that of the largest loading
    assert principal_colors(torch.randn(1, 2, 5)).shape == (1, 2, 3)


def test_panels_of_features_show_the_patches(model):
    model.eval()
    images = random_batch(batch=2)['inputs'].clamp(-1, 1)
    statistics = model.data_preprocessor
    panels = feature_panels(model.backbone, images, statistics.mean, statistics.std)
    torch.testing.assert_close(panels['image'], images / 2 + 0.5, rtol=0, atol=1e-6)
    maps = model.extract_feat(images, stage='backbone')[0]  # (B, D, rows, columns)
    colors = principal_colors(maps.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 6))
    attention = model.backbone.class_attention(model.backbone.encode_hidden(images)[-1]).mean(1).unflatten(1, (4, 6))
    for row, column in ((0, 0), (1, 5), (3, 2)):
        patch = (slice(None), slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        torch.testing.assert_close(
            panels['features'][patch], colors[:, :, row, column, None, None].expand(-1, -1, 8, 8)
        )
        wanted = heat_colors(attention.flatten(1))[:, 6 * row + column]
        torch.testing.assert_close(panels['attention'][patch], wanted[:, :, None, None].expand(-1, -1, 8, 8))
    assert heat_colors(torch.tensor([[0.0, 1, 2, 3]]))[0].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    page = draw_panels(panels, channels=[0])
    assert page.shape[2] == 3
