"""The contrastive branch: against numbers of CMAE's program, and within the model."""

import json

import pytest
import torch
import torch.nn.functional as F

from bootmae_mm.data import PackImage, RandomFlip, ShiftedView, collate
from bootmae_mm.engine.hooks.teacher import moving_pairs
from bootmae_mm.models import BootMAEDataPreprocessor
from bootmae_mm.models.contrast import info_nce
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT, build, tiny_config


def contrast_config(**head):
    config = tiny_config(feature_head=None)
    config['neck'].update(feature=None, contrast=dict(depth=1))
    config['contrast_head'] = dict(type='bootmae_mm.ContrastiveHead', hidden=16, dims=8, **head)
    return config


def test_info_nce_is_that_of_the_authors():
    """Numbers of ``CMAEPretrainHead.forward`` in CMAE's cmae_head.py, at e786a52, with one process."""
    reference = json.loads((ROOT / 'tests/reference/cmae.json').read_text())
    prediction, target = torch.tensor(reference['prediction']).requires_grad_(), torch.tensor(reference['target'])
    errors, accuracy = info_nce(prediction, target, 0.07)
    assert errors.mean().item() == pytest.approx(reference['loss'], rel=1e-5)
    errors.mean().backward()
    torch.testing.assert_close(prediction.grad, torch.tensor(reference['gradient']), rtol=1e-4, atol=1e-6)
    nearest = (F.normalize(prediction, dim=1) @ F.normalize(target, dim=1).t()).argmax(1)
    assert accuracy == (nearest == torch.arange(len(target))).float().mean()


def test_several_masks_of_an_image_share_its_target():
    prediction, target = torch.randn(6, 4), torch.randn(3, 4)
    errors, _ = info_nce(prediction, target, 0.1)
    scores = F.normalize(prediction, dim=1) @ F.normalize(target, dim=1).t() / 0.1
    wanted = 0.2 * F.cross_entropy(scores, torch.tensor([0, 0, 1, 1, 2, 2]), reduction='none')
    torch.testing.assert_close(errors, wanted)


def test_loss_by_hand_and_its_gradients(batch):
    model = build(contrast_config()).train()
    view = torch.randn(3, 3, 32, 48)
    latent, context = model.backbone.encode_visible(batch['inputs'], batch['ids_keep'], model.neck.context_blocks)
    tokens = model.neck(latent, context, batch['ids_mask'])['contrast']
    head = model.contrast_head
    every = torch.arange(24).expand(3, -1)
    with torch.no_grad():
        (target,) = head.target.projector((model.teacher.encode_patches(view, every).mean(1),))
    prediction = head.predictor(head.projector((tokens.mean(1),)))[0]
    wanted = info_nce(prediction, target, 0.07)[0].mean()
    losses = model.loss(**batch, view=view)
    torch.testing.assert_close(losses['contrast_loss'], wanted)
    total, log = model.parse_losses(losses)
    total.backward()
    assert {'contrast_accuracy', 'contrast_target_std'} <= set(log)
    for name, parameter in model.named_parameters():
        if name.startswith(('teacher.', 'contrast_head.target.')) or name == 'backbone.pos_embed':
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
    teacher, student = moving_pairs(model)
    own = {id(parameter) for parameter in head.target.projector.parameters()}
    assert own <= {id(parameter) for parameter in teacher}
    assert len(teacher) == len(student)


def test_views_reach_the_model_flipped_and_normalized_alike(batch):
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=rng).numpy() for _ in range(4)]
    steps = [ShiftedView(size=(32, 48)), RandomFlip(), PackImage()]
    samples = []
    for image in images:
        sample = dict(img=image)
        for step in steps:
            sample = step(sample)
        samples.append(sample)
    data = collate(samples)
    assert data['view'].shape == data['inputs'].shape == (4, 3, 32, 48)
    assert data['view'].stride() == data['inputs'].stride()
    for index, image in enumerate(images):
        assert torch.equal(data['inputs'][index], torch.from_numpy(image[:32, :48]).permute(2, 0, 1))
        places = [(top, left) for top in range(9) for left in range(13)]
        crops = [torch.from_numpy(image[top : top + 32, left : left + 48]).permute(2, 0, 1) for top, left in places]
        assert sum(torch.equal(data['view'][index], crop) for crop in crops) == 1
    before = images[0].copy()

    def blacken(results):
        results['img'][:] = 0
        return results

    ShiftedView(size=(40, 60), transforms=[blacken])(dict(img=images[0]))
    assert (images[0] == before).all()  # the second view has its own memory
    flip = data['flip'].clone()
    both = BootMAEDataPreprocessor()(dict(data))
    assert flip.any() and not flip.all()
    alone = BootMAEDataPreprocessor()(dict(inputs=data['view'], flip=flip))['inputs']
    assert torch.equal(both['view'], alone)


def test_what_is_refused(batch):
    with pytest.raises(ConfigError, match='no second view in the batch: the pipeline needs bootmae_mm.ShiftedView'):
        build(contrast_config()).loss(**batch)
    config = contrast_config()
    config['neck']['contrast']['width'] = 16
    with pytest.raises(ConfigError, match='needs a decoder of width 24, but it is 16'):
        build(config)
    with pytest.raises(ConfigError, match='contrast_head needs the momentum encoder, but teacher is a frozen one'):
        build({**contrast_config(), 'teacher': dict(checkpoint='x')})
    with pytest.raises(ConfigError, match="norm_cfg.type must be BN, SyncBN or LN, but is 'GN'"):
        build(contrast_config(norm_cfg=dict(type='GN')))
    with pytest.raises(ConfigError, match='ShiftedView needs images of at least 32x32, but got 16x48'):
        ShiftedView(size=32)(dict(img=torch.zeros(16, 48, 3).numpy()))
