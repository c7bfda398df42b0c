"""Flags and config files with other values, keys or bytes: a run of one step, a sample."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import Case, Maker, command, kind
from tests.fuzz.checkpoints import _emptied

FIT = [
    *("--data=Digits", "--data.global_batch_size=8", "--data.subset=32", "--model.schedule.T=40"),
    *("--model.net=UNet", "--model.net.channels=4"),
    *("--model.net.multipliers=[1]", "--model.net.blocks=1"),
    *("--model.net.groups=2", "--model.net.attention_levels=[]", "--model.conditional=true"),
    *("--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0"),
    *("--grid=SampleGrid", "--grid.n=2", "--grid.sampler=DDIM", "--grid.sampler.steps=2"),
    "--trainer.callbacks=LossByTimestep",
]
SAMPLE = ["sample", "--n=2", "--sampler=DDIM", "--sampler.steps=2", "--device=cpu"]

# More processes, more time or another folder: what these do is no mistake.
LEFT_OUT = (
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.min_steps",
    "trainer.min_epochs",
    "trainer.default_root_dir",
    "trainer.profiler",
    "trainer.plugins",
    "model.compile",
)
OF_SAMPLE = (
    *("n", "sampler", "sampler.steps", "sampler.eta", "sampler.clip", "sampler.spacing"),
    *("guidance", "guidance.scale", "guidance.interval", "labels", "variance", "weights", "seed"),
    *("batch_size", "edit", "edit.image", "grid.columns", "grid.frames", "grid.fps", "device"),
    *("data.root", "condition", "ckpt", "config", "sampler.spacing.rho", "nonsense"),
)
VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 0.5, -0.5, 1.5, 1e-30, 1e30, float("nan"), float("inf"), True, False, None),
    *(
        "",
        " ",
        "x",
        "null",
        "DDIM",
        "UNet",
        "this.Zen",
        "1,2",
        "[1, 2",
        "{a: 1",
        "é☃",
        "../x",
        "~",
    ),
    *([], [0], [1, 2], [-1], [None], ["x"], {}, {"a": 1}, {"class_path": "Nothing"}),
    *({"class_path": "this.Zen"}, {"class_path": "DDPM", "init_args": {"steps": 0}}),
)
HUGE = (2147483648, 10**12, 10**30)
ALIKE: dict[type, tuple[Any, ...]] = {
    int: (0, -1, 1, 2, 3, 5, 7, 100, *HUGE),
    float: (0.0, -0.5, 0.5, 1.0, 1.5, 1e-30, 1e30, float("nan"), float("inf")),
    bool: (True, False),
    list: ([], [0], [1], [1, 2], [2, 0], [-1], [1, 1, 1, 1, 1, 1, 1]),
    str: ("", "x", "DDIM", "UNet", "bilinear", "raw", "cpu"),
}
"""Values of the right type, of which some are out of range."""
MEMORY = 12 * 2**30
"""Bytes of address space that a case may ask for on top, in place of all of the machine's."""


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let a case that asks for too much memory fail alone."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def ran(*words: str) -> bool:
    with limited_memory():
        command(*words)
    return True


def words_of(value: Any) -> str:
    """A value as a word of the command line."""
    return value if isinstance(value, str) else yaml.safe_dump(value, width=10**6).split("\n")[0]


@kind("flags")
def flags(folder: Path) -> Maker:
    """Run a step and a sample, with one flag that is altered."""
    command("fit", *FIT, f"--trainer.default_root_dir={folder / 'run'}")
    config, sound = folder / "run" / "config.yaml", folder / "run" / "checkpoints" / "last.ckpt"
    settings = _flat(yaml.safe_load(config.read_text("utf-8")))
    values = {key: value for key, value in settings.items() if _is_tried(key)}

    def make(rng: random.Random, place: Path) -> Case:
        _emptied(place)
        samples = rng.random() < 0.3
        key = rng.choice(OF_SAMPLE if samples else list(values))
        value = words_of(rng.choice(VALUES) if samples else other(rng, values[key]))
        if rng.random() < 0.1:
            key = key[:-1] + rng.choice("xyz")
        words = [f"--{key}={value}"] if rng.random() < 0.9 else [f"--{key}"]
        first = [*SAMPLE, f"--ckpt={sound}", f"--out={place / 'out'}"]
        if not samples:
            first = ["fit", f"--config={config}", f"--trainer.default_root_dir={place / 'run'}"]
        return Case(
            f"{first[0]} {' '.join(words)}",
            lambda: ran(*first, *words),
            may_differ=True,  # and what a user names is imported
        )

    return make


@kind("configs")
def configs(folder: Path) -> Maker:
    """Run a step with a config file of which a value, a key or some bytes are altered."""
    command("fit", *FIT, f"--trainer.default_root_dir={folder / 'run'}")
    content = (folder / "run" / "config.yaml").read_bytes()

    def make(rng: random.Random, place: Path) -> Case:
        _emptied(place)
        path = place / "altered.yaml"
        if rng.random() < 0.4:
            name, altered = _text_altered(rng, content)
        else:
            settings = yaml.safe_load(content)
            name = _node_altered(rng, settings)
            altered = yaml.safe_dump(settings, allow_unicode=True).encode()
        path.write_bytes(altered)
        words = [f"--config={path}", f"--trainer.default_root_dir={place / 'run'}"]
        last = ["--trainer.max_steps=1", "--trainer.devices=1", "--trainer.num_nodes=1"]
        last += ["--trainer.strategy=auto", "--model.compile=false"]
        return Case(
            f"config: {name}",
            lambda: ran("fit", *words, *last),
            may_differ=True,  # and what a user names is imported
        )

    return make


def other(rng: random.Random, value: Any) -> Any:
    """Another value for a setting, often of its type."""
    alike = ALIKE.get(type(value))
    return rng.choice(alike) if alike and rng.random() < 0.6 else rng.choice((*VALUES, *HUGE))


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The settings by their dotted flags."""
    found = {}
    for key, value in settings.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            inner = value.get("init_args", value)
            found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {}
    return found


def _is_tried(key: str) -> bool:
    return key not in LEFT_OUT and not key.endswith("class_path")


def _node_altered(rng: random.Random, settings: dict[str, Any]) -> str:
    places: list[tuple[Any, Any, str]] = []

    def walk(holder: Any, name: str) -> None:
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in pairs:
            if _is_tried(f"{name}.{key}".lstrip(".")):
                places.append((holder, key, f"{name}.{key}".lstrip(".")))
            if isinstance(value, dict | list):
                walk(value, f"{name}.{key}".lstrip("."))

    walk(settings, "")
    holder, key, name = rng.choice(places)
    how = rng.choice(["delete", "replace", "replace", "replace", "rename"])
    if how == "replace" or not isinstance(holder, dict):
        value = other(rng, holder[key])
        holder[key] = value
        return f"{name} becomes {value!r}"
    value = holder.pop(key)
    if how == "rename":
        holder[f"{key}_"] = value
    return f"{name} {how}d"


def _text_altered(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    lines = content.split(b"\n")
    k = rng.randrange(len(lines))
    how = rng.choice(["byte", "drop", "twice", "tab", "cut", "indent", "colon", "anchor"])
    if how == "byte":
        place = rng.randrange(len(content))
        return f"byte {place}", content[:place] + bytes([rng.randrange(256)]) + content[
            place + 1 :
        ]
    if how == "cut":
        size = rng.randrange(len(content))
        return f"cut off at {size}", content[:size]
    line = lines[k]
    changed = {
        "drop": [],
        "twice": [line, line],
        "tab": [b"\t" + line],
        "indent": [b"  " + line],
        "colon": [line.replace(b":", b"", 1)],
        "anchor": [line + b" *nothing"],
    }[how]
    return f"{how} of line {k + 1}: {line.decode()}", b"\n".join(
        lines[:k] + changed + lines[k + 1 :]
    )
