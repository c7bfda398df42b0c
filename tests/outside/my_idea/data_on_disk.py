import numpy as np
import torch
from torch.utils.data import Dataset

from ddpm_lightning.data import MapStyleImages


class Files(Dataset):
    """Images in files of their own, 40 a split."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 40

    def __getitem__(self, place):
        return torch.from_numpy(np.load(f"{self.folder}/{place}.npy")), place % 2


class BarFiles(MapStyleImages):
    """Images larger than memory, for all the program knows.

    Args:
        root: Folder with a folder of .npy files for each split.
        settings: Of MapStyleImages.
    """

    shape, num_classes = (1, 8, 8), 2

    def __init__(self, root: str, **settings) -> None:
        super().__init__(**settings)
        self.root = root

    def dataset(self, split):
        """Open a split."""
        return Files(f"{self.root}/{split}")
