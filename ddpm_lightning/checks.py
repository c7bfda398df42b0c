"""What is checked before any work: seeds, speeds, places for results, files of settings."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ddpm_lightning.errors import InputError

LARGEST_SEED = 2**64 - 1
"""The key of the noise has 64 bits."""


def check_seed(seed: int) -> None:
    """Raise InputError unless noise can be drawn with this seed."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed={seed}: it is not negative and below 2**64")


def check_frames(frames: int) -> None:
    """Raise InputError unless this many frames show the way from noise to sample, or none."""
    if frames < 0 or frames == 1:
        raise InputError(f"frames={frames}: a trajectory has 2 or more (noise and sample), or 0")


def check_fps(fps: float) -> None:
    """Raise InputError unless a GIF, which counts hundredths of a second, can be so fast."""
    if not 0.002 <= fps <= 50:
        raise InputError(f"fps={fps:g}: a GIF shows 0.002 to 50 frames a second")


def check_folder(folder: Path) -> None:
    """Raise InputError unless files can be written into a folder, which may be missing yet.

    Tried for real, for permissions do not tell all; nothing stays behind.
    """
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        files = [path for path in (folder, *folder.parents) if path.is_file()]
        reason = f"{files[0]} is a file" if files else error.strerror
        raise InputError(
            f"nothing can be written into {folder}: {reason}; choose another folder"
        ) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def check_new_folder(folder: Path) -> None:
    """Raise InputError unless files can be written into a folder that is new or empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not an empty folder; images of two runs would mix, choose another"
        )
    check_folder(folder)


def check_new_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise InputError unless this is a new file of such a kind that can be written."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: name a file that ends in {' or '.join(suffixes)}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another name, or remove it")
    check_folder(path.parent)


def check_trainer(settings: Any) -> None:
    """Raise InputError for settings of Lightning's Trainer that it would stumble over later."""
    if settings.accumulate_grad_batches < 1:
        raise InputError(
            f"trainer.accumulate_grad_batches {settings.accumulate_grad_batches}: give 1, which "
            "accumulates nothing, or more"
        )
    interval = settings.val_check_interval
    if isinstance(interval, int | float) and interval <= 0:
        raise InputError(
            f"trainer.val_check_interval {interval}: give a number of batches, 1 or more, or a "
            "share of an epoch above 0.0; --trainer.limit_val_batches 0 leaves validation out"
        )
    if (
        getattr(rank_zero_only, "rank", 0) == 0
    ):  # processes that try at once would remove each other's folder
        check_folder(Path(settings.default_root_dir))


def check_config_files(words: list[str]) -> None:
    """Raise InputError, which names the file, unless each --config FILE holds settings."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, _, value = word.partition("=")
        path = Path(value or following)
        if flag not in ("--config", "-c") or not path.is_file():
            continue
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not a text file of settings") from error
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            tab = "; indent with spaces, not tabs" if "'\\t'" in str(error) else ""
            raise InputError(f"{path}{line}: {error.problem}{tab}") from error
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not YAML: {error}") from error
        if not isinstance(settings, dict):
            what = "is empty" if settings is None else "holds no settings (name: value)"
            raise InputError(f"{path} {what}")
