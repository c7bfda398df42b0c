"""Distances between samples and data while training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.results import report
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.data.data_module import Split
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.sample_set import SampleSet, made_by
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.metrics import (
    FeatureExtractor,
    Features,
    Measures,
    Metric,
    Result,
    as_metrics,
    choice_in_words,
    chosen_before,
    chosen_extractor,
)
from ddpm_lightning.metrics.cache import cache_path, lookup, store
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.strips import draw_neighbours
from ddpm_lightning.progress import show_progress
from ddpm_lightning.sampling import Weights
from ddpm_lightning.trackers import show

MOST_WITH_ERRORS = 10_000
"""Samples up to which standard errors are computed: one process does, and the others wait."""


class GenerativeMetrics(Periodic):
    """Logs distances between samples and the un-augmented training images.

    By default the Fréchet distance; more on request, all from one pass of the extractor. Tags name
    what was measured (extractor, number of samples, sampler and its steps, weights, reference
    split); ``fid`` (Inception) or ``fd`` (any other extractor) is the stable alias for
    ``monitor:``. Beside it stand its standard error (up to 10,000 samples; it takes a minute for
    Inception on one core) and, for scale, the distance of n real images (of half the reference, if
    n is more) to its other images. metrics.json in the run folder keeps every result. The features
    of the real images are kept on disk, so only the first run on a data set computes them.

    Args:
        extractor: Whose features are compared. LeNet (grey images) and ColourNet (colour) ship
            with the package; Inception gives the FID. auto is LeNet for grey; for colour it is
            Inception if its weights are in torch hub's cache, else ColourNet. It is printed, and a
            resumed run keeps it.
        every_n_steps: Optimizer steps from one measurement to the next; the end of training has
            one, too.
        n: Number of samples. Distances at different n do not compare; published FIDs use 50000.
        metrics: Any of fd (Fréchet distance), fd_inf (extrapolated to endless samples), kid
            (kernel distance), is (Inception score), pr (precision, recall, density, coverage) and
            accuracy (share of samples that the extractor's classifier takes for the class asked
            for), with settings as {class_path: KID, init_args: {subset_size: 500}}, or the class
            path of one of your own.
        reference: Split to compare with: train (as published numbers do), val or test.
        weights: ema (averaged), raw (the ones in training), or both, one after the other; then the
            aliases are those of the averaged ones, and fd_raw and its like of the other.
        neighbours: Samples that are shown with their nearest real images, in which copies would
            show: a PNG in the run folder's samples, and a picture in the loggers. 0: none.
        cache: Folder in which the features of the real images are kept; null: ddpm_lightning in
            $XDG_CACHE_HOME, else in ~/.cache.
        **request: How the samples are asked for, see Request; by default a conditional model gets
            the labels of the reference images, in their order, repeated up to n.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | Literal["auto"] = "auto",
        every_n_steps: int = 5000,
        n: int = 2000,
        metrics: Sequence[Metric | str] | str = ("fd",),
        reference: Split = "train",
        weights: Weights | Literal["both"] = "ema",
        neighbours: int = 8,
        cache: str | None = None,
        **request: Any,
    ) -> None:
        super().__init__(every_n_steps)
        at_least(0, self, neighbours=neighbours)
        first = SampleSet(n=n, weights="ema" if weights == "both" else weights, **request)
        self.requests = [first]
        if weights == "both":
            self.requests.append(first.replace(weights="raw"))
        self.extractor = extractor
        self._choice: str | None = None  # by auto: the name of the class
        self.metrics = as_metrics(metrics)
        self.n = n
        self.reference = reference
        self.neighbours = neighbours
        self.cache = cache

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._choice = None
            assert isinstance(pl_module, DiffusionModule)
            for request in self.requests:
                request.check(pl_module)
            RealImages().of(getattr(trainer, "datamodule", None))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # because auto may come to another, and warns then
                extractor = self.chosen(pl_module.data.shape)
            if self.extractor != "auto":
                extractor.check()

    def chosen(
        self, shape: Sequence[int], agreed: Callable[[bool], bool] = bool
    ) -> FeatureExtractor:
        """Return the extractor for images [C, H, W]: the named one, the kept one, or auto's.

        Args:
            shape: Of an image.
            agreed: Turns this process's answer to whether weights are here into one of all.

        Raises:
            InputError: It does not suit the images or the metrics, or a kept one has no weights.
        """
        extractor = (
            chosen_extractor(self.extractor, shape, agreed)
            if self._choice is None
            else chosen_before(self._choice, agreed)
        )
        extractor.check_shape(shape)
        Measures(self.metrics, extractor).check(self.n)
        return extractor

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # No state_dict: all callbacks of this class share the choice, and with it their key.
        if self._choice is not None:
            checkpoint["callbacks"][self.state_key] = {"extractor": self._choice}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.extractor != "auto":
            return
        choice = state_dict.get("extractor")
        if not isinstance(choice, str):
            raise InputError(
                f"the checkpoint's extractor of {self.state_key} is no name; name the one to "
                "measure with by --metrics.extractor NAME"
            )
        self._choice = choice

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._choice not in (None, type(self._chosen).__name__):
            self.on_fit_start(trainer, pl_module)  # because FSDP restores callbacks only after it

    def _choose(self, trainer: Trainer, shape: Sequence[int]) -> None:
        """Choose the extractor: the same on all processes, and for all of a run."""
        kept = self._choice
        self._chosen = self.chosen(shape, trainer.strategy.reduce_boolean_decision)
        self._chosen.check()
        self.measures = Measures(self.metrics, self._chosen, self.requests[0].seed)
        if self.extractor == "auto":
            self._choice = type(self._chosen).__name__
            if trainer.is_global_zero:
                tqdm.write(choice_in_words(self._chosen, kept is not None))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self._choose(trainer, pl_module.data.shape)
        data: Any = getattr(trainer, "datamodule", None)
        self._real = RealImages(split=self.reference).of(data)
        self.measures.check(self.n, self._real.count)
        image = None
        if pl_module.data.image_channels:
            image = data.finished(self.reference, self.n).condition.image
        self._known, self._texts = Condition(self._real.labels, image), data.texts
        self._asked = [one.with_captions(pl_module, data, self.reference) for one in self.requests]
        labels = self._asked[0].labels_of(pl_module, self._known, self._texts)
        self.measures.check_labels(self._real.data, labels)
        self._shown = torch.empty(0, *pl_module.data.shape, dtype=torch.uint8)
        features = self._features_of_real(trainer, pl_module)
        if not trainer.is_global_zero:  # one process measures, and tells the others
            return
        self._against = self._real.reference(self.measures, features, self._real.digest())
        self._against.floors(self.n)
        if not (self.measures.needs_pairs or self.neighbours):
            self._against.features = features.summarised()

    def _features_of_real(self, trainer: Trainer, module: LightningModule) -> Features:
        """Find the features of the reference on disk, or share the work and keep them there."""
        images, found, path = self._real.source, None, None
        if trainer.is_global_zero and isinstance(images, Tensor):
            path = cache_path(self._chosen, images, self.cache)
            found = lookup(path)
        if trainer.strategy.broadcast(found is not None):
            return found if found is not None else _NOTHING
        indices = share(len(images), trainer) % len(images)
        parts = self._real.batches(indices, self.requests[0].batch_size)
        features = self._gathered(parts, len(images), trainer, module)
        if path is not None:
            store(features, path)
        return features

    def _gathered(
        self, batches: Iterator[Tensor], n: int, trainer: Trainer, module: LightningModule
    ) -> Features:
        """Extract this process's share, and put all shares in the order of the indices."""
        batch_size = self.requests[0].batch_size
        own = Features.compute(self._chosen, batches, module.device, batch_size)
        logits = None if own.logits is None else gather(own.logits, n, trainer)
        return Features(gather(own.features, n, trainer), logits)

    @override
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        assert isinstance(module, DiffusionModule)
        for request in self._asked:
            images = self._drawn(trainer, module, request)
            features = self._gathered(images, self.n, trainer, module)
            results: list[Result] = []
            how, words = request.tag(module), ""
            if trainer.is_global_zero:
                words = self._against.in_words(self.n)
                samples = request.state(module, self._known)
                about = made_by(samples, {"step": step})
                self._show_neighbours(trainer, features, f"neighbours_{how}", about)
                labels = request.labels_of(module, self._known, self._texts)
                scores = self._against(features, labels, self.n <= MOST_WITH_ERRORS)
                samples |= {"n": self.n, "precision": str(trainer.precision)}
                results = self._against.results(scores, samples, step)
            for result in trainer.strategy.broadcast(results):
                alias = result.score.alias + ("" if request is self._asked[0] else "_raw")
                report(trainer, result, how, alias, words)

    def _drawn(
        self, trainer: Trainer, module: DiffusionModule, request: SampleSet
    ) -> Iterator[Tensor]:
        """Generate this process's share, uint8, a batch at a time: the images are not kept."""
        progress = shows_progress(trainer)
        batches = share(self.n, trainer).split(request.batch_size)
        shown = {"desc": "batches of samples", "leave": False, "disable": not progress}
        for indices in show_progress(batches, **shown):
            with trainer.precision_plugin.forward_context():
                x = module.generate(indices, request, self._known, progress=progress).x
            images = to_uint8(x)
            if len(self._shown) < self.neighbours:
                self._shown = torch.cat([self._shown, images])[: self.neighbours]
            yield images

    def _show_neighbours(
        self, trainer: Trainer, samples: Features, name: str, about: dict[str, Any]
    ) -> None:
        """Draw the first samples of this process, each before its nearest real images."""
        shown, self._shown = self._shown, self._shown[:0]
        if not len(shown):
            return
        # This process drew samples 0, world, 2·world, …
        own = samples.features[:: trainer.world_size][: len(shown)]
        real = self._against.features.features
        panel = draw_neighbours(shown[: len(own)], own, real, self._real.take)
        step = int(about["step"])
        file = Path(trainer.default_root_dir) / "samples" / f"{name}_step_{step:08d}.png"
        write_png(file, panel, about)
        show(trainer, f"samples/{name}", file, step)


_NOTHING = Features(torch.empty(0, 0))
"""Stands in for the features on a process that does not measure."""
