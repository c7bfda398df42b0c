"""Reading and writing image files, and conversion between [−1, 1] and 8 bits."""

from ddpm_lightning.images.eight_bits import from_uint8, to_uint8
from ddpm_lightning.images.folder import OVERVIEW, SUFFIXES, ImageFolder
from ddpm_lightning.images.reading import MODES, read_image, read_mask, read_transparent
from ddpm_lightning.images.writing import check_fps, grid, to_pil, write_gif, write_png

__all__ = [
    "MODES",
    "OVERVIEW",
    "SUFFIXES",
    "ImageFolder",
    "check_fps",
    "from_uint8",
    "grid",
    "read_image",
    "read_mask",
    "read_transparent",
    "to_pil",
    "to_uint8",
    "write_gif",
    "write_png",
]
