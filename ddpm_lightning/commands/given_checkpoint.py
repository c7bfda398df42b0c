"""What a checkpoint says, beside the words of a command line that goes on with it."""

from __future__ import annotations

import os
import shlex
from argparse import SUPPRESS, Action
from pathlib import Path
from pydoc import locate
from typing import Any

from typing_extensions import override

from ddpm_lightning.commands.found_config import check_found_config
from ddpm_lightning.commands.paths import expanded
from ddpm_lightning.commands.words import read_words
from ddpm_lightning.errors import InputError
from ddpm_lightning.resume import MEANS
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.shipped_models import shipped_models
from ddpm_lightning.terminal.parser import PROGRAM

DEFAULT_ROOT = "runs/default"
"""The run folder where none is given."""

NAMED = ("last", "auto")
"""Words for the last checkpoint of the run folder; auto: or none, where there is none yet."""


class TrustFlag(Action):
    """--trust PACKAGE: which takes effect for the whole command, and is no setting of a run."""

    @override
    def __call__(self, *_: Any) -> None:
        """Do nothing, because :func:`ddpm_lightning.trust.trusting` has read the words."""


def add_trust(parser: Any) -> None:
    """Add --trust to the parser of a command that reads checkpoints."""
    parser.add_argument(
        "--trust",
        action=TrustFlag,
        dest=SUPPRESS,
        default=SUPPRESS,
        metavar="PACKAGE",
        help="Import classes of this package if the checkpoint names them; may be repeated.",
    )


def config_of_checkpoint(words: list[str]) -> list[str]:
    """Name the configuration and the folder of a checkpoint's run, where no --config is given."""
    given = dict(read_words(words))
    checkpoint = given.get("ckpt_path")
    # A command with auto is the one that started the run, and says all by itself.
    if not checkpoint or checkpoint == "auto" or {"c", "config"} & given.keys():
        return []
    if checkpoint in shipped_models():  # which have no run
        return []
    root = Path(checkpoint).parent.parent
    if checkpoint == "last":
        root = Path(given.get("trainer.default_root_dir", DEFAULT_ROOT))
    if not Path(expanded(str(root / "config.yaml"), "--ckpt_path")).is_file():
        return []
    check_found_config(root / "config.yaml")
    return [f"--config={root / 'config.yaml'}", f"--trainer.default_root_dir={root}"]


def check_start(words: list[str]) -> None:
    """Raise InputError if words ask for a start from weights and for going on with a run."""
    given = dict(read_words(words))
    goes_on = given.get("ckpt_path") not in (None, "", "null", "auto")
    if given.get("init_from") not in (None, "", "null") and goes_on:
        raise InputError(
            "--init_from starts a run, and --ckpt_path goes on with one; leave one of them out "
            "(--ckpt_path auto goes with both)"
        )


def check_config_given(command: str, words: list[str]) -> None:
    """Raise InputError if --ckpt_path stands alone, and no configuration was found beside it."""
    given = dict(read_words(words))
    checkpoint = given.get("ckpt_path")
    stated = {"c", "config", "data"} & given.keys() or any(
        one.startswith("data.") for one in given
    )
    if not checkpoint or checkpoint == "auto" or stated:
        return
    root = Path(checkpoint).parent.parent
    if checkpoint == "last":
        root = Path(given.get("trainer.default_root_dir", DEFAULT_ROOT))
    raise InputError(
        f"there is no {root / 'config.yaml'}, and a checkpoint describes its model alone: give "
        f"the run's config: {PROGRAM} {command} {shlex.join(words)} --config FILE"
    )


def checkpoint_named(name: str, root: str) -> Path:
    """The checkpoint that --ckpt_path names, which need not exist."""
    return last_checkpoint(root) if name in NAMED else Path(name)


def is_finished(config: Any, checkpoint: dict[str, Any]) -> bool:
    """Whether a run has made the steps that the command line asks for."""
    return 0 <= config.trainer.get("max_steps", -1) <= int(checkpoint["global_step"])


def check_resume(
    config: Any, checkpoint: dict[str, Any], different: dict[str, tuple[Any, Any]]
) -> None:
    """Raise InputError unless a run goes on as it began, and further than it stands."""
    path, seed = config.ckpt_path, checkpoint["hyper_parameters"]["seed"]
    if "loops" not in checkpoint:
        raise InputError(
            f"{path} holds weights only, so no run can go on from it; start a new one from them "
            f"by --init_from {path} in place of --ckpt_path"
        )
    if config.seed_everything != seed:
        raise InputError(
            f"{path} was trained with seed {seed}; resume with --seed_everything {seed}, so that "
            "noise and data go on where they were"
        )
    step = checkpoint["global_step"]
    if is_finished(config, checkpoint):
        raise InputError(
            f"{path} stands at step {step} already; train longer by --trainer.max_steps, above "
            f"{step}, or measure it: {PROGRAM} evaluate --ckpt {path} --out FOLDER"
        )
    for key, (ours, theirs) in different.items():
        raise InputError(
            f"model.{key} is {theirs} in {path}, not {ours}, and a run goes on with what it began "
            "with; leave that out, or start a new run"
        )


def stated_model(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint states of its model, without what is a command line's to say."""
    # Two are linked, and how a network is compiled is no part of the model.
    others = ("data", "seed", "compile")
    return {
        name: _without_means(value)
        for name, value in checkpoint["hyper_parameters"].items()
        if name not in others
    }


def _without_means(description: Any) -> Any:
    if isinstance(description, list):
        return [_without_means(item) for item in description]
    if not isinstance(description, dict):
        return description
    return {k: _without_means(value) for k, value in description.items() if k not in MEANS}


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Find the settings that both state, and not alike, by dotted name."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in theirs.items():
        mine = ours.get(key)
        if key == "network" and mine is None:
            continue  # what a codec has read from the file that both name
        if isinstance(value, dict) and isinstance(mine, dict):
            found |= differences(mine, value, f"{prefix}{key}.")
        elif key in ours and _comparable(key, mine) != _comparable(key, value):
            found[prefix + key] = (mine, value)
    return found


def _comparable(key: str, value: Any) -> Any:
    if key == "class_path":  # a class has its own path and that of the package that shows it
        return locate(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_comparable(key, item) for item in value] if isinstance(value, list | tuple) else value
