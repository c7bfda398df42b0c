"""The command line: LightningCLI for training, plain commands for what works on a checkpoint."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

# LightningCLI calls jsonargparse by the names of earlier versions; that is not for our users.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

from argparse import ArgumentError

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import ddpm_lightning.callbacks
import ddpm_lightning.data  # noqa: F401 (known by short name on the command line)
from ddpm_lightning.callbacks import Likelihood, RunCheckpoint, StepProgressBar
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.commands.run import COMMANDS, PROGRAM, CommandParser, about, run_command
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.terminal.mistakes import constructing, hints_of, parsing, users_mistake
from ddpm_lightning.terminal.settings import check_trainer
from ddpm_lightning.terminal.swaps import with_own_defaults
from ddpm_lightning.terminal.usage import explain

# The EMA is in evaluation mode on purpose, and Lightning's use of torch's trees is its own.
warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
warnings.filterwarnings("ignore", r".*treespec, LeafSpec.*")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.msg and "litmodels" not in record.msg
)

DESCRIPTIONS = {
    "fit": "Train.",
    "validate": "Measure the loss of raw and EMA weights at fixed levels and noise.",
    "test": "Measure that and the bound on the likelihood, on the test split.",
    "predict": "Sample images for Python's trainer.predict; in a terminal, use sample.",
}


class RunParser(CommandParser, LightningArgumentParser):
    """The parser of fit, validate, test and predict."""


def main(
    args: Sequence[str] | None = None, module_class: type[DiffusionModule] = DiffusionModule
) -> None:
    """Run the command line.

    Args:
        args: The words after the program's name; None takes the process's own.
        module_class: The module to train, for a program of your own around a subclass.

    Raises:
        SystemExit: Code 2 and one line on standard error for bad input, code 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        commands = [*DESCRIPTIONS, *COMMANDS]
        if words and words[0].startswith("-") and (late := [w for w in words if w in commands]):
            raise InputError(f"the command comes first: {PROGRAM} {late[0]} {words[0]} …")
        if words and words[0] in COMMANDS:
            run_command(words[0], words[1:])
        else:
            DiffusionCLI(module_class, None if args is None else words)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
        sys.exit(2)


class DiffusionCLI(LightningCLI):
    """fit, validate, test and predict of a DiffusionModule; a run is one folder.

    Args:
        module_class: The module to train.
        args: The words after the program's name; None takes the process's own.
    """

    def __init__(self, module_class: type[DiffusionModule], args: list[str] | None) -> None:
        self._module_class = module_class
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            module_class,
            LightningDataModule,
            subclass_mode_data=True,
            args=args,
            seed_everything_default=0,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            load_from_checkpoint_support=False,  # the module describes itself
            auto_configure_optimizers=False,
            parser_class=RunParser,
            parser_kwargs=strict
            | {"description": "Train diffusion models and use them; one run is one folder."}
            | {name: strict | {"description": text} for name, text in DESCRIPTIONS.items()},
        )

    def setup_parser(self, *args: Any) -> None:
        """Let the help list the plain commands, too, which main runs without this class."""
        super().setup_parser(*args)
        listed: Any = self.parser._subcommands_action
        for action in listed._choices_actions:
            action.help = DESCRIPTIONS[action.dest]
        for name, parser in self._subcommand_parsers.items():
            parser.prog = f"{PROGRAM} {name}"
        for name in COMMANDS:
            listed.add_subcommand(name, CommandParser(), help=about(name))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data to the module; give every run its checkpoints and every test its bound."""
        parser.link_arguments("data.spec", "model.data", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Likelihood, "likelihood")
        parser.set_defaults(_stated_defaults(self._module_class))
        parser.set_defaults({"trainer.default_root_dir": "runs/default"})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake becomes one line."""
        words = list(sys.argv[1:] if args is None else args)
        command = words[0] if words and words[0] in self._subcommand_parsers else None
        with parsing(words, hints_of(parser, command), [*DESCRIPTIONS, *COMMANDS]):
            words = with_own_defaults(words, lambda some: parser.parse_args(some)[some[0]])
            self.config = parser.parse_args(words)

    def before_instantiate_classes(self) -> None:
        """Keep a run from being mixed with another."""
        config = self.config[self.subcommand]
        check_trainer(config.trainer)
        config.weights_only = True  # Lightning, too, loads no pickles
        if self.subcommand != "fit":
            if not config.ckpt_path:
                raise InputError(
                    f"{self.subcommand} of what? Give --ckpt_path FILE, or last for the run in "
                    f"{config.trainer.default_root_dir}"
                )
            return
        last = last_checkpoint(config.trainer.default_root_dir)
        resumes = (
            config.ckpt_path and Path(config.ckpt_path).resolve().parent == last.resolve().parent
        )
        if last.exists() and not resumes and not config.trainer.fast_dev_run:
            raise InputError(
                f"{config.trainer.default_root_dir} holds a run already: go on with it by "
                "--ckpt_path last, or choose another folder by --trainer.default_root_dir"
            )

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is the user's to mend."""
        with constructing():
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Refuse data that a checkpoint was not made for."""
        path = self.config[self.subcommand].get("ckpt_path")
        if path:
            trained = read_checkpoint(path)["hyper_parameters"]
            data = type(self.datamodule).__name__
            if list(trained["shape"]) != list(self.model.shape):
                raise InputError(
                    f"{path} was trained on data of shape {list(trained['shape'])}, but "
                    f"{data} gives {list(self.model.shape)}"
                )
            given = trained.get("condition_channels", 0)
            if given != self.model.condition_channels:
                raise InputError(
                    f"{path} was trained with {given} condition channels beside the image, but "
                    f"{data} gives {self.model.condition_channels}"
                )
            if trained["conditional"] and trained["num_classes"] != self.model.num_classes:
                raise InputError(
                    f"{path} was trained on {trained['num_classes']} classes, but {data} has "
                    f"{self.model.num_classes}"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log into the run folder itself, without version_N; show progress in steps."""
        trainer = self._get(self.config_init, "trainer")
        if trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                trainer.default_root_dir, name="", version="", default_hp_metric=False
            )
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if trainer.enable_progress_bar is not False and not own_bar:
            kwargs["callbacks"] = [*callbacks, StepProgressBar()]
        instance = super().instantiate_trainer(**kwargs)
        # Save first: what fails while drawing or measuring must not cost the steps before it.
        instance.callbacks.sort(key=lambda callback: not isinstance(callback, RunCheckpoint))  # type: ignore[attr-defined]
        return instance

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            root = self.trainer.default_root_dir
            print(f"\n{root} holds the run. Look at it: tensorboard --logdir {root}")
            if last_checkpoint(root).exists():
                print(
                    f"Draw from it: {PROGRAM} sample --ckpt {last_checkpoint(root)} --out FOLDER"
                )

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the checkpoint's arguments override the command line's without a word.
        if not self.config.get("subcommand"):
            return
        config = self.config[self.config.subcommand]
        if not config.get("ckpt_path"):
            return
        path = Path(config.ckpt_path)
        if config.ckpt_path == "last":
            path = last_checkpoint(config.trainer.default_root_dir)
        checkpoint = read_checkpoint(path)
        config.ckpt_path = str(path)
        linked = ("shape", "num_classes", "data_range", "condition_channels", "seed")
        stated = {k: v for k, v in checkpoint["hyper_parameters"].items() if k not in linked}
        asked = config.model.as_dict()
        seed = checkpoint["hyper_parameters"]["seed"]
        if self.config.subcommand == "fit" and config.seed_everything != seed:
            raise InputError(
                f"{path} was trained with seed {seed}; resume with --seed_everything {seed}, so "
                "that noise and data go on where they were"
            )
        step, end = checkpoint["global_step"], config.trainer.get("max_steps", -1)
        if self.config.subcommand == "fit" and 0 <= end <= step:
            raise InputError(
                f"{path} stands at step {step} already; train longer by --trainer.max_steps, "
                f"above {step}, or measure it: {PROGRAM} evaluate --ckpt {path} --out FOLDER"
            )
        for key, (ours, theirs) in _differences(asked, stated).items():
            if self.config.subcommand == "fit":
                raise InputError(
                    f"model.{key} is {theirs} in {path}, not {ours}, and a run goes on with what "
                    "it began with; leave that out, or start a new run"
                )
            print(
                f"ignored: model.{key}={ours}; {path} says {theirs}, and a checkpoint describes "
                "its model itself",
                file=sys.stderr,
            )
        update = {self.config.subcommand: {"model": stated}}
        try:
            self.config = self.parser.parse_object(update, self.config)
        except ArgumentError as error:
            raise InputError(
                f"{path} describes parts that do not exist any more, or not so: "
                f"{explain(str(error))}"
            ) from error


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration of a training run to config.yaml in its folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave a run's configuration alone when it is only tested."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.ckpt_path = None  # resuming is said on the command line, each time
            super().setup(trainer, pl_module, stage)


def _seed(seed: bool | int) -> int:
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"seed_everything {seed}: give a number from 0 to 4294967295")
    return seed


def _stated_defaults(module_class: type) -> dict[str, Any]:
    """State the module's default objects the way a config file would."""
    stated: dict[str, Any] = {}
    parameters = inspect.signature(DiffusionModule).parameters
    for name, parameter in {**parameters, **inspect.signature(module_class).parameters}.items():
        default = parameter.default
        if isinstance(default, Configurable):
            stated[f"model.{name}"] = default.describe()
        elif isinstance(default, partial):
            class_path = f"{default.func.__module__}.{default.func.__qualname__}"
            stated[f"model.{name}"] = {"class_path": class_path, "init_args": default.keywords}
    return stated


def _differences(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in theirs.items():
        mine = ours.get(key)
        if isinstance(value, dict) and isinstance(mine, dict):
            found |= _differences(mine, value, f"{prefix}{key}.")
        elif key in ours and _comparable(key, mine) != _comparable(key, value):
            found[prefix + key] = (mine, value)
    return found


def _comparable(key: str, value: Any) -> Any:
    if key == "class_path":  # a class has its own path and that of the package that shows it
        return locate(value)
    return [_comparable(key, item) for item in value] if isinstance(value, list | tuple) else value
