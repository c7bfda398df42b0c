"""The export command."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ddpm_lightning.diffusion.prediction import Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import check_folder, contents
from ddpm_lightning.interchange.convert import ToDiffusers, counterpart_of, to_diffusers
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.sampling import Weights


def export(
    ckpt: Path,
    out: Path,
    format: Literal["diffusers"] = "diffusers",
    weights: Weights = "ema",
    label: int | None = None,
    variance: Variance | None = None,
) -> None:
    """Write a checkpoint's model for other programs.

    diffusers: a folder that DDPMPipeline and DDIMPipeline load and sample from, of a UNet with
    Eps, X0 or V on a schedule that preserves variance. What diffusers cannot say is refused by
    name. Their timesteps 0…T − 1 are the levels 1…T here; spacing is trailing, as here.

    Args:
        ckpt: The checkpoint; it describes its model itself.
        out: Folder for the files, new or empty.
        format: In which form.
        weights: ema (averaged) or raw (as trained).
        label: Class of all samples of a conditional model, 0 or more, or -1 for no class: the
            network then takes no labels. Pipelines give none, so without this flag only the
            network and its scheduler are written, for a loop of your own.
        variance: Variance of the reverse steps, in place of the model's own, e.g. FixedSmall.

    Raises:
        InputError: The checkpoint or the folder does not work, or diffusers cannot say it.
    """
    if out.is_dir() and contents(out):
        raise InputError(f"{out} is not an empty folder; choose another, or remove it")
    check_folder(out)
    module = Loaded.read(ckpt).module
    folder = to_diffusers(module, ToDiffusers(weights, label, variance))
    pair = counterpart_of(module.net)
    takes_labels = module.data.num_classes is not None and label is None
    pipeline = None if takes_labels else pair.pipeline
    folder.write(out, pair.part, pipeline)
    print(f"{out} holds the {weights} weights as a {pair.theirs}")
    if pipeline:
        print(f'Draw from it: {pipeline}.from_pretrained("{out}")')
    elif takes_labels:
        print(
            f"It takes class_labels, {module.data.num_classes} for no class, which no pipeline "
            "gives; for one, export a class by --label K, or --label -1 for no class"
        )
