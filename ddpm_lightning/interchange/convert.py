"""Models of ours as folders of diffusers, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.batch import NULL_LABEL, DataSpec
from ddpm_lightning.checkpoint import FORMAT, KEY, check_description, sketching
from ddpm_lightning.checkpoint_structure import check_structure
from ddpm_lightning.codecs import Identity
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.losses import MSE, Hybrid
from ddpm_lightning.diffusion.prediction import Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.counterpart import Counterpart, Weights
from ddpm_lightning.interchange.dit import DiTTransformer2D
from ddpm_lightning.interchange.folder import DiffusersFolder
from ddpm_lightning.interchange.scheduler import Process, process_of, scheduler_config
from ddpm_lightning.interchange.unet2d import UNet2D, UNet2DOfTutorials
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.networks import Network

COUNTERPARTS: tuple[Counterpart, ...] = (UNet2D(), UNet2DOfTutorials(), DiTTransformer2D())
PARTS = tuple(dict.fromkeys(pair.part for pair in COUNTERPARTS))


@dataclass(frozen=True)
class ToDiffusers:
    """What to write of a model.

    Args:
        weights: ema (averaged) or raw (as trained).
        label: Class of all samples, for a pipeline, which gives a network no labels; −1: none.
        variance: Variance of the reverse steps, in place of the model's own.
    """

    weights: Any = "ema"
    label: int | None = None
    variance: Variance | None = None


def counterpart_of(net: Network) -> Counterpart:
    """The counterpart of a network; raise InputError if there is none."""
    for pair in COUNTERPARTS:
        if type(net) is pair.ours:
            return pair
    known = " and ".join(pair.ours.__name__ for pair in COUNTERPARTS)
    raise InputError(
        f"diffusers has no counterpart of {type(net).__name__}, only of {known}; --format "
        "safetensors can hold it"
    )


def to_diffusers(module: DiffusionModule, wanted: ToDiffusers) -> DiffusersFolder:
    """Convert a model; raise InputError, by name, for what diffusers cannot say."""
    if not isinstance(module.codec, Identity):
        raise InputError(
            f"the model works on latents of {type(module.codec).__name__}, and the pipelines of "
            "this export work on pixels; --format safetensors can hold it"
        )
    denoiser = module.denoiser(wanted.weights)
    net = denoiser.net
    pair = counterpart_of(net)
    config = {"_class_name": pair.theirs, **pair.config(net)}
    weights = pair.exported(net, {k: v.detach() for k, v in net.state_dict().items()})
    if wanted.variance is not None and type(wanted.variance) is not type(denoiser.variance):
        if wanted.variance.extra_channels(1):
            raise InputError(
                f"{type(wanted.variance).__name__} is learned, but the checkpoint was trained "
                f"with {type(denoiser.variance).__name__}"
            )
        weights = pair.without_variance(config, weights, module.data.shape[0])
        denoiser = replace(denoiser, variance=wanted.variance)
    scheduler = {
        "_class_name": "DDPMScheduler",
        **scheduler_config(denoiser, module.data.data_range),
    }
    if wanted.label is not None:
        row = _row(module, wanted.label)
        weights = pair.without_labels(config, weights, row)
    own = {"weights": wanted.weights, "label": wanted.label, "knows_null": module.knows_null}
    return DiffusersFolder(config, weights, scheduler, own)


def _row(module: DiffusionModule, label: int) -> int:
    """The row of the label table that a label names; else InputError."""
    classes = module.data.num_classes
    if classes is None:
        raise InputError("--label: the model has no labels (conditional: false)")
    if label == NULL_LABEL and not module.knows_null:
        raise InputError("--label -1: the model was trained with label_dropout 0, name a class")
    if not NULL_LABEL <= label < classes:
        raise InputError(f"--label {label}: give one of 0…{classes - 1}, or -1 for no class")
    return classes if label == NULL_LABEL else label


def from_diffusers(
    folder: DiffusersFolder,
    where: Path,
    data: DiffusionData | None = None,
    image_size: int | None = None,
    null_label: bool | None = None,
) -> dict[str, Any]:
    """Convert to the content of a checkpoint, whose average is the network itself.

    Args:
        folder: The network and its scheduler.
        where: The folder, for messages.
        data: The data that the network was trained on, which the checkpoint then describes.
        image_size: Side of the images, where the configuration states none.
        null_label: Whether the last row of the label table stands for no class; None: as the
            folder says, else not.

    Raises:
        InputError: Something is not understood, or has no counterpart here.
    """
    name = folder.network.get("_class_name")
    pairs = [one for one in COUNTERPARTS if one.theirs == name]
    pair = next((one for one in pairs if one.fits(folder.network)), next(iter(pairs), None))
    if pair is None:
        known = " and ".join(dict.fromkeys(one.theirs for one in COUNTERPARTS))
        raise InputError(f"{where} holds a {name}; {known} can be converted")
    settings = pair.settings(folder.network, f"{where}: config.json")
    arguments = pair.arguments(settings, f"{where}: config.json")
    process = process_of(
        folder.scheduler or {"_class_name": "DDPMScheduler"}, f"{where}: scheduler_config.json"
    )
    has_null = pair.always_null or bool(null_label) or "knows_null" in folder.own
    knows_null = null_label
    if null_label is None:
        knows_null = bool(folder.own.get("knows_null", pair.always_null))
    spec = DataSpec(
        _shape(settings, image_size, where),
        process.data_range or (-1.0, 1.0),
        pair.label_rows(settings, has_null),
    )
    conditional = spec.num_classes is not None
    _check_channels(settings, process, where)
    net: Any = sketching(partial(pair.ours, **arguments), len(folder.weights))
    try:
        dropout = LabelDropout(0.1 if knows_null else 0.0) if conditional else None
        module = _sketch(_with_data(spec, data, conditional), net, process, dropout)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    state = pair.imported(module.net, folder.weights)
    if conditional and not has_null:  # a row that label dropout 0 leaves unused
        table = state["embed.label.weight"]
        state["embed.label.weight"] = torch.cat([table, table.mean(0, keepdim=True)])
    return checkpoint_of(module, state, data, where)


def _sketch(
    data: DataSpec, net: Any, process: Process, dropout: LabelDropout | None
) -> DiffusionModule:
    """The module of a network without memory; it takes labels if there is a rule for them."""
    return DiffusionModule(
        data,
        net=net,
        schedule=process.schedule,
        parameterization=process.parameterization,
        variance=process.variance,
        objective=Hybrid() if process.variance.extra_channels(1) else MSE(),
        conditional=dropout is not None,
        label_dropout=dropout or LabelDropout(),
    )


def checkpoint_of(
    module: DiffusionModule, state: Weights, data: DiffusionData | None, where: Path
) -> dict[str, Any]:
    """Put weights and the description of a module together, as a checkpoint's content.

    Args:
        module: The module, whose network may be on the meta device.
        state: Weights of the network, and of its average.
        data: The data, or None.
        where: Where the weights are from, for messages.
    """
    checkpoint = {
        "state_dict": {f"{at}{k}": v for at in ("net.", "ema.net.") for k, v in state.items()},
        "global_step": 0,
        "epoch": 0,
        "hyper_parameters": dict(module.hparams),
        KEY: {
            "format": FORMAT,
            "class_path": module.class_path(),
            "data": None if data is None else data.describe(),
        },
    }
    try:
        check_structure(checkpoint)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    check_description(checkpoint, where, DiffusionModule)
    return checkpoint


def _shape(settings: dict[str, Any], image_size: int | None, where: Path) -> tuple[int, ...]:
    size = settings["sample_size"] if image_size is None else image_size
    if size is None:
        raise InputError(f"{where}: config.json states no sample_size; give --image_size")
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"{where}: sample_size {size} is no height and width")
    return (settings["in_channels"], *sides)


def _check_channels(settings: dict[str, Any], process: Process, where: Path) -> None:
    """Raise InputError unless the output has the channels that the variance asks for."""
    channels, out = settings["in_channels"], settings["out_channels"]
    wanted = channels + process.variance.extra_channels(channels)
    if out != wanted:
        learned = "; with variance_type learned_range it has twice as many" if out > wanted else ""
        raise InputError(
            f"{where}: out_channels {out} beside in_channels {channels} and "
            f"{type(process.variance).__name__}, which need {wanted}{learned}"
        )


def _with_data(spec: DataSpec, data: DiffusionData | None, conditional: bool) -> DataSpec:
    """The specification of the data that is named, which must be the network's."""
    if data is None:
        return spec
    given = data.spec
    for name in ("shape", "data_range", *(["num_classes"] if conditional else [])):
        if getattr(given, name) != getattr(spec, name):
            raise InputError(
                f"the network is for data of {name} {getattr(spec, name)}, but "
                f"{type(data).__name__} gives {getattr(given, name)}"
            )
    return given
