"""Moved."""

from ddpm_lightning.files import (
    check_folder as check_folder,
)
from ddpm_lightning.files import (
    check_new_file as check_new_file,
)
from ddpm_lightning.files import (
    check_new_folder as check_new_folder,
)
from ddpm_lightning.images import check_fps as check_fps
from ddpm_lightning.randomness import check_seed as check_seed
