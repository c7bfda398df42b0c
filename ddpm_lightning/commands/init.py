"""A small project of one's own to begin with."""

from __future__ import annotations

import shutil
from pathlib import Path

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import check_folder
from ddpm_lightning.terminal.parser import PROGRAM

TEMPLATE = Path(__file__).parents[1] / "template"


def init(folder: Path) -> None:
    """Write a small project: a config, a network, a data set and a test, which run at once.

    Args:
        folder: The folder to write into; nothing in it is overwritten.
    """
    files = [path.relative_to(TEMPLATE) for path in sorted(TEMPLATE.rglob("*")) if _is_part(path)]
    if there := [str(folder / file) for file in files if (folder / file).exists()]:
        raise InputError(
            f"{', '.join(there)}: there already, and nothing is overwritten; name "
            f"another folder: {PROGRAM} init FOLDER"
        )
    check_folder(folder)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATE / file, folder / file)
        print(folder / file)
    run = f"{PROGRAM} fit --config config.yaml"
    print(
        f"\nTrain, 2 steps or all 400:\n  cd {folder}\n  {run} --trainer.max_steps 2 "
        f"--trainer.default_root_dir runs/trial\n  {run}"
    )
    print(
        f"Test it: pip install pytest && python -m pytest\nDraw: {PROGRAM} sample --ckpt "
        "runs/my_project/checkpoints/last.ckpt --trust my_project --sampler DDIM "
        "--sampler.steps 50 --out runs/samples"
    )


def _is_part(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts  # which pip writes there
