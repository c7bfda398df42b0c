"""Trained models that come with the package, named where a checkpoint is asked for."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"


def shipped_models() -> dict[str, Path]:
    """The models by name: safetensors files, which export has written."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def find_model(path: Path) -> Path:
    """Return a file where there is one, else the shipped model of that name, else the path."""
    return path if path.exists() else shipped_models().get(str(path), path)
