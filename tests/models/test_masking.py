"""Masks by attention and by predicted errors: by hand, and against numbers of the authors' programs."""

import json

import pytest
import torch

from bootmae_mm.engine.hooks.teacher import ema_update, moving_pairs
from bootmae_mm.models import AttentionMasking
from bootmae_mm.models.step import TeacherView
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT, build, random_batch, tiny_config


class View:
    """A teacher that sees given attention, (B, heads, L)."""

    def __init__(self, attention):
        self.attention = attention

    def class_attention(self):
        return self.attention


def masking(**options):
    model = build(tiny_config())
    return AttentionMasking(model, model.teacher, **options)


def loader_masks(batch=3, patches=24, masked=17):
    data = random_batch(batch, patches, masked)
    return data['ids_keep'], data['ids_mask']


def test_class_attention_is_softmax_of_scaled_products():
    teacher = build(tiny_config()).teacher
    x = teacher.encode_hidden(torch.randn(2, 3, 32, 48))[-1]
    attention = teacher.layers[-1].attn
    normed = teacher.layers[-1].ln1(x)
    q, k, _ = torch.nn.functional.linear(normed, attention.qkv.weight, attention.qkv.bias).chunk(3, 2)
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        wanted = (q[:, :1, part] @ k[:, :, part].transpose(1, 2) / 8**0.5).softmax(2)[:, 0, 1:]
        torch.testing.assert_close(teacher.class_attention(x)[:, head], wanted)


@pytest.mark.parametrize('strategy', ['high', 'low'])
def test_the_most_or_least_attended_patches_are_masked(strategy):
    attention = torch.rand(3, 3, 24)
    ids_keep, ids_mask = masking(strategy=strategy)(View(attention), *loader_masks())
    order = attention.mean(1).argsort(dim=1, descending=strategy == 'high')
    assert torch.equal(ids_mask.sort(1).values, order[:, :17].sort(1).values)
    assert torch.equal(torch.cat([ids_keep, ids_mask], 1).sort(1).values, torch.arange(24).expand(3, -1))


@pytest.mark.parametrize('strategy', ['high', 'low'])
def test_masks_are_those_of_the_authors(strategy):
    """Numbers of ``attention_masking`` in their attmask.py, at 9f62061."""
    reference = json.loads((ROOT / 'tests/reference/attmask.json').read_text())
    attention = torch.tensor(reference['attention'])  # (2, 24)
    _, ids_mask = masking(strategy=strategy)(View(attention[:, None]), *loader_masks(2, masked=reference['masked']))
    assert ids_mask.sort(1).values.tolist() == reference[strategy]


def test_hints_stay_visible():
    attention = torch.rand(1, 1, 24).expand(2000, 3, 24)
    options = dict(strategy='hint', hint_share=0.25, shown_share=0.5)  # 3 of the best 6
    ids_keep, ids_mask = masking(**options)(View(attention), *loader_masks(2000))
    best = attention[0, 0].argsort(descending=True)
    shown = (ids_keep[:, :, None] == best[None, None, :6]).any(2).sum(1)
    assert (shown == 3).all()
    kept = torch.zeros(2000, 24).scatter_(1, ids_keep, 1.0).mean(0)[best]
    assert (kept[:6] - 0.5).abs().max() < 0.05  # each of the six equally often
    assert kept[6:20].max() == 0 and kept[20:].min() == 1  # masked instead: what comes after them
    assert torch.equal(torch.cat([ids_keep, ids_mask], 1).sort(1).values, torch.arange(24).expand(2000, -1))


def test_masks_follow_from_the_order_of_the_loader():
    attention = torch.rand(3, 3, 24)
    draw = masking(strategy='hint', hint_share=0.5)
    first, again, other = loader_masks(), None, loader_masks()
    again = draw(View(attention), *first)
    assert all(torch.equal(a, b) for a, b in zip(draw(View(attention), *first), again, strict=True))
    assert not torch.equal(draw(View(attention), *other)[1].sort(1).values, again[1].sort(1).values)


def test_several_masks_of_an_image():
    ids_keep, ids_mask = masking(strategy='hint', hint_share=0.5)(View(torch.rand(2, 3, 24)), *loader_masks(6))
    assert ids_keep.shape == (6, 7) and ids_mask.shape == (6, 17)
    assert not torch.equal(ids_mask[0].sort().values, ids_mask[1].sort().values)


def test_impossible_options():
    with pytest.raises(ConfigError, match="strategy must be 'high', 'hint' or 'low', but is 'best'"):
        masking(strategy='best')
    config = tiny_config(masking=dict(type='bootmae_mm.AttentionMasking'))
    config['backbone'].update(with_cls_token=False, out_type='featmap')
    with pytest.raises(ConfigError, match='masking by attention needs with_cls_token=True in the backbone'):
        build(config)
    with pytest.raises(ConfigError, match='shown_share keeps 24 patches visible, but only 7 are kept'):
        masking(strategy='hint', hint_share=1.0, shown_share=1.0)(View(torch.rand(3, 3, 24)), *loader_masks())


def hpm_config(**changes):
    config = tiny_config(masking=dict(type='bootmae_mm.PredictedErrorMasking'), **changes)
    config['neck']['difficulty'] = dict(width=8, depth=1, context_block=None)
    config['difficulty_head'] = dict(
        type='bootmae_mm.BootMAEHead',
        target=dict(type='bootmae_mm.ErrorTarget', branch='pixel'),
        loss=dict(type='bootmae_mm.PatchRanking'),
        weighted=False,
    )
    return config


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_hard_patches_are_masked_and_the_rest_is_random(share):
    model = build(hpm_config())
    model.masking.share = share
    view = TeacherView(model.teacher, torch.randn(2, 3, 32, 48))
    predicted = model.masking.predicted_errors(view)
    ids_keep, ids_mask = loader_masks(600)
    chosen = int(share * 17)
    kept, masked = model.masking(view, ids_keep, ids_mask)
    assert torch.equal(torch.cat([kept, masked], 1).sort(1).values, torch.arange(24).expand(600, -1))
    hard = predicted.argsort(dim=1, descending=True)[:, :chosen].repeat_interleave(300, 0)  # (600, chosen)
    assert (masked[:, :, None] == hard[:, None]).any(1).all()
    others = torch.zeros(600, 24).scatter_(1, masked, 1.0).scatter_(1, hard, 0.0)  # masked at random
    free = 1 - torch.zeros(600, 24).scatter_(1, hard, 1.0)
    rate = others.mean(0)[free.mean(0) == 1]
    assert (rate - (17 - chosen) / (24 - chosen)).abs().max() < 0.1
    if share == 0:
        assert kept is ids_keep and masked is ids_mask


def test_predictor_learns_the_errors_of_its_branch_and_its_copy_follows(batch):
    model = build(hpm_config())
    model.masking.share = 0.0  # the masks of the batch
    losses = model.loss(**batch)
    latent, context = model.backbone.encode_visible(batch['inputs'], batch['ids_keep'], model.neck.context_blocks)
    decoded = model.neck(latent, context, batch['ids_mask'])
    pixels = model.pixel_head.target(batch['inputs'], batch['ids_mask'])
    errors = (model.pixel_head(decoded['pixel']) - pixels).square().flatten(2).mean(2)  # without weights
    wanted = model.difficulty_head.criterion(model.difficulty_head(decoded['difficulty']), errors[:, :, None]).mean()
    torch.testing.assert_close(losses['difficulty_loss'], wanted)
    losses['difficulty_loss'].backward()
    assert model.pixel_head.projection.weight.grad is None  # the errors are no way for gradients

    follower, leader = model.followers()[1]
    assert follower is model.masking.decoder and leader is model.neck.decoders['difficulty']
    model.reset_teacher()
    pairs = list(zip(follower.parameters(), leader.parameters(), strict=True))
    assert pairs and all(torch.equal(*pair) and not pair[0].requires_grad for pair in pairs)
    teacher, student = moving_pairs(model)
    for parameter in student:
        parameter.data += 1
    ema_update(teacher, student, 0.75)
    torch.testing.assert_close(pairs[0][0] + 0.75, pairs[0][1])


def test_prediction_of_whole_images_is_that_of_the_decoder():
    model = build(hpm_config())
    model.reset_teacher()
    images, all_ids = torch.randn(2, 3, 32, 48), torch.arange(24).expand(2, -1)
    latent, _ = model.backbone.encode_visible(images, all_ids)
    tokens = model.neck.decoders['difficulty'](latent, None, all_ids[:, :0], ids_keep=all_ids)
    found = model.masking.predicted_errors(TeacherView(model.teacher, images))
    torch.testing.assert_close(found, model.difficulty_head(tokens)[:, :, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['neck']['difficulty'].update(context_block=0), 'needs neck.difficulty.context_block=None'),
        (lambda c: c['masking'].update(branch='pixels'), "branch 'pixels' must be one of the branches"),
        (lambda c: c['masking'].update(branch='pixel'), "prediction of 'pixel' needs neck.pixel.context_block=None"),
        (
            lambda c: c['difficulty_head']['target'].update(branch='difficulty'),
            r"difficulty_head.target.branch 'difficulty' must be a branch before it, one of \['pixel', 'feature'\]",
        ),
        (lambda c: c['difficulty_head']['target'].update(branch=''), 'branch must have at least 1 character'),
        (lambda c: c.update(teacher=dict(checkpoint='x')), 'needs the momentum encoder, but teacher is a frozen one'),
    ],
)
def test_impossible_combinations(change, message):
    config = hpm_config()
    change(config)
    with pytest.raises(ConfigError, match=message):
        build(config)
