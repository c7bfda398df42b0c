"""The convert command."""

from __future__ import annotations

import re
from pathlib import Path

from ddpm_lightning.checkpoint_io import WholeCheckpointIO
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import check_new_file
from ddpm_lightning.interchange.convert import PARTS, from_diffusers
from ddpm_lightning.interchange.folder import DiffusersFolder
from ddpm_lightning.interchange.hub import downloaded
from ddpm_lightning.interchange.scheduler import advice


def convert(
    out: Path,
    source: str = "",
    data: DiffusionData | None = None,
    image_size: int | None = None,
    null_label: bool | None = None,
) -> None:
    """Convert a model of diffusers to a checkpoint, for sample, evaluate and fit --init_from.

    A UNet2DModel with the settings of the published DDPM networks (then it is a UNet here) or of
    diffusers' defaults (DiffusersUNet), or a DiTTransformer2DModel (DiT), alone or with its
    scheduler. Every key of its configurations must be understood; only tensors are unpickled.

    Args:
        out: The checkpoint to write, NAME.ckpt.
        source: The folder of the pipeline or of the network, or a name on the Hugging Face hub,
            e.g. google/ddpm-cifar10-32.
        data: What it was trained on, e.g. --data CIFAR10 --data.root data; evaluate needs it.
        image_size: Side of the images, where the network's configuration states none.
        null_label: Whether the last row of the network's label table stands for no class, so that
            guidance works; default: as written by export, else not.

    Raises:
        InputError: The folder is missing, damaged, or says what has no counterpart here.
    """
    if not source:
        raise InputError("convert what? Give --from FOLDER, or --from OWNER/NAME of the hub")
    check_new_file(out, (".ckpt",))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists():
        folder = downloaded(source)
    elif not (folder := Path(source).expanduser()).is_dir():
        raise InputError(f"--from {source}: there is no such folder, and a hub name is OWNER/NAME")
    read = DiffusersFolder.read(folder, PARTS)
    checkpoint = from_diffusers(read, folder, data, image_size, null_label)
    WholeCheckpointIO().save_checkpoint(checkpoint, out)
    if read.scheduler is None:
        print("It states no scheduler; taken for that of DDPM: linear betas, T = 1000, epsilon")
    elif said := advice(read.scheduler):
        print(f"Its scheduler samples otherwise than samplers here do by default: {said}")
    print(f"{out} holds the model; both its ema and its raw weights are those of {source}")
    if data is None:
        print("It states no data, which evaluate needs: give --data CLASS here")
