"""What a configuration may do that lies beside a checkpoint, and that nobody has named.

It may come from others with the checkpoint. So it imports, reads and fetches nothing but what its
user has allowed; a file that --config names may, because its user has chosen it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ddpm_lightning.diffusion.samplers import OptimizedSpacing
from ddpm_lightning.errors import InputError
from ddpm_lightning.trust import check_trust, nodes, yaml_in

HUB = {
    "HuggingFaceEncoder": ("path", "model"),
    "DiffusersAutoencoder": ("source", "model"),
    "HubImages": ("path", "dataset"),
}
"""Classes that fetch what an argument names from the Hugging Face hub: the argument, the kind."""

SPACING = ("OptimizedSpacing", OptimizedSpacing.class_path())
"""What a configuration calls the class."""


def check_found_config(path: Path) -> None:
    """Raise InputError if a configuration would import, read or fetch what nobody allowed."""
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # whoever reads it next says so
    check_trust(path, settings, trust=("torch.optim", "lightning.pytorch"))
    named = f"--config {path} --trainer.default_root_dir {path.parent}"
    for key, _ in nodes(settings):
        if isinstance(key, str) and "." in key:  # it sets an argument of another entry
            raise InputError(
                f"{path} has the dotted key {key!r:.80}, which no run writes into its settings; "
                f"nest it, or if you know what the file says: {named}"
            )
    _drop_tables(settings)
    for _, value in nodes(settings):
        if isinstance(value, str) and any(map(_has_settings, (Path(value), path.parent / value))):
            raise InputError(
                f"{path} takes settings from {value}, a file that nobody has named; if you know "
                f"what it says: {named}"
            )
    for name in _fetched(settings):
        raise InputError(
            f"{path} fetches {name} from the Hugging Face hub, which nobody has asked for; if you "
            f"want it: {named}"
        )


def _drop_tables(settings: Any) -> None:
    """Drop the files of OptimizedSpacing from settings, because it reads them as plain data."""
    for _, part in nodes(settings):
        if isinstance(part, dict) and str(part.get("class_path")) in SPACING:
            arguments = part.get("init_args")
            if isinstance(arguments, dict) and isinstance(arguments.get("table"), str):
                # A new dict, because an alias can give the old one to another class, too.
                part["init_args"] = {k: v for k, v in arguments.items() if k != "table"}


def _fetched(settings: Any) -> Iterator[str]:
    """Names on the hub that would be fetched: they are no file here, nor in the hub's cache."""
    for _, value in nodes(settings):
        part = yaml_in(value) if isinstance(value, str) else value
        if not isinstance(part, dict):
            continue
        argument, kind = HUB.get(str(part.get("class_path")).rpartition(".")[2], ("", ""))
        stated = [part.get("init_args"), part.get("dict_kwargs")]  # the parser merges them
        given = [one for one in stated if isinstance(one, dict)]
        downloads = [one["download"] for one in given if "download" in one]
        if downloads and all(one is False for one in downloads):
            continue
        for name in (one.get(argument) for one in given):
            if not isinstance(name, str) or Path(name).expanduser().exists():
                continue
            if not _is_cached(name, kind):
                yield name


def _is_cached(name: str, kind: str) -> bool:
    """Whether files of a model or a dataset of the hub lie in its cache."""
    try:
        from huggingface_hub import constants
    except ImportError:  # then nothing is fetched
        return True
    folder = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")
    return any(path.is_file() for path in folder.glob("snapshots/*/**/*"))


def _has_settings(path: Path) -> bool:
    """Whether a parser that is given the name of a file would take settings from it."""
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return isinstance(found, dict | list)
