"""The export command."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, Literal

from ddpm_lightning.batch import NULL_LABEL
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.diffusion.prediction import Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write, check_folder, check_new_file, contents
from ddpm_lightning.interchange.card import PICTURE, USES, model_card, picture_of, results_of
from ddpm_lightning.interchange.convert import ToDiffusers, counterpart_of, to_diffusers
from ddpm_lightning.interchange.safetensors import write_safetensors
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.sampling import Weights
from ddpm_lightning.terminal.parser import PROGRAM

WITH_LABEL = "; for one, export a class by --label K, or --label -1 for no class"


def export(
    ckpt: Path,
    out: Path,
    format: Literal["diffusers", "safetensors", "safetensors-float16"] = "diffusers",
    weights: Weights | None = None,
    label: int | None = None,
    variance: Variance | None = None,
    card: bool = False,
    results: Path | None = None,
) -> None:
    """Write a checkpoint's model for other programs.

    diffusers: a folder that DDPMPipeline and DDIMPipeline load and sample from, of a UNet with
    Eps, X0 or V on a schedule that preserves variance. What diffusers cannot say is refused by
    name. Their timesteps 0…T − 1 are the levels 1…T here; spacing is trailing, as here.

    safetensors: one file of any model, with all that describes it in the metadata; the commands
    here take it as --ckpt, and fit as --init_from. safetensors-float16: the same with its weights
    rounded to float16, half the size.

    Args:
        ckpt: The checkpoint; it describes its model itself.
        out: Folder for the files, new or empty; for safetensors the file, NAME.safetensors.
        format: In which form.
        weights: ema (averaged) or raw (as trained); default: ema, of safetensors both.
        label: Class of all samples of a conditional model, 0 or more, or -1 for no class: the
            network then takes no labels. Pipelines give none, so without this flag only the
            network and its scheduler are written, for a loop of your own.
        variance: Variance of the reverse steps, in place of the model's own, e.g. FixedSmall.
        card: Also write a model card, README.md: recipe, data, results, and the grid of samples
            of evaluate or of the run, as samples.png.
        results: Results of this checkpoint for the card, of evaluate, a file or its folder;
            default: those of its step in the run's metrics.json.

    Raises:
        InputError: The checkpoint or the folder does not work, or diffusers cannot say it.
    """
    if results is not None and not card:
        raise InputError("--results is for the model card; add --card true")
    checkpoint, records, picture = {}, [], None
    if card:
        checkpoint = read_checkpoint(ckpt)
        step = checkpoint["global_step"]
        records, picture = results_of(ckpt, results, step), picture_of(ckpt, results, step)
    folder, published = out, [(out, ".")]
    if format != "diffusers":
        for name, value in (("label", label), ("variance", variance)):
            if value is not None:
                raise InputError(f"--{name} is for --format diffusers; a checkpoint has them all")
        check_new_file(out, (".safetensors",))
        # The folder may hold much else, none of which is overwritten or published.
        folder, beside = out.parent, ["README.md"] if card else []
        beside += [PICTURE] if picture is not None else []
        for name in beside:
            check_new_file(folder / name, (".md", ".png"))
        published = [(folder / name, name) for name in (out.name, *beside)]
        half = format == "safetensors-float16"
        write_safetensors(read_checkpoint(ckpt, weights=True), out, weights, half)
        kind = f"{weights or 'ema and raw'} weights" + ", rounded to float16," * half
        print(f"{out} holds the {kind} with all that describes them")
        print(
            f"Draw from it: {PROGRAM} sample --ckpt {out} --sampler DDIM --sampler.steps 50 "
            "--out FOLDER"
        )
        use = USES["safetensors"].replace("FILE", out.name)
    else:
        if out.is_dir() and contents(out):
            raise InputError(f"{out} is not an empty folder; choose another, or remove it")
        check_folder(out)
        wanted = ToDiffusers(weights or "ema", label, variance)
        use = _export_to_diffusers(Loaded.read(ckpt), out, wanted)
    if card:
        _write_card(checkpoint, folder, use, records, picture)
        print(f"{folder / 'README.md'} is its card; state the licence in it, then publish by")
        for path, name in published:  # --include takes a list before huggingface_hub 1, one after
            print(shlex.join(["hf", "upload", "OWNER/NAME", str(path), name]))


def _export_to_diffusers(loaded: Loaded, out: Path, wanted: ToDiffusers) -> str:
    """Write the folder; return how it is used, for a card."""
    module = loaded.module
    folder, pair = to_diffusers(module, wanted), counterpart_of(module.net)
    takes_labels = module.data.num_classes is not None and wanted.label is None
    pipeline = None if takes_labels else pair.pipeline
    folder.write(out, pair.part, pipeline)
    print(f"{out} holds the {wanted.weights} weights as a {pair.theirs}")
    if pipeline:
        print(f'Draw from it: {pipeline}.from_pretrained("{out}")')
        chosen = wanted.label is not None
        of = "no class" if wanted.label == NULL_LABEL else f"class {wanted.label}"
        return USES[pipeline] + (f"\n\nThese files draw samples of {of} alone." if chosen else "")
    print(
        f"It takes class_labels, {module.data.num_classes} for no class, which no pipeline of "
        "pixels gives" + (WITH_LABEL if pair.pipeline else "")
    )
    return USES["network"].replace("CLASS", pair.theirs).replace("PART", pair.part)


def _write_card(
    checkpoint: dict[str, Any],
    folder: Path,
    use: str,
    records: list[dict[str, Any]],
    picture: Path | None,
) -> None:
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE)
    with atomic_write(folder / "README.md") as partial:
        partial.write_text(model_card(checkpoint, use, records, picture is not None), "utf-8")
