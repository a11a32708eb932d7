"""The authors' fine-tuned classifiers, against an independent implementation of their forward pass."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope

from bootmae_mm.checkpoints.official_classifier import classifier_to_project, is_official_classifier
from bootmae_mm.config import load_config
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT, write_images


def official_state(dims=24, depth=3, classes=5, grid=4, patch=8):
    """Weights as ``modeling_finetune_bootmae.py`` of the authors has them: 164 tensors for ViT-B, 320 for ViT-L."""
    shapes = {
        'cls_token': (1, 1, dims),
        'pos_embed': (1, grid * grid + 1, dims),
        'patch_embed.proj.weight': (dims, 3, patch, patch),
        'patch_embed.proj.bias': (dims,),
        'fc_norm.weight': (dims,),
        'fc_norm.bias': (dims,),
        'head.weight': (classes, dims),
        'head.bias': (classes,),
    }
    for index in range(depth):
        block = f'blocks.{index}.'
        for norm in ('norm1', 'norm2'):
            shapes |= {f'{block}{norm}.weight': (dims,), f'{block}{norm}.bias': (dims,)}
        shapes |= {f'{block}attn.q_bias': (dims,), f'{block}attn.v_bias': (dims,)}
        shapes[f'{block}attn.qkv.weight'] = (3 * dims, dims)
        shapes |= {f'{block}attn.proj.weight': (dims, dims), f'{block}attn.proj.bias': (dims,)}
        shapes |= {f'{block}mlp.fc1.weight': (4 * dims, dims), f'{block}mlp.fc1.bias': (4 * dims,)}
        shapes |= {f'{block}mlp.fc2.weight': (dims, 4 * dims), f'{block}mlp.fc2.bias': (dims,)}
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


def official_logits(state, images, depth=3, heads=3):
    """Patch tokens of the last block -> mean -> fc_norm -> head."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], 1e-6)

    x = F.conv2d(images, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=8)
    x = torch.cat([state['cls_token'].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + state['pos_embed']
    for index in range(depth):
        block = f'blocks.{index}'
        q_bias, v_bias = state[f'{block}.attn.q_bias'], state[f'{block}.attn.v_bias']
        bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        qkv = F.linear(norm(x, f'{block}.norm1'), state[f'{block}.attn.qkv.weight'], bias)
        q, k, v = qkv.reshape(len(x), x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        out = attention.transpose(1, 2).flatten(2)
        x = x + F.linear(out, state[f'{block}.attn.proj.weight'], state[f'{block}.attn.proj.bias'])
        hidden = F.gelu(
            F.linear(norm(x, f'{block}.norm2'), state[f'{block}.mlp.fc1.weight'], state[f'{block}.mlp.fc1.bias'])
        )
        x = x + F.linear(hidden, state[f'{block}.mlp.fc2.weight'], state[f'{block}.mlp.fc2.bias'])
    return F.linear(norm(x[:, 1:].mean(1), 'fc_norm'), state['head.weight'], state['head.bias'])


def forms(state):
    """Checkpoints in every form that the authors' programs write."""
    average = {name: value + 0.1 for name, value in state.items()}
    half = {name: value.half() for name, value in state.items()}
    return {
        'model': dict(model=state, epoch='best', args=argparse.Namespace(lr=5e-3)),
        'model_ema': dict(model=state, model_ema=average, optimizer={}, epoch=99),
        'module': dict(module=half, optimizer={}, csr_tensor_module_names=set(), global_steps=7),
        '': dict(state),
    }


@torch.no_grad()
@pytest.mark.parametrize('form', ['model', 'model_ema', 'module', ''])
def test_logits_of_every_form(tmp_path, form, run_tool):
    state = official_state()
    checkpoint = forms(state)[form]
    torch.save(checkpoint, tmp_path / 'theirs.pth')
    status, out, message = run_tool('convert_official.py', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert status == 0, message
    assert f'({form or "the file itself"})' in out
    init_default_scope('mmpretrain')
    model = load_config(ROOT / 'configs/cls/bootmae_vitb_ft_100e.py').model
    arch = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=96)
    model.backbone.update(arch=arch, img_size=32, patch_size=8, drop_path_rate=0.0, init_cfg=None)
    model.head.update(num_classes=5, in_channels=24)
    model.train_cfg = None
    classifier = MODELS.build(model).eval()
    classifier.load_state_dict(torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict'])
    bias = classifier.backbone.layers[0].attn.qkv.bias
    assert (bias[24:48] == 0).all() and (bias[:24] != 0).all()  # no output depends on it
    images = torch.randn(2, 3, 32, 32)
    source = {name: value.float() for name, value in (checkpoint[form] if form else state).items()}
    wanted = official_logits(source, images)
    found = classifier.head(classifier.extract_feat(images))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ('config', 'dims', 'depth', 'count'), [('vitb_ft_100e', 768, 12, 164), ('vitl_ft_50e', 1024, 24, 320)]
)
def test_shapes_of_the_published_models(config, dims, depth, count):
    with torch.device('meta'):
        state = official_state(dims, depth, 1000, 14, 16)
        assert len(state) == count and is_official_classifier(dict(model=state))
        converted = classifier_to_project(dict(model=state)).checkpoint['state_dict']
        init_default_scope('mmpretrain')
        cfg = load_config(ROOT / f'configs/cls/bootmae_{config}.py').model
        cfg.data_preprocessor = None
        wanted = MODELS.build(cfg).state_dict()
    assert {name: value.shape for name, value in converted.items()} == {name: v.shape for name, v in wanted.items()}


def test_conversion_and_evaluation(tmp_path, run_tool):
    """From the authors' file to an accuracy, with the two commands in the docs."""
    state = official_state(classes=2)
    torch.save(dict(model=state), tmp_path / 'theirs.pth')
    assert run_tool('convert_official.py', tmp_path / 'theirs.pth', tmp_path / 'ours.pth', '--quiet')[0] == 0
    write_images(tmp_path / 'data/val', 8)
    options = (
        "model.backbone.arch={'embed_dims':24,'num_layers':3,'num_heads':3,'feedforward_channels':96}",
        *('model.backbone.img_size=32', 'model.backbone.patch_size=8', 'model.head.in_channels=24'),
        *('model.head.num_classes=2', 'model.data_preprocessor.num_classes=2', 'test_evaluator.topk=(1,)'),
        *('test_dataloader.num_workers=0', 'test_dataloader.dataset.pipeline.1.scale=36'),
        *('test_dataloader.dataset.pipeline.2.crop_size=32', f'data_root={tmp_path / "data"}'),
    )
    config = ROOT / 'configs/cls/bootmae_vitb_ft_100e.py'
    arguments = (config, tmp_path / 'ours.pth', '--work-dir', tmp_path / 'work', '--out', tmp_path / 'out.json')
    status, _, message = run_tool('test.py', *arguments, '--cfg-options', *options)
    assert status == 0, message
    assert 'accuracy/top1' in (tmp_path / 'out.json').read_text()


def test_other_checkpoints_are_refused():
    state = official_state()
    assert not is_official_classifier(dict(model={'blocks.0.attn.q_bias': torch.zeros(1)}))
    with pytest.raises(
        ConfigError, match="no weights of a classifier of the authors under module; the file has .'model'"
    ):
        classifier_to_project(dict(model=state), 'module')
    with pytest.raises(ConfigError, match="unknown key 'norm.weight'"):
        classifier_to_project(dict(model={**state, 'norm.weight': torch.zeros(24)}))
