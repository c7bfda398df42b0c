"""The score command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.evaluation import BOUND
from ddpm_lightning.evaluation.judge import Judge, check_out
from ddpm_lightning.evaluation.report import table
from ddpm_lightning.images import images_at
from ddpm_lightning.metrics import Metric, as_metrics
from ddpm_lightning.metrics.result import write_results
from ddpm_lightning.processes import Processes


def score(
    samples: Path,
    out: Path,
    metrics: Sequence[Metric | str] | str = "fd",
    n: int | None = None,
    **judge: Any,
) -> None:
    """Score a folder or an .npz of images, from anywhere, against real images.

    Writes results.json, grid.png and neighbours.png into a folder and prints a table, as evaluate
    does.

    Args:
        samples: Folder of PNG, JPEG, WebP, BMP or TIFF images, or an .npz with arr_0, uint8
            [N, H, W, C].
        out: Folder for the results.
        metrics: As for evaluate, but for accuracy and bpd, which are of a checkpoint.
        n: Score the first n images; null: all. Distances at different n do not compare.
        **judge: Against what and how, see Judge.

    Raises:
        InputError: A file, a folder or a setting does not work.
    """
    named = metrics.split(",") if isinstance(metrics, str) else metrics
    if BOUND in [name.strip() for name in named if isinstance(name, str)]:
        raise InputError(f"{BOUND} is of a checkpoint, not of a folder of images")
    chosen = as_metrics(metrics)
    for metric in chosen:
        if metric.needs_labels:
            raise InputError(f"{metric.name} is of a checkpoint, not of a folder of images")
    first = Processes.current().first
    judged = Judge(metrics=chosen, **judge)
    if first:
        check_out(out, {"samples": samples, "reference.folder": judged.real.folder})
    images = images_at(samples, n)
    judged.check(samples, images.shape, len(images))
    stated = {"folder": str(samples), "seed": judged.measures.seed}
    results = judged(images, out, stated)
    if not first:
        return
    records = write_results(out / "results.json", results)
    print(f"{out}: {judged.in_words(len(images))}")
    print(table(records))
