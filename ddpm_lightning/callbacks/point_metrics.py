"""Distances between samples and data of few dimensions while training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.results import report
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.data.data_module import DiffusionData, Split, identity
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.sample_set import SampleSet
from ddpm_lightning.metrics import Features, Floor, Measures, Metric, Result, Score, as_metrics
from ddpm_lightning.metrics.cache import pixels_digest
from ddpm_lightning.module import DiffusionModule

SETS = 5
"""Distances to average: one set of a few thousand points is off by chance as much as by error."""


class PointMetrics(Periodic):
    """Logs distances between samples and real points: sliced Wasserstein-1 and squared MMD.

    The first points of the split make up to five sets of n, and each is compared with n samples of
    its own; the distance is the mean. Beside it stands the mean over the pairs of the real sets:
    samples that reach it cannot be told from the data by this distance. Tags name what was
    measured (points in a set, sampler and its steps, weights, split); ``swd`` and ``mmd`` are the
    stable aliases for ``monitor:``. metrics.json in the run folder keeps every result.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; the end of training has
            one, too.
        n: Points in a set; the split holds at least two sets. Distances at different n do not
            compare.
        metrics: Metrics of the points themselves, e.g. [swd, {class_path: MMD, init_args:
            {bandwidths: [0.5]}}].
        reference: Split to compare with: val (as training has not seen it), train or test.
        batch_size: Samples at a time on each device.
        **request: How the samples are asked for, see Request; by default a conditional model gets
            the labels of the real points, in their order.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 2000,
        metrics: Sequence[Metric | str] | str = ("swd", "mmd"),
        reference: Split = "val",
        batch_size: int = 2000,
        **request: Any,
    ) -> None:
        super().__init__(every_n_steps)
        self.request = SampleSet(n=n, batch_size=batch_size, **request)
        self.measures = Measures(as_metrics(metrics), None, self.request.seed)
        self.reference = reference

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, DiffusionModule)
        self.request.check(pl_module)
        self.measures.check(self.request.n, self.request.n)
        if len(pl_module.data.shape) != 1:
            raise InputError(
                "PointMetrics compares points, not data of shape "
                f"{list(pl_module.data.shape)}; GenerativeMetrics compares images"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        data, n = getattr(trainer, "datamodule", None), self.request.n
        if not isinstance(data, DiffusionData):
            raise InputError(
                "PointMetrics compares with the points of a DiffusionData data module, but "
                f"training uses {type(data).__name__}; leave the callback out"
            )
        batch = data.finished(self.reference)
        points, total = batch.x0, len(batch.x0)
        if total < 2 * n:
            raise InputError(
                f"PointMetrics(n={n}) needs {2 * n} points for real against real, and the "
                f"{self.reference} split has {total}; use fewer, or more data (--data.n)"
            )
        self._condition = batch.condition
        self._sets = [Features(part) for part in points.split(n)[: min(SETS, total // n)]]
        self._floors = {
            name: Floor(score.value, n, n)
            for name, score in self._mean(combinations(self._sets, 2)).items()
        }
        self._described = {
            "data": identity(data),
            "split": self.reference,
            "count": len(self._sets) * n,
            "sha256": pixels_digest(points),
        }

    def _mean(self, pairs: Iterable[tuple[Features, Features]]) -> dict[str, Score]:
        """Average the scores of several pairs of sets."""
        found = [self.measures(x, y, errors=False) for x, y in pairs]
        return {
            name: replace(score, value=sum(one[name].value for one in found) / len(found))
            for name, score in found[0].items()
        }

    @override
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        assert isinstance(module, DiffusionModule)
        n, count = self.request.n, self._described["count"]
        with trainer.precision_plugin.forward_context():
            x = module.generate(
                share(count, trainer),
                self.request,
                self._condition,
                progress=shows_progress(trainer),
            ).x
        drawn = [Features(part) for part in gather(x, count, trainer).split(n)]
        samples = self.request.state(module, self._condition)
        samples |= {"n": n, "sets": len(self._sets), "precision": str(trainer.precision)}
        for name, score in self._mean(zip(drawn, self._sets, strict=True)).items():
            score = replace(score, floor=self._floors[name])
            result = Result(name, score, samples, self._described, None, step)
            report(trainer, result, self.request.tag(module), score.alias, "set against set")
