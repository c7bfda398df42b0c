"""All that a run leaves behind, to compare two runs: values and pictures, not step numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WALL_CLOCK = ("train/images_per_second",)
"""Tags that measure the machine."""


def outcome(folder: Path) -> dict[str, Any]:
    """Collect a run's tensors, logged values and pictures (the last of a tag and step), and files.

    Returns:
        By name: a tensor, a number, or bytes.
    """
    found: dict[str, Any] = dict(_leaves(_last(folder), "checkpoint"))
    found |= logged(folder)
    for pattern in ("**/*.png", "**/*.gif"):
        found |= {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)
        }
    if (path := folder / "metrics.json").exists():
        for i, record in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            found |= dict(_leaves(record, f"metrics.json[{i}]"))
    return found


def logged(folder: Path) -> dict[str, Any]:
    """Collect the last value and picture of each tag and step in TensorBoard's files."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = accumulator.Tags()
    found: dict[str, Any] = {}
    for tag in tags["scalars"]:
        if tag not in WALL_CLOCK:
            found |= {f"{tag} at {e.step}": e.value for e in accumulator.Scalars(tag)}
    for tag in tags["images"]:
        found |= {f"{tag} at {e.step}": e.encoded_image_string for e in accumulator.Images(tag)}
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Name what only one of two runs has, or what differs in a single bit."""
    missing = [f"{name}: only one has it" for name in sorted(ours.keys() ^ theirs.keys())]
    common = sorted(ours.keys() & theirs.keys())
    return missing + [name for name in common if not _same(ours[name], theirs[name])]


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """Find the number or tensor that differs most: how much, and its name."""
    found = (0.0, "none")
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if isinstance(a, bytes | str | bool) or a is None:
            continue
        a, b = (torch.as_tensor(one, dtype=torch.float64) for one in (a, b))
        distance = float((a - b).abs().max()) if a.numel() else 0.0
        found = max(found, (distance, name))
    return found


def _last(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def _leaves(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        parts = [_leaves(part, f"{name}.{key}") for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [_leaves(part, f"{name}[{i}]") for i, part in enumerate(value)]
    else:
        return [(name, value)]
    return [leaf for part in parts for leaf in part]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return a == b or (a != a and b != b)
