"""A folder of image files as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from ddpm_lightning.data.collected_images import CollectedImages
from ddpm_lightning.data.folder_listing import FolderCollection, list_folder


class ImageFolder(CollectedImages):
    """Images of a folder: PNG, JPEG, WebP, BMP, TIFF and GIF (first frame), of any size and mode.

    A flat folder has no classes; in class folders, at any depth, the outermost folder is the
    class. Folders train, val and test at the top (training, valid, validation, testing; of either
    case) are splits. A metadata.csv or metadata.jsonl there, with file_name and optionally label
    and text, lists the images; texts are the captions of a model with text. A grid.png, the
    overview of a folder of samples, is skipped.

    Args:
        root: The folder.
        classes: Whether folders or labels are classes.
        **settings: Of CollectedImages.
    """

    places = tuple(name for name in CollectedImages.places if name != "root")

    def __init__(self, root: str, classes: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root).expanduser()
        self.classes = classes

    @override
    def collect(self) -> FolderCollection:
        return list_folder(self.root, self.classes, "--data.root")
