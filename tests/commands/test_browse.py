"""Pictures of training samples before a run: the samples of the first epoch, with their masks."""

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from bootmae_mm.commands.browse import first_batch
from bootmae_mm.engine.launch import read_config
from bootmae_mm.models.tokens import patchify
from bootmae_mm.visualization import sample_panels
from tests.conftest import run_config

GRAY = 128  # 127.5, rounded


def cells(picture: np.ndarray, row: int, column: int) -> torch.Tensor:
    """Patches of a panel: images of 32 x 48 pixels are enlarged 4 times, with gaps of 6 and a title of 24."""
    top, left = 24 + row * (128 + 6), 6 + column * (192 + 6)
    pixels = picture[top : top + 128, left : left + 192][::4, ::4]
    return patchify(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], 8)[0].flatten(0, 1)  # (24, 3, 8, 8)


def test_masked_patches_are_painted_and_visible_ones_are_the_pixels(run_tool, image_folder, tmp_path):
    config = run_config(tmp_path / 'config.py', image_folder)
    status, out, message = run_tool(
        'browse_dataset.py', config, '--out', tmp_path / 'out', '--max-images', 3, '--seed', 5
    )
    assert status == 0, message
    assert out.strip().endswith(f'3 samples -> {tmp_path / "out"}')
    picture = np.asarray(Image.open(tmp_path / 'out/samples_001.png'))
    # What training with this seed gets, by mmengine's own loader.
    loader = read_config(str(config)).train_dataloader
    loader.batch_size = 3
    batch = next(iter(Runner.build_dataloader(loader, seed=5)))
    assert 0 < batch['flip'].sum() < 3
    images = torch.where(batch['flip'].view(-1, 1, 1, 1), batch['inputs'].flip(3), batch['inputs'])
    for row in range(3):
        patches = patchify(images[row : row + 1], 8)[0].flatten(0, 1)  # (24, 3, 8, 8)
        assert torch.equal(cells(picture, row, 0), patches)
        masked, kept = batch['ids_mask'][row], batch['ids_keep'][row]
        assert len(masked) == 18 and len(kept) == 6
        assert torch.equal(cells(picture, row, 1)[kept], patches[kept])
        assert (cells(picture, row, 1)[masked] == GRAY).all()


def test_several_masks_and_pages(run_tool, tmp_path):
    options = ['train_dataloader.dataset.masking.per_image=2']
    arguments = ['bootmae_mm::pretrain/bootmae_vitt_digits.py', '--max-images', 10, '--cfg-options', *options]
    assert run_tool('browse_dataset.py', *arguments, '--out', tmp_path)[0] == 0
    pages = [np.asarray(Image.open(file)) for file in sorted(tmp_path.iterdir())]
    assert [page.shape[0] for page in pages] == [24 + 8 * (112 + 6), 24 + 2 * (112 + 6)]
    first, second = (pages[0][:, 6 + column * 118 :][24:136, :112] for column in (1, 2))
    assert (first == GRAY).mean() == (second == GRAY).mean() == 0.5 and (first != second).any()


def test_a_second_view_has_a_column(image_folder, tmp_path):
    batch, grid = first_batch(read_config(str(run_config(tmp_path / 'config.py', image_folder))), 2)
    batch['view'] = torch.full_like(batch['inputs'], 51.0)
    panels = sample_panels(batch, grid)
    assert list(panels) == ['sample', 'masked', 'second view']
    torch.testing.assert_close(panels['second view'], torch.full((2, 3, 32, 48), 0.2))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['data_root=/nowhere'], 'no folder /nowhere'),
        (['train_dataloader.dataset.masking=None'], 'is not for pretraining: train_dataloader.dataset has no masking'),
        (
            ['train_dataloader.dataset.masking.grid_size=(4,5)'],
            'images of 32x48 have no grid of 4 x 5 square patches (masking)',
        ),
    ],
)
def test_mistakes_are_told_in_one_line(run_tool, image_folder, tmp_path, options, message):
    config = run_config(tmp_path / 'config.py', image_folder)
    status, _, found = run_tool('browse_dataset.py', config, '--out', tmp_path / 'out', '--cfg-options', *options)
    assert status == 1 and found.startswith('error: ') and message in found and '\n' not in found
    assert not (tmp_path / 'out').exists()


def test_the_number_of_samples_must_be_positive(run_tool, image_folder, tmp_path):
    config = run_config(tmp_path / 'config.py', image_folder)
    assert (
        'max_images must be greater than or equal to 1' in run_tool('browse_dataset.py', config, '--max-images', 0)[2]
    )


def test_a_folder_alone_is_enough(run_tool, image_folder, tmp_path):
    status, out, message = run_tool('browse_dataset.py', '--data', image_folder, '--out', tmp_path / 'out')
    assert status == 0, message
    assert f'8 samples -> {tmp_path / "out"}' in out
    picture = np.asarray(Image.open(tmp_path / 'out/samples_001.png'))
    assert 0.3 < (picture == GRAY).mean() < 0.5  # of two panels, one has 75 % masked
    assert run_tool('browse_dataset.py')[2] == 'error: give images (--data) or a config'
