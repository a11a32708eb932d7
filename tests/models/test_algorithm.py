from collections import Counter

import pytest
import torch

from bootmae_mm.models.block import EncoderBlock
from bootmae_mm.models.neck import DecoderBlock
from bootmae_mm.models.tokens import loss_weights
from bootmae_mm.registry import MODELS
from tests.conftest import TINY_ARCH, build, random_batch, tiny_config


def test_losses_by_hand(model, batch):
    losses = model.loss(**batch)
    latent, context = model.backbone.encode_visible(batch['inputs'], batch['ids_keep'], {0, 2})
    decoded = model.neck(latent, context, batch['ids_mask'])
    weights = loss_weights(batch['ids_mask'], (4, 6))
    torch.testing.assert_close(
        losses['pixel_loss'], model.pixel_head.loss(decoded['pixel'], batch['inputs'], batch['ids_mask'], weights)
    )
    target = model.teacher.encode_patches(batch['inputs'], batch['ids_mask'])
    torch.testing.assert_close(
        losses['feature_loss'],
        model.feature_head.loss(model.feature_head(decoded['feature']), model.feature_head.target(target), weights),
    )
    torch.testing.assert_close(losses['feature_target_norm'], target.norm(dim=2).mean())
    normed = torch.nn.functional.layer_norm(target, (24,), eps=1e-6)
    torch.testing.assert_close(losses['feature_target_std'], normed.flatten(0, 1).std(0, correction=0).mean())


def test_total_is_the_weighted_sum_and_single_losses_are_logged_as_they_are(model, batch):
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
def test_checkpointing_keeps_less_and_changes_no_gradient(batch, dtype):
    """In student and decoders each: bytes kept for the backward pass fall, loss and gradients stay."""
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


def test_every_part_is_initialised_as_the_authors_do():
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
def test_one_branch_off(missing, batch):
    config = tiny_config(**{f'{missing}_head': None})
    config['neck'][missing] = None
    model = build(config)
    losses = model.loss(**batch)
    assert f'{missing}_loss' not in losses
    total, _ = model.parse_losses(losses)
    assert total == losses['feature_loss' if missing == 'pixel' else 'pixel_loss']
    assert hasattr(model, 'teacher') == (missing == 'pixel')
    assert model.has_momentum_teacher == (missing == 'pixel')


def test_target_after_the_norm(model, batch):
    before = model.teacher_features(batch['inputs'], batch['ids_mask'])
    model.teacher_norm = True
    torch.testing.assert_close(model.teacher_features(batch['inputs'], batch['ids_mask']), model.teacher.ln1(before))


@pytest.mark.parametrize('masked', [1, 23])
def test_extreme_numbers_of_masked_patches(model, masked):
    losses = model.loss(**random_batch(batch=1, masked=masked))
    assert all(torch.isfinite(value) for value in losses.values())


def frozen(tmp_path, prefix='backbone.', **changes):
    source = build(tiny_config())
    state = {f'{prefix}{name}': value for name, value in source.backbone.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'mae.pth')
    return source, tiny_config(teacher=dict(checkpoint=str(tmp_path / 'mae.pth'), **changes))


def test_frozen_teacher_comes_from_its_checkpoint(tmp_path, batch):
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
        (dict(backbone=dict(img_size=32)), 'patches'),
        (dict(path='x'), 'not by'),
    ],
)
def test_wrong_frozen_teacher(tmp_path, changes, message):
    _, config = frozen(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        build(config)


def test_missing_checkpoint_of_the_frozen_teacher(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        build(tiny_config(teacher=dict(checkpoint=str(tmp_path / 'nowhere.pth'))))


def test_half_a_branch_is_an_error():
    config = tiny_config(pixel_head=None)
    with pytest.raises(ValueError, match='pixel branch is half there'):
        build(config)
    config = tiny_config(feature_head=None, teacher=dict(checkpoint='x'))
    config['neck']['feature'] = None
    with pytest.raises(ValueError, match='no feature branch'):
        build(config)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda b: b.update(ids_mask=b['ids_mask'][:, :-1]), 'do not fit'),
        (
            lambda b: b.update(ids_mask=torch.cat([b['ids_keep'], b['ids_mask']], 1), ids_keep=b['ids_keep'][:, :0]),
            '0 < masked',
        ),
        (lambda b: b.update(ids_keep=b['ids_keep'][:2]), 'must be'),
        (lambda b: b.update(inputs=b['inputs'][:, :, :-8]), 'img_size'),
    ],
)
def test_wrong_batches(model, batch, change, message):
    change(batch)
    with pytest.raises(ValueError, match=message):
        model.loss(**batch)


def test_modes(model, batch):
    assert model(batch['inputs'], mode='tensor')[0].shape == (3, 24)  # the class token
    assert model(**batch, mode='predict')[0]['batch_size'] == 3
    with pytest.raises(ValueError, match='mode must be'):
        model(**batch, mode='train')
    with pytest.raises(ValueError, match='masking='):
        model(batch['inputs'], mode='loss')


def test_preprocessor_normalises_uint8_and_refuses_what_is_no_batch(model):
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=images, ids_keep=1))
    torch.testing.assert_close(data['inputs'], images.float() / 127.5 - 1)
    assert data['ids_keep'] == 1
    with pytest.raises(ValueError, match='batch of images'):
        model.data_preprocessor(dict(inputs=[images]))


def test_bf16_autocast_stays_close(model, batch):
    losses = model.loss(**batch)
    with torch.autocast('cpu', torch.bfloat16):
        low = model.loss(**batch)
    for name in ('pixel_loss', 'feature_loss'):
        assert low[name].dtype == torch.float32
        torch.testing.assert_close(low[name], losses[name], rtol=0.03, atol=0)


def test_several_masks_of_an_image_are_passes_with_one_target(model):
    """Losses and gradients are those of the image repeated; the teacher sees it once."""
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
