"""Loading an encoder from checkpoints of many origins, strictly."""

import http.server
import threading
from functools import partial

import pytest
import torch
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import init_default_scope
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed

from bootmae_mm.checkpoints.encoder import encoder_state, load_encoder
from bootmae_mm.checkpoints.names import to_timm
from bootmae_mm.checkpoints.official import state_to_project
from bootmae_mm.models import BootMAEViT
from bootmae_mm.models.relative_position import resize_bias_table
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.checkpoints.test_official import SIZES, official_checkpoint
from tests.conftest import TINY_ARCH, build, tiny_config

SQUARE = dict(type='bootmae_mm.BootMAEViT', arch=dict(TINY_ARCH), img_size=32, patch_size=8)


def vit(**changes):
    """A backbone for 4 x 4 patches, initialized through the config as a Runner does it."""
    model = BootMAEViT(**{**{key: value for key, value in SQUARE.items() if key != 'type'}, **changes})
    model.init_weights()
    return model


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of a pretraining run, and the model it came from."""
    model = build(tiny_config(backbone=dict(SQUARE)))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(1.0)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), tmp_path / 'epoch_1.pth')
    return tmp_path / 'epoch_1.pth', model


def equal(first, second, names=None):
    return all(torch.equal(first[name], second[name]) for name in names or second)


@pytest.mark.parametrize(('prefix', 'part'), [(None, 'backbone'), ('backbone.', 'backbone'), ('teacher.', 'teacher')])
def test_a_checkpoint_of_this_project(pretrained, prefix, part, caplog):
    path, model = pretrained
    loaded = vit(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix))
    assert equal(loaded.state_dict(), getattr(model, part).state_dict())


@pytest.mark.parametrize('kind', ['mmengine.Pretrained', PretrainedInit])
def test_every_name_of_pretrained_loads_strictly(pretrained, tmp_path, kind):
    path, model = pretrained
    loaded = vit(init_cfg=[dict(type=kind, checkpoint=str(path))])
    assert equal(loaded.state_dict(), model.backbone.state_dict())
    torch.save(dict(state_dict={'backbone.x': torch.zeros(1)}), tmp_path / 'empty.pth')
    with pytest.raises(ConfigError, match='does not fit the encoder'):
        vit(init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'empty.pth')))


def test_the_report_of_a_load(pretrained):
    path, model = pretrained
    encoder = vit(img_size=48, out_type='avg_featmap', layer_scale_init_value=0.5, rel_pos_bias=True)
    report = load_encoder(encoder, path)
    total = len(model.backbone.state_dict())
    assert report.resized == ['pos_embed'] and not report.missing and not report.unused
    # The norm of pooled features; in every block a table of relative positions and two layer scales.
    assert len(report.fresh) == 2 + 3 * 3
    line = str(report)
    assert f'{total} of {total} pretrained weights loaded from {path}, 1 of them resized (pos_embed)' in line
    assert '11 left at init' in line and '\n' not in line
    wanted = resize_pos_embed(model.backbone.pos_embed, (4, 4), (6, 6))
    torch.testing.assert_close(encoder.pos_embed, wanted)
    assert encoder.layers[0].attn.gamma1.weight.eq(0.5).all()


def test_without_class_token_its_position_embedding_is_dropped(pretrained):
    path, model = pretrained
    encoder = vit(with_cls_token=False, out_type='featmap', window_size=2)
    report = load_encoder(encoder, path)
    assert torch.equal(encoder.pos_embed, model.backbone.pos_embed[:, 1:])
    assert report.unused == ['cls_token'] and not report.resized
    torch.save(encoder.state_dict(), path)
    again = vit(with_cls_token=False, out_type='featmap', img_size=(32, 48))
    assert load_encoder(again, path).resized == ['pos_embed']
    torch.testing.assert_close(
        again.pos_embed, resize_pos_embed(encoder.pos_embed, (4, 4), (4, 6), num_extra_tokens=0), rtol=0, atol=0
    )


def test_a_position_embedding_is_tiled(pretrained):
    path, model = pretrained
    encoder = vit(img_size=(64, 32), pos_embed_tile=4)
    assert load_encoder(encoder, path).resized == ['pos_embed']
    own = model.backbone.pos_embed  # 4 x 4 patches
    assert torch.equal(encoder.pos_embed, torch.cat([own, own[:, 1:]], dim=1))
    halved = vit(img_size=(56, 72), pos_embed_tile=2)  # 7 x 9 patches; two tiles of the file repeat
    load_encoder(halved, path)
    assert torch.equal(halved.pos_embed[0, 1:].view(7, 9, -1)[4:6, 4:8], own[0, 1:].view(4, 4, -1)[:2])
    with pytest.raises(ConfigError, match='pos_embed_tile 3 must divide the grid of 4 x 4 patches of the weights'):
        load_encoder(vit(img_size=64, pos_embed_tile=3), path)
    # PyTorch's own loading, as of mmengine's load_from, tiles, too.
    plain = vit(img_size=64, pos_embed_tile=4)
    plain.load_state_dict(model.backbone.state_dict())
    assert torch.equal(plain.pos_embed[0, 1:].view(8, 8, -1)[4:, 4:].flatten(0, 1), own[0, 1:])
    # A fine-tuned encoder at another size.
    larger = vit(img_size=96, pos_embed_tile=4)
    larger.load_state_dict(plain.state_dict())
    assert torch.equal(larger.pos_embed[0, 1:].view(12, 12, -1)[8:, :4].flatten(0, 1), own[0, 1:])
    # What was trained on the whole grid stays.
    with torch.no_grad():
        encoder.pos_embed.normal_()
    torch.save(encoder.state_dict(), path)
    again = vit(img_size=(64, 32), pos_embed_tile=4)
    assert load_encoder(again, path, grid=(8, 4)).resized == []
    assert torch.equal(again.pos_embed, encoder.pos_embed)


def test_a_grid_that_is_not_square_must_be_given(tmp_path):
    model = build(tiny_config())  # 4 x 6 patches
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    with pytest.raises(ConfigError, match=r'pos_embed \(1, 25, 24\) instead of \(1, 65, 24\)'):
        load_encoder(vit(img_size=64), tmp_path / 'x.pth')
    encoder = vit(img_size=64)
    load_encoder(encoder, tmp_path / 'x.pth', grid=(4, 6))
    torch.testing.assert_close(encoder.pos_embed, resize_pos_embed(model.backbone.pos_embed, (4, 6), (8, 8)))


def test_a_given_grid_counts_even_if_the_number_of_patches_is_the_same(tmp_path):
    model = build(tiny_config())  # 4 x 6 patches
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    encoder = vit(img_size=(48, 32))  # 6 x 4
    report = load_encoder(encoder, tmp_path / 'x.pth', grid=(4, 6))
    assert report.resized == ['pos_embed']
    torch.testing.assert_close(encoder.pos_embed, resize_pos_embed(model.backbone.pos_embed, (4, 6), (6, 4)))


def test_tables_of_relative_positions_are_resized(tmp_path):
    small = vit(rel_pos_bias=True)
    for layer in small.layers:
        torch.nn.init.normal_(layer.attn.rel_pos_bias.relative_position_bias_table)
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in small.state_dict().items()}), tmp_path / 'x.pth')
    large = vit(rel_pos_bias=True, img_size=48)
    report = load_encoder(large, tmp_path / 'x.pth')
    assert len(report.resized) == 4 and not report.fresh
    table = small.layers[1].attn.rel_pos_bias.relative_position_bias_table
    wanted = resize_bias_table(table, (4, 4), (6, 6))
    assert torch.equal(large.layers[1].attn.rel_pos_bias.relative_position_bias_table, wanted)
    assert torch.equal(wanted[-3:], table[-3:]) and len(wanted) == 11 * 11 + 3


@pytest.mark.parametrize(('prefix', 'part'), [(None, 'model'), ('backbone.', 'model'), ('teacher.', 'model_ema')])
def test_the_authors_checkpoint(tmp_path, prefix, part):
    shape, backbone = SIZES['tiny']
    checkpoint = official_checkpoint(**shape)
    torch.save(checkpoint, tmp_path / 'theirs.pth')
    encoder = BootMAEViT(**backbone)
    assert '42 of 42 pretrained weights' in str(load_encoder(encoder, tmp_path / 'theirs.pth', prefix))
    wanted, _ = state_to_project(checkpoint[part])
    assert equal(encoder.state_dict(), {name[9:]: value for name, value in wanted.items() if 'backbone.' in name})
    assert torch.equal(encoder.layers[1].attn.qkv.bias[24:48], torch.zeros(24))


def test_mmpretrains_mae(tmp_path):
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    mae = MODELS.build(
        dict(
            type='MAE',
            backbone=dict(type='MAEViT', arch=dict(TINY_ARCH), img_size=32, patch_size=8, mask_ratio=0.75),
            neck=dict(
                type='MAEPretrainDecoder',
                num_patches=16,
                patch_size=8,
                embed_dim=24,
                decoder_embed_dim=16,
                decoder_depth=1,
                decoder_num_heads=2,
            ),
            head=dict(type='MAEPretrainHead', patch_size=8, loss=dict(type='PixelReconstructionLoss', criterion='L2')),
        )
    )
    mae.init_weights()
    torch.nn.init.normal_(mae.backbone.layers[0].attn.qkv.bias)
    torch.save(dict(state_dict=mae.state_dict(), meta={}), tmp_path / 'mae.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'mae.pth'), prefix='backbone.')
    encoder = vit(init_cfg=pretrained, out_type='raw').eval()
    assert equal(encoder.state_dict(), mae.backbone.state_dict())
    # Its keys have a bias, which softmax cancels, so the features are the same.
    plain = VisionTransformer(arch=dict(TINY_ARCH), img_size=32, patch_size=8, out_type='raw')
    plain.eval()
    plain.load_state_dict(mae.backbone.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images)[0], plain(images)[0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_in_timms_names_with_a_decoder(tmp_path, pretrained):
    _, model = pretrained
    state = to_timm(model.backbone.state_dict())
    state.update(mask_token=torch.zeros(1, 1, 8), **{'decoder_blocks.0.norm1.weight': torch.zeros(8)})
    torch.save(dict(model=state), tmp_path / 'mae_pretrain_vit.pth')
    encoder = vit()
    report = load_encoder(encoder, tmp_path / 'mae_pretrain_vit.pth')
    assert equal(encoder.state_dict(), model.backbone.state_dict())
    assert report.unused == ['decoder_blocks.0.norm1.weight', 'mask_token']


@pytest.mark.parametrize(
    ('prefix', 'changes', 'message'),
    [
        ('encoder.', {}, "no weight in .* has the prefix 'encoder.'; its keys look like"),
        ('neck.', {}, 'does not fit the encoder: 42 of 42 weights missing'),
        ('', {}, '42 of 42 weights missing'),
        ('backbone.', dict(arch={**TINY_ARCH, 'num_layers': 4}), "12 of 54 weights missing .*'layers.3.ln1.weight'"),
        (
            'backbone.',
            dict(arch={**TINY_ARCH, 'embed_dims': 48}),
            r'39 of another shape .*cls_token \(1, 1, 24\) instead of \(1, 1, 48\)',
        ),
        ('backbone.', dict(patch_size=16), r'projection.weight \(24, 3, 8, 8\) instead of \(24, 3, 16, 16\)'),
    ],
    ids=['unknown prefix', 'prefix of another part', 'no prefix', 'deeper', 'wider', 'other patch'],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(pretrained, prefix, changes, message):
    path, _ = pretrained
    with pytest.raises(ConfigError, match=message):
        vit(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix), **changes)


def test_min_share(pretrained):
    path, model = pretrained
    deeper = dict(arch={**TINY_ARCH, 'num_layers': 4})
    pretrained = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    encoder = vit(init_cfg=dict(**pretrained, min_share=42 / 54), **deeper)
    assert equal(encoder.state_dict(), model.backbone.state_dict())
    with pytest.raises(ConfigError, match='min_share=0.8'):
        vit(init_cfg=dict(**pretrained, min_share=0.8), **deeper)
    with pytest.raises(ConfigError, match='min_share must be less than or equal to 1, but is 80'):
        vit(init_cfg=dict(**pretrained, min_share=80), **deeper)
    with pytest.raises(ConfigError, match="min_share must be a valid number, but is 'all'"):
        vit(init_cfg=dict(**pretrained, min_share='all'), **deeper)
    with pytest.raises(ConfigError, match='does not fit'):  # a checkpoint without any of the weights is never enough
        vit(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='neck.', min_share=0.0))


def test_bad_paths(tmp_path):
    with pytest.raises(MissingFileError, match='no checkpoint nowhere.pth'):
        vit(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth'))
    with pytest.raises(ConfigError, match='x.pth.*http.*https'):
        encoder_state('s3://bucket/x.pth')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(MissingFileError, match='empty/model.safetensors'):
        encoder_state(tmp_path / 'empty')
    with pytest.raises(TypeError, match='chekpoint'):
        vit(init_cfg=dict(type='Pretrained', chekpoint='x.pth'))


def test_a_checkpoint_behind_a_url(pretrained, tmp_path, monkeypatch):
    path, model = pretrained
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(path.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/{path.name}'
        assert equal(vit(init_cfg=dict(type='Pretrained', checkpoint=url)).state_dict(), model.backbone.state_dict())
        with pytest.raises(ConfigError, match='cannot read .*none.pth'):
            encoder_state(url.replace(path.name, 'none.pth'))
        server.shutdown()
    assert encoder_state(url)  # from the cache


@torch.no_grad()
@pytest.mark.parametrize('kind', ['ViTModel', 'ViTMAEModel', 'ViTMAEForPreTraining', 'ViTForImageClassification'])
def test_checkpoints_of_transformers(tmp_path, kind):
    """A folder, or the safetensors file in it; features are those of transformers on the same weights."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTMAEConfig if 'MAE' in kind else transformers.ViTConfig
    options = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48, image_size=32)
    options |= dict(patch_size=8, layer_norm_eps=1e-6, qkv_bias=True)
    if 'MAE' in kind:
        options |= dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
        options |= dict(decoder_intermediate_size=16, mask_ratio=0.0)
    theirs = getattr(transformers, kind)(config(**options)).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path / 'theirs')
    images = torch.randn(2, 3, 32, 32)
    inner = getattr(theirs, 'vit', theirs)
    if 'MAE' in kind:  # it shuffles the patches, so its blocks and norm are applied to tokens in order here
        embedded = inner.embeddings.patch_embeddings(images) + inner.embeddings.position_embeddings[:, 1:]
        first = inner.embeddings.cls_token + inner.embeddings.position_embeddings[:, :1]
        tokens = torch.cat([first.expand(2, -1, -1), embedded], dim=1)
        wanted = inner.layernorm(inner.encoder(tokens)[0])
    else:
        wanted = inner(images).last_hidden_state
    for path in (tmp_path / 'theirs', tmp_path / 'theirs/model.safetensors'):
        encoder = vit(init_cfg=dict(type='Pretrained', checkpoint=str(path)), out_type='raw')
        encoder.eval()
        found = encoder(images)[0]
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_broken_safetensors_file(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'nothing')
    with pytest.raises(ConfigError, match='x.safetensors is not a safetensors file'):
        encoder_state(tmp_path / 'x.safetensors')
