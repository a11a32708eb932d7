"""Images of Hugging Face ``datasets``: of the hub, of Parquet files, or saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import ConfigError, Count, MissingFileError, Share, require, validated

from .base import IndexedImages


@DATASETS.register_module()
class HuggingFaceImages(IndexedImages):
    """Images of a data set that Hugging Face ``datasets`` reads, without labels.

    The images stay in memory-mapped files and are decoded by the pipeline, so that any index is read at once and a run
    resumes exactly. Code that comes with a data set is not run.

    Args:
        data_root: Name on the hub (``'uoft-cs/cifar10'``), a folder of ``save_to_disk``, a folder or a file of Parquet,
            or any other path that ``load_dataset`` takes.
        folder: ``data_dir`` of ``load_dataset``.
        split: Split to use.
        subset: Name of a configuration of the data set (``name`` of ``load_dataset``).
        column: Column with the images.
        max_unreadable: See :class:`UnlabeledImages`.
        max_images: See :class:`UnlabeledImages`.
        unreadable_file: See :class:`UnlabeledImages`.
        **kwargs: Arguments of :class:`SeededDataset` and mmengine's ``BaseDataset`` (``pipeline``, ...).

    Raises:
        MissingFileError: If there is no such data set.
        ConfigError: If ``datasets`` is not installed or cannot read the data set, or there is no such column.
    """

    @validated
    def __init__(
        self,
        data_root: str,
        folder: str = '',
        split: str = 'train',
        subset: str | None = None,
        column: str = 'image',
        max_unreadable: Share = 0.01,
        max_images: Count | None = None,
        unreadable_file: str = '',
        **kwargs: Any,
    ) -> None:
        self.source = data_root
        self.folder = folder
        self.split = split
        self.subset = subset
        self.column = column
        super().__init__(max_unreadable, max_images, unreadable_file, data_root='', **kwargs)

    def open(self) -> int:
        """Open the data set."""
        try:
            import datasets
        except ImportError as error:
            raise ConfigError(f"{self.source} needs datasets: pip install 'bootmae_mm[sources]' ({error})") from error
        try:
            data = self._load(datasets)
            require(self.column in data.column_names, f'no column {self.column!r}, but {data.column_names}; set column')
            # Undecoded: bytes or a path for the pipeline.
            self.data = data.cast_column(self.column, datasets.Image(decode=False))
        except (FileNotFoundError, ConnectionError) as error:
            raise MissingFileError(f'no data set {self.source}: {error}') from error
        except (ValueError, TypeError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise ConfigError(f'{self.source} cannot be read: {error}') from error
        require(len(self.data), f'{self.source} has no image')
        return len(self.data)

    def _load(self, datasets: Any) -> Any:  # noqa: ANN401  a module, and its Dataset
        path = Path(self.source, self.folder)
        if (path / 'dataset_dict.json').is_file():
            return datasets.load_from_disk(str(path))[self.split]
        if (path / 'dataset_info.json').is_file():
            return datasets.load_from_disk(str(path))
        files = sorted(map(str, path.rglob('*.parquet'))) if path.is_dir() else [str(path)]
        if files and files[0].endswith('.parquet'):
            return datasets.load_dataset('parquet', data_files={self.split: files}, split=self.split)
        return datasets.load_dataset(self.source, self.subset, data_dir=self.folder or None, split=self.split)

    def read(self, idx: int) -> dict:
        """``img_path`` (or the number of the image), and ``img_bytes`` if the data set holds them."""
        image = self.data[idx][self.column] or {}
        path = image.get('path') or f'{self.source}[{idx}]'
        if image.get('bytes') is None and image.get('path'):
            return dict(img_path=path)
        return dict(img_path=path, img_bytes=image.get('bytes') or b'')
