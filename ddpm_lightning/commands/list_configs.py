"""The configs that come with the package, which can be named without a path."""

from __future__ import annotations

from pathlib import Path

from ddpm_lightning.terminal.parser import PROGRAM

PACKAGE = Path(__file__).parents[1]


def list_configs() -> None:
    """List the configs that come with the package."""
    configs = shipped_configs()
    width = max(map(len, configs))
    for name, path in configs.items():
        print(f"  {name:{width}}  {_headline(path)}")
    print(
        f"\n{next(iter(configs.values())).parent} holds them; a copy in the working directory wins"
    )
    print(f"Train by one: {PROGRAM} fit --config digits")


def shipped_configs() -> dict[str, Path]:
    """The configs by name, ``digits`` or ``trainer/fsdp``: of the wheel, or of the clone."""
    folder = PACKAGE / "configs"
    if not folder.is_dir():
        folder = PACKAGE.parent / "configs"
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find_config(path: Path) -> Path:
    """Return a file where there is one, else the shipped config of that name, else the path."""
    if path.is_absolute() or (path.exists() and not path.is_dir()):
        return path
    beside = Path(f"{path}.yaml")
    if beside.is_file():
        return beside
    name = path.with_suffix("") if path.suffix == ".yaml" else path
    return shipped_configs().get(name.as_posix(), path)


def _headline(path: Path) -> str:
    return path.read_text("utf-8").partition("\n")[0].strip("# .")
