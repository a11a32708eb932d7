"""The algorithm: losses, gradients, teachers, and what it refuses."""

from collections import Counter

import pytest
import torch

from bootmae_mm.models import BootMAEDataPreprocessor
from bootmae_mm.models.block import EncoderBlock
from bootmae_mm.models.losses import loss_weights
from bootmae_mm.models.neck import DecoderBlock
from bootmae_mm.models.step import Step
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import TINY_ARCH, build, random_batch, tiny_config


def test_losses_by_hand(model, batch):
    losses = model.loss(**batch)
    latent, context = model.backbone.encode_visible(batch['inputs'], batch['ids_keep'], {0, 2})
    decoded = model.neck(latent, context, batch['ids_mask'])
    weights = loss_weights(batch['ids_mask'], (4, 6))
    pixels = model.pixel_head.target(batch['inputs'], batch['ids_mask'])
    features = model.teacher.encode_patches(batch['inputs'], batch['ids_mask'])
    for name, target in dict(pixel=pixels, feature=features).items():
        head = model.heads[name]
        for key, value in head.loss(decoded[name], target, weights)[1].items():
            torch.testing.assert_close(losses.pop(f'{name}_{key}'), value)
    assert not losses


def test_total_is_the_weighted_sum_and_single_losses_are_logged_unweighted(model, batch):
    model.pixel_weight, model.feature_weight = 0.5, 0.25
    losses = model.loss(**batch)
    total, log = model.parse_losses(losses)
    torch.testing.assert_close(total, 0.5 * losses['pixel_loss'] + 0.25 * losses['feature_loss'])
    assert log['pixel_loss'] == losses['pixel_loss']
    assert log['loss'] == total
    assert not any(value.requires_grad for value in log.values())


def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(model, batch):
    total, _ = model.parse_losses(model.loss(**batch))
    total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith('teacher.') or name == 'backbone.pos_embed':
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_activation_checkpointing_saves_memory_and_keeps_gradients(batch, dtype):
    """In the student and in the decoders: fewer bytes for the backward pass, the same loss and gradients."""
    results = []
    for student, decoders in ((False, False), (True, False), (True, True)):
        config = tiny_config()
        config['backbone']['drop_path_rate'] = 0.5
        config['backbone']['with_cp'], config['neck']['with_cp'] = student, decoders
        torch.manual_seed(1)
        model = build(config).train()
        kept: dict[int, int] = {}
        runs: Counter = Counter()
        for name, module in model.named_modules():
            if isinstance(module, (EncoderBlock, DecoderBlock)) and not name.startswith('teacher'):
                module.register_forward_pre_hook(lambda *_, name=name, runs=runs: runs.update([name]))

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            total, _ = model.parse_losses(model.loss(**batch))
        total.backward()
        assert len(runs) == 3 + 2 + 2
        assert all(times == 1 + (student if 'backbone' in name else decoders) for name, times in runs.items()), runs
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        results.append((total.detach(), sum(kept.values()), gradients))
    (total, most, wanted), *others = results
    assert len(wanted) > 40
    for loss, _, gradients in others:
        assert torch.equal(loss, total) and gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], msg=name)
    assert results[2][1] < 0.9 * results[1][1] and results[1][1] < 0.9 * most, [kept for _, kept, _ in results]


def test_every_part_is_initialized_as_the_authors_do():
    model = MODELS.build(tiny_config())
    model.init_weights()
    for name, decoder in model.neck.decoders.items():
        assert 0 < decoder.mask_token.abs().max() <= 0.02, name
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.bias.abs().max() == 0, name
            fan_out, fan_in = module.weight.shape
            if name.endswith('qkv'):
                fan_out //= 3
            elif name.endswith('self_attn.kv'):
                fan_out //= 2
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, name


def test_teacher_starts_as_the_student_and_stays_in_eval_mode():
    model = build(tiny_config())
    for other, own in zip(model.teacher.parameters(), model.backbone.parameters(), strict=True):
        if own.dim() > 1:  # 1-D ones were changed by `build`
            assert torch.equal(other, own)
    model.train()
    assert model.backbone.training and not model.teacher.training
    model.reset_teacher()
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), model.backbone.parameters(), strict=True))


def test_order_of_masked_patches_does_not_change_the_losses(model, batch):
    losses = model.loss(**batch)
    shuffled = dict(batch, ids_mask=batch['ids_mask'].flip(1), ids_keep=batch['ids_keep'].flip(1))
    for name, value in model.loss(**shuffled).items():
        torch.testing.assert_close(value, losses[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('missing', ['pixel', 'feature'])
def test_a_model_with_one_branch(missing, batch):
    config = tiny_config(**{f'{missing}_head': None})
    config['neck'][missing] = None
    model = build(config)
    losses = model.loss(**batch)
    assert f'{missing}_loss' not in losses
    total, _ = model.parse_losses(losses)
    assert total == losses['feature_loss' if missing == 'pixel' else 'pixel_loss']
    assert hasattr(model, 'teacher') == (missing == 'pixel')
    assert model.has_momentum_teacher == (missing == 'pixel')


@pytest.mark.parametrize(
    'config',
    [
        tiny_config(teacher_norm=True),
        tiny_config(
            feature_head=dict(
                type='bootmae_mm.BootMAEFeatureHead', target=dict(type='bootmae_mm.TeacherTarget', norm=True)
            )
        ),
    ],
    ids=['of the model', 'of the target'],
)
def test_target_after_the_norm(config, batch):
    model = build(config)
    before = model.teacher.encode_patches(batch['inputs'], batch['ids_mask'])
    target = model.feature_head.target(batch['inputs'], batch['ids_mask'], Step(model.teacher_view(batch['inputs'])))
    torch.testing.assert_close(target, model.teacher.ln1(before))


@pytest.mark.parametrize('masked', [1, 23])
def test_extreme_numbers_of_masked_patches(model, masked):
    losses = model.loss(**random_batch(batch=1, masked=masked))
    assert all(torch.isfinite(value) for value in losses.values())


def frozen(tmp_path, prefix='backbone.', **changes):
    source = build(tiny_config())
    state = {f'{prefix}{name}': value for name, value in source.backbone.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'mae.pth')
    return source, tiny_config(teacher=dict(checkpoint=str(tmp_path / 'mae.pth'), **changes))


def test_frozen_teacher_loads_its_checkpoint(tmp_path, batch):
    source, config = frozen(tmp_path)
    model = build(config)
    assert not model.has_momentum_teacher
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, source.backbone.state_dict()[name]), name
    assert model.loss(**batch)['feature_loss'].isfinite()


def test_frozen_teacher_may_be_wider(tmp_path, batch):
    wide = dict(TINY_ARCH, embed_dims=36)
    source = build(tiny_config(backbone=dict(tiny_config()['backbone'], arch=wide)))
    torch.save({f'backbone.{k}': v for k, v in source.backbone.state_dict().items()}, tmp_path / 'wide.pth')
    model = build(tiny_config(teacher=dict(checkpoint=str(tmp_path / 'wide.pth'), backbone=dict(arch=wide))))
    assert model.feature_head.projection.out_features == 36
    assert model.loss(**batch)['feature_loss'].isfinite()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(prefix='encoder.'), 'prefix'),
        (dict(backbone=dict(arch=dict(TINY_ARCH, num_layers=4))), 'does not fit'),
        (
            dict(backbone=dict(img_size=32)),
            r'teacher.backbone must have the .*\(4, 6\).* of the student.*, but has \(4, 4\)',
        ),
        (dict(path='x'), r"teacher has unknown option\(s\) \['path'\]; valid options: checkpoint, prefix, backbone"),
        (dict(backbone=3), 'teacher.backbone must be a valid dictionary, but is 3'),
    ],
)
def test_wrong_frozen_teacher(tmp_path, changes, message):
    _, config = frozen(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        build(config)


def test_missing_checkpoint_of_the_frozen_teacher(tmp_path):
    with pytest.raises(MissingFileError, match='nowhere.pth'):
        build(tiny_config(teacher=dict(checkpoint=str(tmp_path / 'nowhere.pth'))))


def test_decoder_and_head_of_a_branch_come_together():
    for name in ('pixel', 'feature'):
        message = f'neck.{name} and {name}_head must both be set or both be None'
        with pytest.raises(ConfigError, match=message):
            build(tiny_config(**{f'{name}_head': None}))
        config = tiny_config()
        config['neck'][name] = None
        with pytest.raises(ConfigError, match=message):
            build(config)


def test_a_teacher_needs_the_feature_branch():
    config = tiny_config(feature_head=None, teacher=dict(checkpoint='x'))
    config['neck']['feature'] = None
    with pytest.raises(ConfigError, match='teacher needs a branch that uses its features'):
        build(config)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(pixel_weight=-1), 'pixel_weight must be greater than or equal to 0, but is -1'),
        (dict(feature_weight=float('nan')), 'feature_weight must be a finite number, but is nan'),
        (dict(teacher_norm=1), 'teacher_norm must be a valid boolean, but is 1'),
        (dict(weight_mask='no'), "weight_mask must be a valid boolean, but is 'no'"),
        (dict(pixel_wieght=1.0), 'pixel_wieght is not a valid option; valid options: .*NAME_weight'),
    ],
)
def test_impossible_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_config(**changes))


def test_channels_of_backbone_and_preprocessor_agree():
    config = tiny_config()
    config['backbone']['in_channels'] = 1
    with pytest.raises(ConfigError, match='in_channels of the backbone is 1, but .* data_preprocessor have 3'):
        build(config)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda b: b.update(ids_mask=b['ids_mask'][:, :-1]),
            r'\(3, 7\) and ids_mask \(3, 16\) .* = 4 x 6 = 24 patches',
        ),
        (
            lambda b: b.update(ids_mask=torch.cat([b['ids_keep'], b['ids_mask']], 1), ids_keep=b['ids_keep'][:, :0]),
            r'ids_keep \(3, 0\) and ids_mask \(3, 24\)',
        ),
        (
            lambda b: b.update(ids_keep=torch.cat([b['ids_keep'], b['ids_mask']], 1), ids_mask=b['ids_mask'][:, :0]),
            r'ids_keep \(3, 24\) and ids_mask \(3, 0\)',
        ),
        (lambda b: b.update(ids_keep=b['ids_keep'][:2]), r'ids_keep \(2, 7\) and ids_mask \(3, 17\)'),
        (lambda b: b.update(inputs=b['inputs'][:2]), 'for a multiple of 2 images'),
        (lambda b: b.update(ids_keep=b['ids_keep'][:0], ids_mask=b['ids_mask'][:0]), r'ids_keep \(0, 7\)'),
        (lambda b: b.update(inputs=b['inputs'][:, :, :-8]), r'have the shape \(batch, channels, 32, 48\) \(img_size'),
    ],
)
def test_wrong_batches(model, batch, change, message):
    change(batch)
    with pytest.raises(ConfigError, match=message):
        model.loss(**batch)


def test_modes(model, batch):
    assert model(batch['inputs'], mode='tensor')[0].shape == (3, 24)  # the class token
    assert model(**batch, mode='predict')[0]['batch_size'] == 3
    assert model(**batch, mode='loss').keys() >= {'pixel_loss', 'feature_loss'}
    with pytest.raises(AssertionError, match='train'):
        model(**batch, mode='train')
    for mode in ('loss', 'predict'):
        with pytest.raises(ConfigError, match='no mask in the batch.*masking='):
            model(batch['inputs'], mode=mode)


def test_preprocessor_normalizes_uint8(model):
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=images, ids_keep=1))
    torch.testing.assert_close(data['inputs'], images.float() / 127.5 - 1)
    assert data['ids_keep'] == 1


@pytest.mark.parametrize(
    ('inputs', 'found'),
    [
        ([torch.zeros(3, 4, 4)], 'list'),
        (torch.zeros(3, 4, 4), r'\(3, 4, 4\)'),
        (torch.zeros(2, 1, 4, 4), r'\(2, 1, 4, 4\)'),
        (None, 'NoneType'),
    ],
)
def test_preprocessor_refuses_other_inputs(model, inputs, found):
    with pytest.raises(
        ConfigError, match=rf'inputs must be images of shape \(B, 3, H, W\).* but are {found};.*collate'
    ):
        model.data_preprocessor(dict(inputs=inputs))


def test_impossible_statistics_of_the_preprocessor():
    for options, message in (
        (dict(std=(1.0, 0, 1.0)), 'std.1 must be greater than 0, but is 0'),
        (dict(mean=(1.0, 2.0)), 'mean and std must have one number per channel, but have 2 and 3'),
        (dict(mean=127.5), 'mean must be .*, but is 127.5'),
    ):
        with pytest.raises(ConfigError, match=message):
            BootMAEDataPreprocessor(**options)


def test_bf16_autocast_stays_close(model, batch):
    losses = model.loss(**batch)
    with torch.autocast('cpu', torch.bfloat16):
        low = model.loss(**batch)
    for name in ('pixel_loss', 'feature_loss'):
        assert low[name].dtype == torch.float32
        torch.testing.assert_close(low[name], losses[name], rtol=0.03, atol=0)


def test_several_masks_per_image_share_one_target(model):
    """Losses and gradients are those of repeated images; the teacher sees each image once."""
    batch = random_batch()
    other = random_batch()
    both = {name: torch.stack([batch[name], other[name]], dim=1).flatten(0, 1) for name in ('ids_keep', 'ids_mask')}
    repeated = model.loss(batch['inputs'].repeat_interleave(2, 0), **both)
    model.parse_losses(repeated)[0].backward()
    wanted = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    seen = []
    hook = model.teacher.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    losses = model.loss(batch['inputs'], **both)
    hook.remove()
    assert seen == [3]
    assert losses.keys() == repeated.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, repeated[name])
    model.parse_losses(losses)[0].backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


def test_names_of_branches():
    for name, message in (('soft_target', 'does not end in _target'), ('a-b', 'must have the name of a variable')):
        config = tiny_config()
        config['neck'][name] = dict(width=16)
        config[f'{name}_head'] = dict(type='bootmae_mm.BootMAEHead', target=dict(type='bootmae_mm.HOGTarget'))
        with pytest.raises(ConfigError, match=message):
            build(config)


def test_any_head_may_predict_pixels(batch):
    config = tiny_config()
    config['pixel_head'] = dict(
        type='bootmae_mm.BootMAEHead',
        target=dict(type='bootmae_mm.PixelTarget'),
        loss=dict(type='bootmae_mm.PatchCosine'),
        normalize=True,
    )
    losses = build(config).loss(**batch)
    assert 0 < losses['pixel_loss'] < 4


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(backbone=dict(type='mmpretrain.VisionTransformer')), 'backbone.type must be a PretrainingEncoder'),
        (dict(backbone=dict(arch='b')), 'backbone must be a dict with a type'),
        (dict(teacher=dict(checkpoint='x', backbone=dict(rel_pos_bias=True))), 'pretraining needs window_size=0, rel_'),
        (dict(teacher_norm=True, feature_head=dict(type='bootmae_mm.BootMAEFeatureHead', target={})), 'teacher_norm n'),
    ],
)
def test_impossible_parts(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_config(**changes))
