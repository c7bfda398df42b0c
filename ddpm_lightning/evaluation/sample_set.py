"""Sets of samples: asked for, described, and drawn into a folder, where a stopped one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.batch import NULL_LABEL, Condition
from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.codecs import Identity
from ddpm_lightning.configurable import plain
from ddpm_lightning.data.data_module import Split
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import PARTIAL, contents, json_value, write_json
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.processes import Processes
from ddpm_lightning.progress import show_progress
from ddpm_lightning.sampling import Request, Weights
from ddpm_lightning.text.words import vocabulary, words_of

MADE_BY = (
    *("network", "sampler", "variance", "guidance", "weights", "seed", "edit", "images"),
    *("prompts", "negative_prompt"),
)
"""Of all that decides about samples, what a PNG says; its caption, so to speak."""

SETTINGS = "samples.json"
"""Name of the file beside the images that says how they were drawn."""


class SampleSet(Request):
    """A request for samples 0…n − 1.

    Args:
        n: Number of samples. Distances at different n do not compare; published FIDs use 50,000.
        seed: Seed of the noise, and of subsets and cuts in the metrics.
        **request: How the samples are asked for, see Request.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(self, n: int = 10_000, seed: int = 1, **request: Any) -> None:
        super().__init__(seed=seed, **request)
        if n < 2:
            raise InputError(f"n={n}: n is at least 2")
        self.n = n

    def with_captions(self, module: DiffusionModule, data: Any, split: Split) -> SampleSet:
        """Ask a model with text for the captions of a split where no prompt is given.

        Raises InputError: The data has no captions.
        """
        if module.text is None or self.prompts is not None:
            return self
        captions = data.captions(split)
        if captions is None:
            raise InputError(
                f"{type(data).__name__} has no captions that samples could be asked for; give "
                "some (--prompt)"
            )
        return self.replace(prompt=list(captions[: self.n]))

    def labels_of(
        self, module: DiffusionModule, known: Condition, texts: Sequence[str] = ()
    ) -> Tensor | None:
        """The classes that the samples are asked to be of: int64 [n], or None.

        Args:
            module: The model; one with text, and without labels, is asked by its prompts.
            known: Labels at hand.
            texts: What may be asked for, a text a class; another prompt is of class −1.
        """
        if module.data.num_classes is None and self.prompts is not None:
            place = {tuple(words_of(text)): k for k, text in enumerate(texts)}
            words = {*vocabulary(texts)[0]}
            asked = [place.get(tuple(words_of(one, words)), NULL_LABEL) for one in self.prompts]
            return torch.tensor(asked)[torch.arange(self.n) % len(asked)]
        return self.label(module, torch.arange(self.n), known)

    def state(self, module: DiffusionModule, known: Condition = Condition()) -> dict[str, Any]:
        """State all that decides about sample k but the weights, see :func:`state_of`."""
        return state_of(self, module, known)


def state_of(request: Request, module: DiffusionModule, known: Condition) -> dict[str, Any]:
    """State all that decides about sample k of a request but the weights, as plain data.

    Args:
        request: How the samples are asked for.
        module: The model.
        known: Labels and images at hand.
    """
    labels = None
    if module.data.num_classes is not None:
        labels = known.label if request.labels is None else torch.as_tensor(request.labels)
    guidance = request.guidance
    settings = {
        "schedule": module.schedule,
        "parameterization": module.parameterization,
        "variance": request.denoiser(module).variance,
        "sampler": request.sampler.clipped(module.latent.data_range),
        "steps": len(request.sampler.levels(module.schedule)) - 1,
        "guidance": {
            "scale": guidance.scale,
            "interval": guidance.interval,
            "rescale": guidance.rescale,
        },
        "labels": None if labels is None else _short(labels.long()),
        "weights": request.weights,
        "seed": request.seed,
    }
    if module.text is not None:
        settings["prompts"] = None if request.prompts is None else _short_texts(request.prompts)
        settings["negative_prompt"] = request.negative_prompt
    return dict(json_value(plain(settings, "settings")))


def digests_of(module: DiffusionModule, weights: Weights) -> dict[str, str]:
    """The sha256 of the network that samples are drawn by, raw or averaged, and of its codec."""
    digests = {"network": weights_digest(module.denoiser(weights).net)}
    if not isinstance(module.codec, Identity):
        digests["codec"] = weights_digest(module.codec)
    return digests


def made_by(settings: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Say what made a picture, for its PNG: checkpoint and step, sampler, guidance, seed, ….

    Args:
        settings: All that decides about the samples in it, as plain data.
        origin: Where their model comes from: its checkpoint and step.
    """
    known = {name: settings[name] for name in MADE_BY if settings.get(name) is not None}
    return {**{name: str(value) for name, value in origin.items()}, **known}


def _short(labels: Tensor) -> list[int] | str:
    """State a short list of labels as it is, a long one by its digest."""
    if len(labels) <= 100:
        return labels.tolist()
    return "sha256 " + hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()


def _short_texts(texts: list[str]) -> list[str] | str:
    """State a short list of texts as it is, a long one by its digest."""
    if len(texts) <= 100:
        return texts
    return "sha256 " + hashlib.sha256("\n".join(texts).encode()).hexdigest()


def draw_into(
    folder: Path,
    module: DiffusionModule,
    samples: SampleSet,
    known: Condition = Condition(),
    stated: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw samples as PNG files into a folder, but for those that are there already.

    Several processes share those that are missing, and return when all are there.

    Args:
        folder: New, empty, or holding samples of the very same settings.
        module: The model, on its device.
        samples: Which samples, and how; a stop loses at most ``batch_size`` of them.
        known: Labels and images at hand, repeated along the index.
        stated: Where these come from, as plain data.
        origin: Checkpoint and step of the model, for the PNG files.

    Returns:
        All that decides about sample k, as plain data.

    Raises:
        InputError: The folder holds something else.
    """
    digests = digests_of(module, samples.weights)
    settings = {**digests, **samples.state(module, known), **(stated or {})}

    def draw(indices: Tensor) -> Tensor:
        progress = Processes.current().first
        return module.generate(indices, samples, known, progress=progress).x

    fill(folder, settings, samples.n, samples.batch_size, draw, origin)
    return settings


def fill(
    folder: Path,
    settings: dict[str, Any],
    n: int,
    batch_size: int,
    draw: Callable[[Tensor], Tensor],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write samples 0…n − 1 as PNG files into a folder, but for those that are there already.

    Several processes share those that are missing, and return when all are there.

    Args:
        folder: New, empty, or holding samples of the very same settings.
        settings: All that decides about the samples, as plain data, kept beside them.
        n: Number of samples.
        batch_size: Samples at a time: the most that a stop loses.
        draw: Gives the samples of indices int64 [m]: [m, C, H, W] in [−1, 1].
        origin: Checkpoint and step of the model, for the PNG files.

    Raises:
        InputError: The folder holds something else.
    """
    processes = Processes.current()
    if processes.first:
        claim(folder, settings)
    files = [folder / f"{k:06d}.png" for k in range(n)]
    about = made_by(settings, origin or {})
    batches = processes.batches(n, batch_size)
    todo = [batch for batch in batches if not all(files[k].is_file() for k in batch.tolist())]
    processes.wait()  # so that all see the same files as missing
    own, done = todo[processes.rank :: processes.count], n - sum(map(len, todo))
    total, shown = done + sum(map(len, own)), processes.first
    try:
        with show_progress(total=total, initial=done, desc="samples", disable=not shown) as bar:
            for batch in own:
                for k, image in zip(batch.tolist(), to_uint8(draw(batch)), strict=True):
                    write_png(files[k], image, {**about, "sample": k})
                bar.update(len(batch))
    except BaseException:
        if processes.first:
            release(folder)
        raise
    processes.wait()


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """State in a folder what is drawn into it.

    Raises InputError: It holds other files, or samples of other settings.
    """
    path = folder / SETTINGS
    if path.is_file():
        try:
            found = json.loads(path.read_text("utf-8"))
            keys = {**settings, **found}  # of both, because only the sample command knows edits
            differing = [key for key in keys if found.get(key) != settings.get(key)]
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}); remove {folder}") from error
        if differing:
            raise InputError(
                f"{folder} holds samples that were drawn with another {', '.join(differing)}; "
                "choose another --out, or remove it"
            )
        return
    # A stop just here leaves nothing but the file's beginning.
    others = folder.is_dir() and [p for p in contents(folder) if p.name != SETTINGS + PARTIAL]
    if others or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} holds other files; choose another --out")
    write_json(path, settings)


def release(folder: Path) -> None:
    """Remove a folder into which nothing has been drawn."""
    with suppress(OSError):
        if [path.name for path in contents(folder)] == [SETTINGS]:
            (folder / SETTINGS).unlink()
            folder.rmdir()
