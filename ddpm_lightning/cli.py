"""The command line: LightningCLI for training, functions for the commands on a checkpoint."""

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

# LightningCLI uses deprecated names of jsonargparse, which our users cannot change.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override

import ddpm_lightning.data  # noqa: F401 (so that its classes have short names on the command line)
from ddpm_lightning.callbacks import (
    GenerativeMetrics,
    Likelihood,
    PointMetrics,
    RunCheckpoint,
    SampleGrid,
    StepProgressBar,
)
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.commands.run import COMMANDS, about, run_command
from ddpm_lightning.commands.words import check_command, complete, read_words
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import check_folder
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.terminal.mistakes import causes_of, users_mistake
from ddpm_lightning.terminal.parser import PROGRAM, ParseError, Parser, flags_of

# The EMA is in evaluation mode on purpose; the treespec deprecation concerns Lightning's code.
warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
warnings.filterwarnings("ignore", r".*treespec, LeafSpec.*")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.msg and "litmodels" not in record.msg
)

DESCRIPTIONS = {
    "fit": "Train.",
    "validate": "Measure the loss of raw and EMA weights at fixed levels and noise.",
    "test": "Measure that and the bound on the likelihood, on the test split.",
    "predict": "Draw samples with trainer.predict, for Python; in a terminal, use sample.",
}

DEFAULT_ROOT = "runs/default"

BLOCKS: dict[str, tuple[type[Callback], ...]] = {
    "grid": (SampleGrid,),
    "metrics": (GenerativeMetrics, PointMetrics),
}
"""Callbacks with a config block and flags of their own, e.g. --grid.n 16; null disables one."""


def main(
    args: Sequence[str] | None = None, module_class: type[DiffusionModule] = DiffusionModule
) -> None:
    """Run the command line.

    Args:
        args: The arguments; None: those of the process (sys.argv).
        module_class: The module to train, for your own program with a subclass.

    Raises:
        SystemExit: Code 2 and one line on standard error for bad input, code 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        check_command(words, [*DESCRIPTIONS, *COMMANDS])
        if words[0] in COMMANDS:
            run_command(words[0], words[1:])
        else:
            DiffusionCLI(module_class, None if args is None else words)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is not None:
            print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
            sys.exit(2)
        if (cause := causes_of(error)[-1]) is not error:
            raise cause from None  # without the parser's errors around it
        raise


class RunParser(Parser, LightningArgumentParser):
    """The parser of fit, validate, test and predict."""


class DiffusionCLI(LightningCLI):
    """LightningCLI for a DiffusionModule: fit, validate, test and predict in one run folder.

    Args:
        module_class: The module to train.
        args: The arguments; None: those of the process (sys.argv).
    """

    def __init__(self, module_class: type[DiffusionModule], args: list[str] | None) -> None:
        self._module_class = module_class
        exact = {"allow_abbrev": False}
        super().__init__(
            module_class,
            LightningDataModule,
            subclass_mode_data=True,
            args=args,
            seed_everything_default=0,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            load_from_checkpoint_support=False,  # the module has its own load_from_checkpoint
            auto_configure_optimizers=False,
            parser_class=RunParser,
            parser_kwargs=exact
            | {"description": "Train diffusion models and use them; one run is one folder."}
            | {name: exact | {"description": text} for name, text in DESCRIPTIONS.items()},
        )

    def setup_parser(self, *args: Any) -> None:
        """List the plain commands in the help, too, although main runs them without this class."""
        super().setup_parser(*args)
        listed: Any = self.parser._subcommands_action
        for action in listed._choices_actions:
            action.help = DESCRIPTIONS[action.dest]
        for name, parser in self._subcommand_parsers.items():
            parser.prog = f"{PROGRAM} {name}"
        for name in COMMANDS:
            listed.add_subcommand(name, Parser(), help=about(name))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link data and seed to the module; add the named callbacks and the defaults."""
        parser.link_arguments("data.spec", "model.data", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Likelihood, "likelihood")
        for name, kinds in BLOCKS.items():
            parser.add_subclass_arguments(kinds, name, required=False)
        parser.set_defaults(_described_defaults(self._module_class))
        parser.set_defaults({"trainer.default_root_dir": DEFAULT_ROOT})

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        command, *words = sys.argv[1:] if args is None else args
        words = [*_config_of_checkpoint(words), *words]
        self.config = parser.parse_args([command, *complete(words, flags_of(parser, command))])

    def before_instantiate_classes(self) -> None:
        """Raise InputError without --ckpt_path, or for fit into the folder of another run."""
        config = self.config[self.subcommand]
        _check_trainer(config.trainer)
        config.weights_only = True  # so that Lightning does not load pickles, either
        root = config.trainer.default_root_dir
        if self.subcommand != "fit":
            if not config.ckpt_path:
                raise InputError(
                    f"{self.subcommand} of what? Give --ckpt_path FILE, or last for the run in "
                    f"{root}"
                )
            return
        last = last_checkpoint(root)
        resumes = (
            config.ckpt_path and Path(config.ckpt_path).resolve().parent == last.resolve().parent
        )
        if last.exists() and not resumes and not config.trainer.fast_dev_run:
            raise InputError(
                f"{root} holds a run already: resume it with --ckpt_path last, or choose "
                "another folder with --trainer.default_root_dir"
            )

    def after_instantiate_classes(self) -> None:
        """Raise InputError unless the data fits the checkpoint's model."""
        path = self.config[self.subcommand].get("ckpt_path")
        if not path:
            return
        given = self.model.data.plain()
        for name, value in read_checkpoint(path)["hyper_parameters"]["data"].items():
            unlabelled = name == "num_classes" and not self.model.hparams["conditional"]
            if given[name] != value and not unlabelled:
                raise InputError(
                    f"{path} was trained on data of {name} {value}, but "
                    f"{type(self.datamodule).__name__} gives {given[name]}"
                )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        if trainer.logger in (None, True):
            # Into the run folder itself, without version_N.
            kwargs["logger"] = TensorBoardLogger(
                trainer.default_root_dir, name="", version="", default_hp_metric=False
            )
        configured = trainer.callbacks or []
        callbacks = [*configured] if isinstance(configured, list) else [configured]
        own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if trainer.enable_progress_bar is not False and not own_bar:
            callbacks.append(StepProgressBar())
        blocks = [self._get(self.config_init, name) for name in BLOCKS]
        kwargs["callbacks"] = callbacks + [block for block in blocks if block is not None]
        instance = super().instantiate_trainer(**kwargs)
        # Save first, so that an error while sampling or measuring does not cost the steps before.
        instance.callbacks.sort(key=lambda callback: not isinstance(callback, RunCheckpoint))  # type: ignore[attr-defined]
        return instance

    def after_fit(self) -> None:
        """Print the run folder and the command that samples from it."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            root = self.trainer.default_root_dir
            board = isinstance(self.trainer.logger, TensorBoardLogger)
            print(f"\n{root} holds the run{f': tensorboard --logdir {root}' if board else ''}")
            if (last := last_checkpoint(root)).exists():
                print(f"Sample from it: {PROGRAM} sample --ckpt {last} --out FOLDER")

    def _parse_ckpt_path(self) -> None:
        # Lightning's own would silently override the command line by the checkpoint's arguments.
        config = self.config[self.config.subcommand]
        if not config.get("ckpt_path"):
            return
        path = Path(config.ckpt_path)
        if config.ckpt_path == "last":
            path = last_checkpoint(config.trainer.default_root_dir)
        checkpoint = read_checkpoint(path)
        config.ckpt_path = str(path)
        stated = {
            name: value
            for name, value in checkpoint["hyper_parameters"].items()
            if name not in ("data", "seed")  # linked arguments
        }
        differences = _differences(config.model.as_dict(), stated)
        if self.config.subcommand == "fit":
            _check_resume(config, checkpoint, differences)
        for key, (ours, theirs) in differences.items():
            print(
                f"ignored: model.{key}={ours}; {path} describes its own model, with {theirs}",
                file=sys.stderr,
            )
        try:
            update = {self.config.subcommand: {"model": stated}}
            self.config = self.parser.parse_object(update, self.config)
        except ParseError as error:
            raise InputError(
                f"{path} describes parts that do not exist any more, or have other arguments: "
                f"{users_mistake(error)}"
            ) from error


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete config of a training run to config.yaml in its folder."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # validate and test keep the run's config
            super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        config.ckpt_path = None  # because every resume names its checkpoint on the command line
        file = Path(trainer.default_root_dir) / self.config_filename
        file.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, file, skip_none=False, overwrite=True)


def _config_of_checkpoint(words: list[str]) -> list[str]:
    """The --config of the run that --ckpt_path belongs to, unless a config is given."""
    given = dict(read_words(words))
    checkpoint = given.get("ckpt_path")
    if not checkpoint or {"c", "config"} & given.keys():
        return []
    root = Path(checkpoint).parent.parent
    if checkpoint == "last":
        root = Path(given.get("trainer.default_root_dir", DEFAULT_ROOT))
    return [f"--config={root / 'config.yaml'}"] if (root / "config.yaml").is_file() else []


def _check_trainer(settings: Any) -> None:
    """Raise InputError for trainer settings with which Lightning would fail only later."""
    for name in ("accumulate_grad_batches", "val_check_interval"):
        if settings[name] == 0:
            raise InputError(f"trainer.{name} 0: give 1 or more")
    if settings.default_root_dir is None:
        raise InputError("trainer.default_root_dir null: a run is one folder; name it")
    if getattr(rank_zero_only, "rank", 0) == 0:  # processes would remove each other's test folder
        check_folder(Path(settings.default_root_dir))


def _check_resume(
    config: Any, checkpoint: dict[str, Any], differences: dict[str, tuple[Any, Any]]
) -> None:
    """Raise InputError unless seed and model are the checkpoint's and steps remain."""
    path, seed = config.ckpt_path, checkpoint["hyper_parameters"]["seed"]
    if config.seed_everything != seed:
        raise InputError(
            f"{path} was trained with seed {seed}; resume with --seed_everything {seed}, so that "
            "noise and data order continue"
        )
    step, end = checkpoint["global_step"], config.trainer.get("max_steps", -1)
    if 0 <= end <= step:
        raise InputError(
            f"{path} stands at step {step} already; train longer by --trainer.max_steps above "
            f"{step}, or evaluate it: {PROGRAM} evaluate --ckpt {path} --out FOLDER"
        )
    for key, (ours, theirs) in differences.items():
        raise InputError(
            f"model.{key} is {theirs} in {path}, not {ours}, and a run goes on with what it began "
            "with; leave it out, or start a new run"
        )


def _seed(seed: bool | int) -> int:
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"seed_everything {seed}: give a number from 0 to 4294967295")
    return seed


def _described_defaults(module_class: type) -> dict[str, Any]:
    """Describe the module's default objects as in a config file."""
    described: dict[str, Any] = {}
    parameters = inspect.signature(DiffusionModule).parameters
    for name, parameter in {**parameters, **inspect.signature(module_class).parameters}.items():
        default = parameter.default
        if isinstance(default, Configurable):
            described[f"model.{name}"] = default.describe()
        elif isinstance(default, partial):
            class_path = f"{default.func.__module__}.{default.func.__qualname__}"
            described[f"model.{name}"] = {"class_path": class_path, "init_args": default.keywords}
    return described


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
    if key == "class_path":  # because a class can be named by its file or by its package
        return locate(value)
    return [_comparable(key, item) for item in value] if isinstance(value, list | tuple) else value
