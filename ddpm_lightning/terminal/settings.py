"""Settings that are refused before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import check_folder


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
    if settings.default_root_dir is None:
        raise InputError("trainer.default_root_dir null: a run is one folder; name it")
    if getattr(rank_zero_only, "rank", 0) == 0:  # two that try would remove each other's folder
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
