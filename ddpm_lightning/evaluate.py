"""The evaluate command."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from ddpm_lightning.checkpoints import read_checkpoint
from ddpm_lightning.data.conditioned import Conditioned, condition_source
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.in_memory import Split
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.diffusion.variances import Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.compare import compare_results, with_error
from ddpm_lightning.evaluation.floor import check_floor, floor_table, floors
from ddpm_lightning.evaluation.judge import Judge
from ddpm_lightning.evaluation.likelihood import bits_per_dimension
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.sample_folder import SETTINGS, Drawing, draw_into
from ddpm_lightning.evaluation.scores import FEATURE_METRICS, Score, check_metrics
from ddpm_lightning.evaluation.sweep import Sweep, draw_sweep, points
from ddpm_lightning.figure import write_figure
from ddpm_lightning.image_folder import ImageFolder
from ddpm_lightning.metrics import FeatureExtractor, Inception, LeNet
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.sampling import labels_of
from ddpm_lightning.trained import DataPlace, data_of, device_named, set_variance
from ddpm_lightning.usage import nearest

METRICS = (*FEATURE_METRICS, "bpd")


def evaluate(
    ckpt: Path | None = None,
    out: Path | None = None,
    samples: Path | None = None,
    reference: ImageData | Path | None = None,
    data: DataPlace = DataPlace(),
    split: Split = "train",
    metrics: str = "fd",
    n: int | None = None,
    extractor: FeatureExtractor | None = None,
    sampler: Sampler | None = None,
    labels: list[int] | int | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    variance: Variance | None = None,
    weights: Literal["ema", "raw"] = "ema",
    seed: int = 1,
    batch_size: int = 256,
    sweep: Sweep | None = None,
    floor: list[int] | None = None,
    compare: tuple[Path, Path] | None = None,
    device: str = "auto",
) -> None:
    """Score the samples of a checkpoint, or images from anywhere, against real images.

    Writes results.json (every number with all that was measured), grid.png and neighbours.png
    (samples with their nearest real images) into a folder, and prints a table. Samples are drawn
    into the folder, too: the same command goes on where a stopped one was.

    Args:
        ckpt: The checkpoint; it describes its model and data itself.
        out: Folder for the results.
        samples: Score the PNG and JPEG images of this folder, instead of a checkpoint's.
        reference: Real images: a folder, or a data set, e.g. --reference MNIST --reference.root
            data; default: the data of the checkpoint.
        data: Where the checkpoint's data is now, if it has moved.
        split: Split of the data set; published numbers are against train.
        metrics: Comma-separated: fd (Fréchet distance), fd_inf (extrapolated to endless samples),
            kid (of subsets of 1,000, or of n if fewer), is (Inception score), pr (precision,
            recall, density, coverage), accuracy (share of samples that the extractor's classifier
            takes for the class asked for) and bpd (bound on −log p of the test split, in bits a
            dimension).
        n: Number of samples; default 10,000, or all images of a folder. Distances at different n
            do not compare; published FIDs use 50,000.
        extractor: Whose features are compared; default: LeNet for grey images, else Inception.
        sampler: How to sample, e.g. --sampler DDIM --sampler.steps 50; default: DDPM over all
            levels. Clips to the data's range.
        labels: Class labels for a conditional model: one, or a list that is repeated; default:
            those of the real images, in their order.
        guidance: Strength of classifier-free guidance; 1 is none.
        guidance_interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; null: at all.
        guidance_rescale: Share, 0 to 1, by which guided predictions are brought back to the spread
            of unguided ones.
        variance: Variance of the reverse steps of DDPM, in place of the checkpoint's.
        weights: ema (averaged) or raw (as the optimizer left them).
        seed: Seed of the noise.
        batch_size: Images at a time.
        sweep: Score many settings, e.g. --sweep.evaluations "[10, 20]" --sweep.samplers
            "[DDIM, Heun]" --sweep.guidance "[1, 2]", or --sweep FILE; sweep.json, sweep.png and a
            table compare them. In place of sampler, guidance and variance.
        floor: Numbers of images, e.g. "[1000, 2000, 5000]": the Fréchet distance, and the
            extrapolated one, of so many real images against as many others, into floor.json;
            in place of samples, against --reference or the checkpoint's data.
        compare: Two results.json: say which differences are within the noise, and nothing else.
        device: cpu, cuda, cuda:1, mps, or auto.

    Raises:
        InputError: A file, a folder or a setting does not work.
    """
    if compare is not None:
        print(compare_results(*compare))
        return
    names = _metric_names(metrics)
    if out is None or (floor is None and (ckpt is None) == (samples is None)):
        raise InputError(
            "evaluate what, and where to? Give --ckpt FILE or --samples DIR, and --out"
        )
    if floor is not None and (samples is not None or sweep is not None):
        raise InputError("a floor is of real images alone: leave out samples and sweep")
    if min(n or 2, batch_size + 1) < 2 or seed < 0:
        raise InputError(
            f"n={n}, batch_size={batch_size}, seed={seed}: n is at least 2, batch_size at least "
            "1, seed not negative"
        )
    if sweep is not None and (ckpt is None or sampler is not None or variance is not None):
        raise InputError("a sweep is of a --ckpt, and sets sampler and variance itself")
    real = _real_images(ckpt, reference, data, split)
    extractor = extractor or (LeNet() if real.shape[0] == 1 else Inception())
    extractor.check()
    on = device_named(device)
    if floor is not None:
        check_floor(floor, len(real))
        judge = Judge(real, extractor, (), seed, batch_size, on)
        found = floors(judge.reference, floor, seed)
        numbers = {"floors": [asdict(one) for one in found]}
        _write_json(out / "floor.json", numbers | judge.describe())
        print(f"{out}: real images against as many others, from {len(real)}")
        print(floor_table(found, extractor.name))
        return
    if samples is not None:
        if {"bpd", "accuracy"} & set(names):
            raise InputError("bpd and accuracy are of a checkpoint, not of a folder of images")
        folder = ImageFolder(samples, n)
        _same_shape(str(samples), folder.shape, real)
        check_metrics(names, extractor, len(folder), len(real))
        judge = Judge(real, extractor, names, seed, batch_size, on)
        scores = judge(folder, None, out)
        _finish(out, judge, scores, len(folder), {"folder": str(samples)})
        return

    assert ckpt is not None
    module = DiffusionModule.load_from_checkpoint(ckpt).to(on).eval()
    _same_shape(str(ckpt), module.shape, real)
    given = [labels] if isinstance(labels, int) else labels
    if given is None and module.num_classes is not None and real.labels is not None:
        given = real.labels.tolist()
    ema, count = weights == "ema", n or 10_000
    module.check_labels(given, guidance)
    asked = labels_of(torch.arange(count), module.num_classes, given)
    if "accuracy" in names and asked is None:
        raise InputError(f"accuracy: {ckpt} takes no labels, so none was asked for")
    check_metrics(names, extractor, count, len(real))
    source = {"checkpoint": str(ckpt), "step": read_checkpoint(ckpt)["global_step"]}

    pattern = None if given is None else torch.as_tensor(given)
    condition, condition_of = None, None
    if module.condition_channels:
        paired = condition_source(data_of(ckpt, data), module.condition_channels)
        assert paired is not None
        condition = paired.conditions(split, count)
        condition_of = {"data": paired.describe(), "split": split}

    def score(folder: Path, sampler: Sampler, strength: Guidance) -> dict[str, Any]:
        drawing = Drawing(sampler, strength, pattern, ema, seed, condition, condition_of)
        images = folder / "samples"
        draw_into(images, module, drawing, count, batch_size)
        scores = judge(ImageFolder(images, count), asked, folder)
        if "bpd" in names:
            where = data_of(ckpt, data)
            scores["bpd"] = bits_per_dimension(module, where, ema, seed, batch_size, folder)
        stated = json.loads((images / SETTINGS).read_text())
        return _finish(folder, judge, scores, count, source | stated)

    if sweep is None:
        if variance is not None:
            set_variance(module, variance, sampler, ckpt, ema)
        strength = Guidance(guidance, guidance_interval, guidance_rescale)
        sampler = sampler or DDPM()
        sampler.levels(module.schedule)
        judge = Judge(real, extractor, names, seed, batch_size, on)
        score(out, sampler, strength)
        return

    plan = points(sweep, module.schedule)
    for point in plan:
        module.check_labels(given, point.guidance)
    judge = Judge(real, extractor, names, seed, batch_size, on)
    trained = module.variance
    rows: list[dict[str, Any]] = []
    for k, point in enumerate(plan, start=1):
        print(f"{k} of {len(plan)}: {point.curve}, {point.evaluations} evaluations")
        module.variance = trained
        if point.variance is not None:
            set_variance(module, point.variance, point.sampler, ckpt, ema)
        result = score(out / point.name, point.sampler, point.guidance)
        rows.append({"curve": point.curve, "evaluations": point.evaluations} | result)
        _write_json(out / "sweep.json", rows)
    for name in rows[0]["metrics"]:
        write_figure(out / f"sweep_{name}.png", draw_sweep(rows, name))
    print(_sweep_table(rows))
    print(f"{out}/sweep.json holds the numbers, {out}/sweep_*.png the curves")


def _metric_names(metrics: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip()))
    for name in names:
        if name not in METRICS:
            raise InputError(
                f"no metric '{name}'{nearest(name, METRICS, otherwise='')}; there are "
                f"{', '.join(METRICS)} (--metrics)"
            )
    if not names:
        raise InputError(f"no metrics; choose from {', '.join(METRICS)} (--metrics)")
    return names


def _real_images(
    ckpt: Path | None, reference: ImageData | Path | None, data: DataPlace, split: Split
) -> RealImages:
    if isinstance(reference, Path):
        return RealImages.of_folder(reference)
    source: Any = reference
    if source is None:
        if ckpt is None:
            raise InputError("which real images? Give --reference DIR, or a data set: MNIST, …")
        source = data_of(ckpt, data)
        if isinstance(source, Conditioned):
            source = source.data
    if not isinstance(source, ImageData):
        raise InputError(
            f"evaluate is for images, and {type(source).__name__} has none; distances of points "
            "are measured in training (PointMetrics)"
        )
    return RealImages.of_data(source, split)


def _same_shape(what: str, shape: tuple[int, ...], real: RealImages) -> None:
    if tuple(shape) != tuple(real.shape):
        raise InputError(
            f"{what} has images of shape {list(shape)} (channels, height, width), but the real "
            f"ones are {list(real.shape)}; nothing is resized or converted silently, so bring one "
            "to the other first"
        )


def _finish(
    folder: Path, judge: Judge, scores: dict[str, Score], n: int, samples: dict[str, Any]
) -> dict[str, Any]:
    """Write results.json and print the table."""
    result = {
        "metrics": {name: asdict(score) for name, score in scores.items()},
        "n": n,
        **judge.describe(),
        "samples": samples,
        "versions": {name: version(name) for name in ("ddpm_lightning", "torch")},
    }
    _write_json(folder / "results.json", result)
    print(f"{folder}: {n} samples against {judge.real.description['count']} real images")
    width = max(map(len, scores))
    for name, score in scores.items():
        floor = "" if score.floor is None else f"   real images: {score.floor:.4g}"
        print(f"  {name:{width}}  {with_error(score.value, score.error):<18}{floor}")
    return result


def _sweep_table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["metrics"])
    width = max(len(row["curve"]) for row in rows)
    lines = [f"{'':{width}}  evaluations" + "".join(f"  {name:>16}" for name in names)]
    for row in rows:
        scores = [row["metrics"][name] for name in names]
        cells = "".join(f"  {with_error(s['value'], s['error']):>16}" for s in scores)
        lines.append(f"{row['curve']:{width}}  {row['evaluations']:>11}{cells}")
    return "\n".join(lines)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
