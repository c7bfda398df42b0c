"""Model cards: README.md in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ddpm_lightning.checkpoint import KEY, NET
from ddpm_lightning.data.data_module import PLACES
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.report import with_error
from ddpm_lightning.metrics.result import NAMES, read_records
from ddpm_lightning.shipped_models import shipped_models

PICTURE = "samples.png"

LICENCE = "https://huggingface.co/docs/hub/repositories-licenses"

PARTS = (
    *("net", "schedule", "parameterization", "variance", "objective", "timesteps"),
    *("label_dropout", "ema", "warmup_steps", "seed"),
)
"""Arguments of the module that make the recipe, in the order of its table."""

USES = {
    "safetensors": """```bash
python -m ddpm_lightning sample --ckpt FILE --out samples
```""",
    "DDPMPipeline": """```python
from diffusers import DDIMPipeline, DDPMPipeline

image = DDPMPipeline.from_pretrained("OWNER/NAME")().images[0]
image = DDIMPipeline.from_pretrained("OWNER/NAME")(num_inference_steps=50).images[0]
```

DDIMPipeline clips as ddpm_lightning does with `use_clipped_model_output=True`.""",
    "network": """```python
from diffusers import CLASS, DDPMScheduler

network = CLASS.from_pretrained("OWNER/NAME", subfolder="PART")
scheduler = DDPMScheduler.from_pretrained("OWNER/NAME", subfolder="scheduler")
```""",
}


def model_card(
    checkpoint: dict[str, Any], use: str, records: list[dict[str, Any]], picture: bool
) -> str:
    """Write a model card; licence and what only a person knows are left to the person.

    Args:
        checkpoint: The content of the checkpoint.
        use: How the files beside the card are used, as Markdown.
        records: Results of evaluate or of a run.
        picture: Whether PICTURE lies beside the card.
    """
    stated, data = checkpoint["hyper_parameters"], checkpoint[KEY]["data"]
    name = "unknown data" if data is None else _name(data)
    front = {
        "library_name": "diffusers" if "diffusers" in use else "ddpm_lightning",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "ddpm", "pytorch"],
        "datasets": [] if data is None else [name.lower()],
        "model-index": _index(name, records),
    }
    front = {key: value for key, value in front.items() if value}
    weights = [v for k, v in checkpoint["state_dict"].items() if k.startswith(NET)]
    size = sum(value.numel() for value in weights if isinstance(value, Tensor))
    rows = [("parameters", f"{size:,}"), ("optimizer steps", f"{checkpoint['global_step']:,}")]
    rows += [(part, _shown(stated[part])) for part in PARTS if part in stated]
    rows += [("optimizer", text) for text in _optimizers(checkpoint[KEY].get("optimization"))]
    shape = " × ".join(map(str, stated["data"]["shape"]))
    classes = stated["data"]["num_classes"] if stated.get("conditional") else None
    kind = "without labels" if classes is None else f"of {classes} classes"
    sections = [
        f"# A diffusion model of {name}",
        f"It draws samples of shape {shape}, {kind}. Trained with ddpm_lightning.",
        f"![Samples]({PICTURE})" if picture else "",
        f"## Use\n\n{use}",
        "## Recipe\n\n" + _markdown(("", ""), rows),
        f"## Data\n\n{_shown(data) if data is not None else 'Not stated by the checkpoint.'}",
        "## Results\n\n" + _results(records) if records else "",
        "## Licence\n\nTo be stated, here and above, by whoever publishes this model; the licence "
        "of the data, and that of weights which the training started from, may limit it.",
        "## Limits\n\nTo be stated: what it should not be used for, and what it does badly.",
    ]
    # As a comment, because a licence that is none would be refused by the hub.
    licence = f"# license:   choose one of {LICENCE}\n"
    shown = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{licence}{shown}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def results_of(ckpt: Path, results: Path | None, step: int) -> list[dict[str, Any]]:
    """Read results of a checkpoint: from those that are named, else from its run's metrics.json.

    Args:
        ckpt: The checkpoint.
        results: A file with results or its folder. Those that state no step are taken, too,
            because a person says that they are of this checkpoint.
        step: The checkpoint's optimizer steps; results of other steps are left out.

    Raises:
        InputError: What is named holds no results of this step.
    """
    run = _run(ckpt)
    path = results or (run and run / NAMES[1])
    if path is None:
        return []
    if path.is_dir():
        path = next(filter(Path.is_file, (path / name for name in NAMES)), path / NAMES[0])
    if not path.is_file():
        if results is None:
            return []
        raise InputError(f"no file {path}")
    steps = (step,) if results is None else (step, None)
    found: dict[str, dict[str, Any]] = {}
    for record in read_records(path):
        if record["step"] in steps:
            found.setdefault(record["metric"], record)
    if results is not None and not found:
        raise InputError(f"{path} holds no result of step {step}, which {ckpt} is of")
    return list(found.values())


def picture_of(ckpt: Path, results: Path | None, step: int) -> Path | None:
    """Find a grid of a checkpoint's samples: beside named results, else in its run."""
    if results is not None and (grid := _folder(results) / "grid.png").is_file():
        return grid
    run = _run(ckpt)
    if run is None:
        return None
    for file in sorted((run / "samples").glob(f"*_step_{step:08d}.png")):
        # Neither a strip of x_t nor real images beside samples, which lie there, too.
        if "_denoising_step_" not in file.name and not file.name.startswith("neighbours_"):
            return file
    return None


def _run(ckpt: Path) -> Path | None:
    """The folder of the run that saved a checkpoint; None: it lies elsewhere."""
    folder = ckpt.absolute().parent
    shipped = str(ckpt) in shipped_models()
    return folder.parent if folder.name == "checkpoints" and not shipped else None


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _name(part: dict[str, Any]) -> str:
    """The short name of a described object; of a data set that wraps another, the other's."""
    inner = part["init_args"].get("data")
    if isinstance(inner, dict) and "class_path" in inner:
        return _name(inner)
    return str(part["class_path"].rpartition(".")[2])


def _shown(value: Any) -> str:
    """Write plain data on one line, objects as Name(argument=value, …)."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args") or {}
        told = {name: one for name, one in arguments.items() if name not in PLACES}
        inside = ", ".join(f"{name}={_shown(one)}" for name, one in told.items())
        text = f"{value['class_path'].rpartition('.')[2]}({inside})"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}…"


def _optimizers(optimization: dict[str, Any] | None) -> list[str]:
    if optimization is None:
        return []
    rates = ", ".join(f"lr {group['lr']:g}" for group in optimization["groups"] if "lr" in group)
    schedule = optimization["lr_schedule"]
    return [f"{optimization['optimizer']}, {rates}, learning rate schedule: {schedule}"]


def _results(records: list[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        samples, floor = record["samples"], record["floor"]
        sampler = samples.get("sampler")
        rows.append(
            (
                record["metric"],
                with_error(record["value"], record["standard_error"]),
                "" if floor is None else with_error(floor["value"], None),
                str(samples.get("n", "")),
                "" if sampler is None else f"{_name(sampler)}, {samples.get('steps', '?')} steps",
                str(samples.get("weights", "")),
            )
        )
    return _markdown(("metric", "value", "real images", "samples", "sampler", "weights"), rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [header, tuple("---" for _ in header), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _index(name: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results in the hub's form, with which it lists them beside the model."""
    metrics = [
        {"type": record["metric"], "name": record["metric"], "value": record["value"]}
        for record in records
        if record["value"] is not None
    ]
    task = {"type": "unconditional-image-generation"}
    result = {"task": task, "dataset": {"name": name, "type": name.lower()}, "metrics": metrics}
    return [{"name": f"ddpm_lightning-{name.lower()}", "results": [result]}] if metrics else []
