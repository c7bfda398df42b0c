"""The sweep command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ddpm_lightning.evaluation.evaluation import Evaluation
from ddpm_lightning.evaluation.judge import check_out
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.report import sweep_table
from ddpm_lightning.evaluation.sweep import Sweep, draw_sweep
from ddpm_lightning.evaluation.table import ENDINGS, Layout
from ddpm_lightning.files import atomic_write, write_json
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.metrics import FeatureExtractor, Metric
from ddpm_lightning.plots.figure import FIGURES, write_figure
from ddpm_lightning.processes import Processes


def sweep(
    ckpt: Path,
    out: Path,
    metrics: Sequence[Metric | str] | str = "fd",
    reference: RealImages = RealImages(),
    extractor: FeatureExtractor | Literal["auto"] = "auto",
    data: DataPlace = DataPlace(),
    table: Layout = "text",
    device: str = "auto",
    **axes: Any,
) -> None:
    """Score a checkpoint with many samplers and settings, at equal numbers of evaluations.

    Each combination has a folder as evaluate makes it; sweep.json, curves (sweep_*.png, .pdf and
    .svg) and a table compare them. The same command goes on where a stopped one was.

    Args:
        ckpt: The checkpoint; it describes its model and data itself.
        out: Folder for the results.
        metrics: As for evaluate.
        reference: Real images; by default the data of the checkpoint.
        extractor: Whose features are compared. auto is LeNet for grey images; for colour it is
            Inception if its weights are in torch hub's cache, else ColourNet.
        data: Where the checkpoint's data is now, if it has moved.
        table: How the table is printed, and kept as sweep.csv, .tex or .md beside sweep.json.
        device: cpu, cuda, cuda:1, mps, or auto.
        **axes: What is combined, see Sweep.

    Raises:
        InputError: A file, a folder or a setting does not work.
    """
    plan = Sweep(**axes)
    first = Processes.current().first
    if first:
        check_out(out, {"reference.folder": reference.folder})
    loaded = Loaded.read(ckpt, data, device)
    points = plan.points(loaded.module.schedule)
    evaluation = Evaluation(loaded, metrics, reference, extractor, plan.samples)
    for point in points:
        evaluation.check(point.samples)
    rows: list[dict[str, Any]] = []
    for k, point in enumerate(points, start=1):
        print(f"{k} of {len(points)}: {point.curve}, {point.evaluations} evaluations")
        results = evaluation(point.samples, out / point.name)
        rows.append({"curve": point.curve, "evaluations": point.evaluations, "results": results})
        if first:
            write_json(out / "sweep.json", rows)
    if not first:
        return
    laid_out = sweep_table(rows, table)
    print(laid_out)
    if table != "text":
        with atomic_write(out / f"sweep.{ENDINGS[table]}") as partial:
            partial.write_text(laid_out + "\n", "utf-8")
    for record in rows[0]["results"]:
        name = record["metric"]
        for ending in FIGURES:
            write_figure(out / f"sweep_{name}{ending}", draw_sweep(rows, name))
    print(f"{out}/sweep.json holds the numbers, {out}/sweep_*.png, .pdf and .svg the curves")
