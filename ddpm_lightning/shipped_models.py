"""Trained models that come with the package, named where a checkpoint is asked for."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def shipped_models() -> dict[str, Path]:
    """The models by name: safetensors files, which export has written."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}
