"""Reading and writing image files, and conversion between [−1, 1] and 8 bits."""

from ddpm_lightning.images.animation import (
    Animation,
    check_animation,
    write_animation,
    write_mp4,
)
from ddpm_lightning.images.archive import ImageArchive, images_at, write_npz
from ddpm_lightning.images.eight_bits import from_uint8, to_uint8
from ddpm_lightning.images.image_file import MODES, ImageFile
from ddpm_lightning.images.listing import OVERVIEW, SUFFIXES, list_images
from ddpm_lightning.images.reading import read_image, read_mask, read_transparent
from ddpm_lightning.images.uniform_folder import UniformFolder
from ddpm_lightning.images.writing import check_fps, grid, to_pil, write_gif, write_png

__all__ = [
    "MODES",
    "OVERVIEW",
    "SUFFIXES",
    "Animation",
    "ImageArchive",
    "ImageFile",
    "UniformFolder",
    "check_animation",
    "check_fps",
    "from_uint8",
    "grid",
    "images_at",
    "list_images",
    "read_image",
    "read_mask",
    "read_transparent",
    "to_pil",
    "to_uint8",
    "write_animation",
    "write_gif",
    "write_mp4",
    "write_npz",
    "write_png",
]
