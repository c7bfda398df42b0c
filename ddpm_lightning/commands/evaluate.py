"""The evaluate command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from ddpm_lightning.checks import check_folder, check_seed
from ddpm_lightning.data.conditioned import Conditioned
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.in_memory import Split
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.diffusion.variances import Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.checkpoint import Evaluated
from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.evaluation.floor import check_floor, floor_table, floors
from ddpm_lightning.evaluation.judge import Judge
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.report import sweep_table, table, write_results
from ddpm_lightning.evaluation.sweep import Sweep, draw_sweep, points
from ddpm_lightning.files import write_json
from ddpm_lightning.images import ImageFolder
from ddpm_lightning.metrics import FeatureExtractor, Inception, LeNet, Measures
from ddpm_lightning.metrics.measure import Metric, check_accuracy
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.figure import write_figure
from ddpm_lightning.sampling import levels_from_noise
from ddpm_lightning.terminal.usage import nearest
from ddpm_lightning.trained import DataPlace, data_of, device_named, set_variance

METRICS = (*get_args(Metric), "bpd")


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
            "[DDIM, Heun]" --sweep.guidance "[1, 2]", or --sweep FILE; sweep.json, sweep_*.png and
            a table compare them. In place of sampler, guidance and variance.
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
    if floor is not None and samples is not None:
        raise InputError("a floor is of real images alone: leave out samples")
    check_seed(seed)
    if min(2 if n is None else n, batch_size + 1) < 2:
        raise InputError(f"n={n}, batch_size={batch_size}: n is at least 2, batch_size at least 1")
    given = {
        "sampler": sampler is not None,
        "guidance": guidance != 1,
        "variance": variance is not None,
        "guidance_interval": guidance_interval is not None,
        "guidance_rescale": guidance_rescale != 0,
        "labels": labels is not None,
        "weights": weights != "ema",
        "sweep": sweep is not None,
    }
    idle = [flag for flag, is_given in given.items() if is_given]
    if (samples is not None or floor is not None) and idle:
        raise InputError(f"nothing is drawn from a model here: leave out {', '.join(idle)}")
    idle = [flag for flag in idle if flag in ("sampler", "guidance", "variance")]
    if sweep is not None and idle:
        raise InputError(f"a sweep sets this itself: leave out {', '.join(idle)}")
    if samples is not None and {"bpd", "accuracy"} & set(names):
        raise InputError("bpd and accuracy are of a checkpoint, not of a folder of images")
    _check_out(out, samples, reference)
    on = device_named(device)

    if floor is not None:
        real, extractor = _reference(ckpt, reference, data, split, extractor)
        check_floor(floor, len(real))
        _write_floor(Judge(real, extractor, None, batch_size, on), floor, seed, out)
        return
    if samples is not None:
        real, extractor = _reference(ckpt, reference, data, split, extractor)
        images = ImageFolder(samples, n)
        measures = _measures(names, real, extractor, samples, images.shape, len(images), seed)
        _score_folder(Judge(real, extractor, measures, batch_size, on), images, samples, seed, out)
        return

    assert ckpt is not None
    against = None
    if names != ["bpd"]:
        against = _reference(ckpt, reference, data, split, extractor)
    module = DiffusionModule.load_from_checkpoint(ckpt).to(on).eval()
    asked = [labels] if isinstance(labels, int) else labels
    if asked is None and module.num_classes is not None and against is not None:
        real_labels = against[0].labels
        asked = None if real_labels is None else real_labels.tolist()
    module.check_labels(asked, guidance)
    subject = Evaluated(
        ckpt=ckpt,
        module=module,
        place=data,
        split=split,
        labels=asked,
        ema=weights == "ema",
        n=10_000 if n is None else n,
        seed=seed,
        batch_size=batch_size,
        bpd="bpd" in names,
    )
    plan, trained = None, module.variance
    if sweep is not None:
        plan = points(sweep, module.schedule, guidance_interval, guidance_rescale)
        for point in plan:
            module.check_labels(asked, point.guidance)
            if point.variance is not None:
                set_variance(module, point.variance, point.sampler, ckpt, subject.ema)
                module.variance = trained
    else:
        strength = Guidance(guidance, guidance_interval, guidance_rescale)
        sampler = sampler or DDPM()
        levels_from_noise(sampler, module.denoiser(subject.ema))
        if variance is not None:
            set_variance(module, variance, sampler, ckpt, subject.ema)
    judge = None
    if against is not None:
        measures = _measures(names, *against, ckpt, module.shape, subject.n, seed)
        if "accuracy" in names:
            check_accuracy(against[1], subject.label_source(), subject.asked)
        judge = Judge(*against, measures, batch_size, on)
    if plan is None:
        assert sampler is not None
        subject.score(out, sampler, strength, judge)
        return

    rows: list[dict[str, Any]] = []
    for k, point in enumerate(plan, start=1):
        print(f"{k} of {len(plan)}: {point.curve}, {point.evaluations} evaluations")
        module.variance = trained
        if point.variance is not None:
            set_variance(module, point.variance, point.sampler, ckpt, subject.ema)
        result = subject.score(out / point.name, point.sampler, point.guidance, judge)
        rows.append({"curve": point.curve, "evaluations": point.evaluations} | result)
        write_json(out / "sweep.json", rows)
    for name in rows[0]["metrics"]:
        write_figure(out / f"sweep_{name}.png", draw_sweep(rows, name))
    print(sweep_table(rows))
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


def _reference(
    ckpt: Path | None,
    reference: ImageData | Path | None,
    data: DataPlace,
    split: Split,
    extractor: FeatureExtractor | None,
) -> tuple[RealImages, FeatureExtractor]:
    """Find the real images, and whose features are compared."""
    real = _real_images(ckpt, reference, data, split)
    extractor = extractor or (LeNet() if real.shape[0] == 1 else Inception())
    extractor.check()
    return real, extractor


def _measures(
    names: Sequence[str],
    real: RealImages,
    extractor: FeatureExtractor,
    what: Path,
    shape: Sequence[int],
    n: int,
    seed: int,
) -> Measures:
    """Choose how to measure n samples, and refuse what cannot be, before anything is computed."""
    _same_shape(str(what), shape, real)
    of_samples: Any = [name for name in names if name != "bpd"]
    measures = Measures(of_samples, min(1000, n, len(real)), seed=seed)
    measures.check(extractor, n, len(real))
    return measures


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


def _same_shape(what: str, shape: Sequence[int], real: RealImages) -> None:
    if tuple(shape) != tuple(real.shape):
        raise InputError(
            f"{what} has images of shape {list(shape)} (channels, height, width), but the real "
            f"ones are {list(real.shape)}; nothing is resized or converted silently, so bring one "
            "to the other first"
        )


def _check_out(out: Path, samples: Path | None, reference: ImageData | Path | None) -> None:
    """Refuse a folder for the results that cannot be written, or that holds the images."""
    for flag, images in (("samples", samples), ("reference", reference)):
        if isinstance(images, Path) and images.resolve() in (
            out.resolve(),
            *out.resolve().parents,
        ):
            raise InputError(
                f"--out {out} lies in --{flag} {images}, whose images the results would join; "
                "choose another --out"
            )
    check_folder(out)


def _write_floor(judge: Judge, sizes: list[int], seed: int, out: Path) -> None:
    found = floors(judge.reference, sizes, seed)
    numbers = {"floors": [asdict(one) for one in found], "seed": seed}
    write_json(out / "floor.json", numbers | judge.describe())
    print(f"{out}: real images against as many others, from {len(judge.real)}")
    print(floor_table(found, judge.extractor.name))


def _score_folder(judge: Judge, images: ImageFolder, folder: Path, seed: int, out: Path) -> None:
    scores, digest = judge(images, None, out)
    source = {"folder": str(folder), "sha256": digest}
    stated = {"n": len(images), **judge.describe(), "seed": seed, "samples": source}
    write_results(out, scores, stated)
    print(f"{out}: {judge.said(len(images))}")
    print(table(scores))
