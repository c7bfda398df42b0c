"""Data sets of Hugging Face's `datasets` library: local ones and those of its hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from ddpm_lightning.data.collected_images import CollectedImages
from ddpm_lightning.data.collection import Collection, numbered
from ddpm_lightning.data.data_module import Split
from ddpm_lightning.data.folder_listing import SPLITS
from ddpm_lightning.errors import InputError

BUILDERS = {".arrow": "arrow", ".parquet": "parquet"}
"""The library's readers of single files, by their endings."""


@dataclass(frozen=True, eq=False)
class HubCollection(Collection):
    """The rows of a data set's splits, one after another; names are SPLIT/ROW.

    Args:
        rows: The images, as bytes or with the path of a file.
        column: Their column.
        folders: Where such files may lie.
    """

    rows: Any = None
    column: str = "image"
    folders: tuple[Path, ...] = ()

    @override
    def read(self, place: int) -> bytes:
        value = self.rows[place][self.column]
        if isinstance(value, dict):
            value = value["bytes"] or self._file(value["path"])
        if not isinstance(value, bytes):
            raise InputError(f"no image, but {type(value).__name__} {value!r:.40}")
        return value

    def _file(self, name: str | None) -> bytes | None:
        """Read a file of the set, and no other, because a set may come from anyone."""
        if name is None:
            return None
        path = Path(name).resolve()
        if not any(path.is_relative_to(folder) for folder in self.folders):
            raise InputError(f"{name:.100} lies outside the data set, and is not read")
        return path.read_bytes()


class HubImages(CollectedImages):
    """Images of Hugging Face's `datasets` library (pip install 'ddpm_lightning[hub]').

    Splits named train, validation (val, valid) and test are taken as such; a set without splits
    is for training. Nothing of the set is executed.

    Args:
        path: A folder that `save_to_disk` wrote, a .parquet or .arrow file, a folder of such, or
            a name on the hub, e.g. huggan/flowers-102-categories.
        image_column: Column of the images.
        label_column: Column of the classes: numbers, names or a ClassLabel; null: no classes.
        text_column: Column of captions, for a model with text.
        config: Configuration of the data set, where it has several.
        download: Fetch what is missing from the hub.
        **settings: Of CollectedImages.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        label_column: str | None = None,
        text_column: str | None = None,
        config: str | None = None,
        download: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.text_column = text_column
        self.config = config
        self.download = download

    @override
    def collect(self) -> HubCollection:
        found = self._splits()
        columns = found["train"].column_names
        for column in (self.image_column, self.label_column, self.text_column):
            if column is not None and column not in columns:
                raise InputError(
                    f"{self.path} has no column {column}, but {', '.join(columns)}; name one by "
                    "--data.image_column, --data.label_column or --data.text_column"
                )
        import datasets

        rows = datasets.concatenate_datasets(list(found.values()))
        labels, classes = self._labels(rows)
        ends = np.cumsum([0, *(len(part) for part in found.values())])
        image = rows.features[self.image_column]
        if isinstance(image, datasets.Image):
            rows = rows.cast_column(self.image_column, datasets.Image(decode=False))
        return HubCollection(
            names=[f"{split}/{k}" for split, part in found.items() for k in range(len(part))],
            labels=labels,
            classes=classes,
            parts={s: np.arange(ends[k], ends[k + 1]) for k, s in enumerate(found)},
            fingerprint="|".join(
                [*(one._fingerprint for one in found.values()), self.image_column]
            ),
            texts=[str(one or "") for one in rows[self.text_column]] if self.text_column else (),
            rows=rows.select_columns([self.image_column]),
            column=self.image_column,
            folders=self._folders(datasets),
        )

    def _folders(self, datasets: Any) -> tuple[Path, ...]:
        """Where files of the set may lie: with it, or where the library keeps downloads."""
        from huggingface_hub import constants

        path, config = Path(self.path).expanduser(), datasets.config
        if path.is_file():
            return (path.resolve().parent,)
        kept = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
        return tuple(Path(one).resolve() for one in (*[path] * path.is_dir(), *kept))

    def _splits(self) -> dict[Split, Any]:
        """Load the splits, the training split first."""
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                "HubImages needs Hugging Face's datasets library: pip install 'datasets>=4'"
            ) from error
        try:
            with _offline(not self.download):
                loaded = self._loaded(datasets)
        except Exception as error:  # of the library, of the network and of file formats
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"{self.path} cannot be loaded ({reason:.300}); name a folder or file that is "
                "there (--data.path), or one on the hub with a connection to the internet"
                + " and --data.download true"
                * (not self.download)
            ) from error
        parts = loaded if isinstance(loaded, dict) else {"train": loaded}
        found = {SPLITS[name]: part for name, part in parts.items() if name in SPLITS}
        if "train" not in found:
            raise InputError(f"{self.path} has no split train, but {', '.join(parts)}")
        if others := [name for name in parts if name not in SPLITS]:
            rank_zero_warn(f"{self.path}: its splits {', '.join(others)} are left out")
        order: tuple[Split, ...] = ("train", "val", "test")
        return {split: found[split] for split in order if split in found}

    def _loaded(self, datasets: Any) -> Any:
        path = Path(self.path).expanduser()
        if any((path / one).is_file() for one in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(path))
        if path.is_file():
            kind = BUILDERS.get(path.suffix.lower())
            if kind is None:
                raise ValueError(f"{path.suffix or 'no ending'} is none of {', '.join(BUILDERS)}")
            return datasets.load_dataset(kind, data_files={"train": str(path)})
        return datasets.load_dataset(str(path) if path.is_dir() else self.path, self.config)

    def _labels(self, rows: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        if self.label_column is None:
            return np.zeros(len(rows), np.int64), ()
        values = list(rows[self.label_column])
        if any(not isinstance(value, str | int) for value in values):
            raise InputError(
                f"{self.path}: the column {self.label_column} holds no numbers or names"
            )
        if without := sum(isinstance(value, int) and value < 0 for value in values):
            raise InputError(
                f"{self.path}: {without} labels are below 0 (column {self.label_column}), as rows "
                "without a class have them; leave those rows out of the set, or the classes "
                "(--data.label_column null)"
            )
        if names := getattr(rows.features[self.label_column], "names", None):
            return np.array(values, np.int64), tuple(names)
        return numbered(values)


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Keep the library from the network, which it reads from two constants."""
    if not offline:
        yield
        return
    import datasets
    from huggingface_hub import constants

    places: list[Any] = [datasets.config, constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
