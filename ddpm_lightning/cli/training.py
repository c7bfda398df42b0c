"""fit, validate, test and predict: LightningCLI, with the parts of every run."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import ddpm_lightning.data
import ddpm_lightning.muon  # noqa: F401 (both known by short name on the command line)
from ddpm_lightning.busy import busy_machine
from ddpm_lightning.callbacks import (
    GenerativeMetrics,
    HyperParameters,
    Likelihood,
    PointMetrics,
    RunCheckpoint,
    SampleGrid,
    StepLines,
    StepProgressBar,
    TrainingMonitor,
)
from ddpm_lightning.checkpoint import check_description, read_checkpoint
from ddpm_lightning.closed_pipe import ended_by_closed_pipe
from ddpm_lightning.commands.base_config import NO_DATA, with_base
from ddpm_lightning.commands.given_checkpoint import (
    DEFAULT_ROOT,
    add_trust,
    check_config_given,
    check_resume,
    check_start,
    checkpoint_named,
    config_of_checkpoint,
    differences,
    is_finished,
    stated_model,
)
from ddpm_lightning.commands.group_help import group_help
from ddpm_lightning.commands.nulls import check_nulls
from ddpm_lightning.commands.paths import expand_paths
from ddpm_lightning.commands.run import COMMANDS, about
from ddpm_lightning.commands.words import complete
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.data.data_module import NO_BATCH_SIZE_FINDER
from ddpm_lightning.diffusion import Guidance
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write, check_folder
from ddpm_lightning.initial_weights import initialize
from ddpm_lightning.memory import check_integers
from ddpm_lightning.metrics.result import read_records
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.optimization import NO_LR_FINDER
from ddpm_lightning.progress import shows_bars
from ddpm_lightning.run_folder import (
    UNSAVED,
    last_checkpoint,
    locked,
    newest_checkpoint,
    set_aside,
)
from ddpm_lightning.sampling import Request
from ddpm_lightning.terminal.mistakes import users_mistake
from ddpm_lightning.terminal.parser import PROGRAM, ParseError, Parser, flags_of
from ddpm_lightning.trackers import in_run_folder, trackers_of
from ddpm_lightning.trained import TrainedModule
from ddpm_lightning.trust import foreign_packages

COMPLETION = 'Print completion for bash: eval "$(ddpm_lightning completion)"'

DESCRIPTIONS = {
    "fit": "Train.",
    "validate": "Measure the loss of raw and EMA weights at fixed levels and noise.",
    "test": "Measure that and the bound on the likelihood, on the test split.",
    "predict": "Sample images for Python's trainer.predict; in a terminal, use sample.",
}

DOCTOR = "Check data, model and machine before a run, in two minutes, and forecast its cost."
FIND_LR = "Search a learning rate: raise it over some steps and see where the loss falls fastest."

HELP = {
    "ckpt_path": "Checkpoint to go on from, or to measure: a file; last, that of the run folder; "
    "for fit also auto, the newest that there is, or a new run.",
    "weights_only": "Not used: checkpoints are always read without pickled objects.",
}
"""Of flags whose help by Lightning speaks of what is not so here."""

INIT_FROM = """Checkpoint whose averaged weights a new run of fit starts from, as far as they fit
by name and shape; convert makes one of other people's. A resumed run does not start again."""

MODULE = """What is trained: DiffusionModule, or in a config or the first flags Autoencoder, which
has settings of its own."""

BLOCKS: dict[str, tuple[type[Callback], ...]] = {
    "grid": (SampleGrid,),
    "metrics": (GenerativeMetrics, PointMetrics),
}
"""Callbacks that stand beside the trainer by a name of their own; null leaves one out."""


LOGGING = (LearningRateMonitor, DeviceStatsMonitor)
"""Callbacks of Lightning that do nothing but log, and refuse a trainer without a logger."""

UNSUITED = {"LearningRateFinder": NO_LR_FINDER, "BatchSizeFinder": NO_BATCH_SIZE_FINDER}
"""Callbacks of Lightning that cannot work here, and why."""

STOPPED = (
    "error: training ended because the reader of its output has gone (a closed pipe); go on by "
    "the same command with --ckpt_path auto, and keep its output in a file: > log.txt"
)


class RunParser(Parser, LightningArgumentParser):
    """The parser of fit, validate, test and predict."""

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Let loggers do without a folder, for theirs is the run's."""
        added = super().add_class_arguments(theclass, *args, **kwargs)
        if self.component is theclass and issubclass(theclass, Logger):
            for action in self._actions:
                action.required = action.required and action.dest != "save_dir"
        return added


class DiffusionCLI(LightningCLI):
    """fit, validate, test and predict of a DiffusionModule; a run is one folder.

    Attributes:
        base: What the module is a subclass of, by whose name configs choose it.
        blocks: Callbacks that stand beside the trainer by a name of their own.

    Args:
        module_class: The module to train.
        args: The words after the program's name; None takes the process's own.
    """

    base: type[TrainedModule] = DiffusionModule
    blocks: ClassVar[dict[str, tuple[type[Callback], ...]]] = BLOCKS

    def __init__(self, module_class: type[TrainedModule], args: list[str] | None) -> None:
        self._module_class = module_class
        self._words = sys.argv[1:] if args is None else args
        exact = {"allow_abbrev": False}
        with ExitStack() as self._held:  # the lock of the run folder
            super().__init__(
                module_class,
                LightningDataModule,
                subclass_mode_data=True,
                args=args,
                seed_everything_default=0,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"save_to_log_dir": False},
                load_from_checkpoint_support=False,  # the module describes itself
                auto_configure_optimizers=False,
                parser_class=RunParser,
                parser_kwargs=exact
                | {"description": "Train diffusion models and use them; one run is one folder."}
                | {one: exact | {"description": DESCRIPTIONS[one]} for one in self.subcommands()},
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that was asked for alone, because building a parser takes a while."""
        every = super().subcommands()
        return {name: every[name] for name in self._words[:1] if name in every} or every

    def setup_parser(self, *args: Any) -> None:
        """Let the help list the plain commands, too, which main runs without this class."""
        super().setup_parser(*args)
        listed: Any = self.parser._subcommands_action
        for action in listed._choices_actions:
            action.help = DESCRIPTIONS[action.dest]
        for name, parser in self._subcommand_parsers.items():
            parser.prog = f"{PROGRAM} {name}"
            for option in parser._actions:
                option.help = HELP.get(option.dest, option.help)
        others = {"doctor": DOCTOR, "find_lr": FIND_LR, "completion": COMPLETION}
        for name, text in {**others, **{name: about(name) for name in COMMANDS}}.items():
            listed.add_subcommand(name, Parser(), help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data to the module; let the callbacks of every run stand beside the trainer."""
        add_trust(parser)
        name = self.base.__name__
        parser.add_argument("--lightning_module", type=Literal[name], default=name, help=MODULE)
        parser.link_arguments("data.spec", "model.data", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        actions: list[Any] = parser._actions
        for action in actions:  # typing's cache may give Lightning's hints float first
            if action.dest.startswith("trainer.limit_") and action.dest.endswith("_batches"):
                action._typehint = int | float | None
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        self.add_parts(parser)
        for block, kinds in self.blocks.items():
            parser.add_subclass_arguments(kinds, block, required=False)
        parser.set_defaults(_stated_defaults(self.base, self._module_class))
        parser.set_defaults({"trainer.default_root_dir": DEFAULT_ROOT})

    def add_parts(self, parser: LightningArgumentParser) -> None:
        """Add what runs of this kind of module have beside its blocks."""
        parser.add_argument("--init_from", type=str | None, help=INIT_FROM)
        parser.add_lightning_class_args(Likelihood, "likelihood")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words, completed."""
        command, *words = sys.argv[1:] if args is None else args
        if command in self._subcommand_parsers and (
            text := group_help(self._subcommand_parsers[command], words)
        ):
            print(text)
            sys.exit(0)
        check_start(words)
        if not (found := config_of_checkpoint(words)):
            check_config_given(command, words)
        words = [*found, *words]
        completed = complete(words, flags_of(parser, command))
        try:
            self.config = parser.parse_args([command, *completed])
        except ParseError as error:
            if users_mistake(error) != NO_DATA:
                raise
            raise InputError(with_base(self._subcommand_parsers[command].prog, words)) from error
        expand_paths(self.config[command])
        plain = self.config[command].as_dict()
        check_nulls(plain, flags_of(parser, command))
        check_integers(plain)
        settings = self.config[command].trainer
        _check_trainer(settings)
        if command == "fit" and is_first_process() and not settings.fast_dev_run:
            self.hold(settings.default_root_dir)

    def hold(self, run_folder: str) -> None:
        """Lock the run folder until the command ends."""
        self._held.enter_context(locked(run_folder))
        self._held.enter_context(ended_by_closed_pipe(STOPPED))

    def before_instantiate_classes(self) -> None:
        """Keep a run from being mixed with another."""
        config = self.config[self.subcommand]
        config.weights_only = True  # Lightning, too, loads no pickles
        root = config.trainer.default_root_dir
        if self.subcommand != "fit":
            if not config.ckpt_path:
                raise InputError(
                    f"{self.subcommand} of what? Give --ckpt_path FILE, or last for the run in "
                    f"{root}"
                )
            return
        if (results := Path(root) / "metrics.json").is_file():
            read_records(results)  # before hours of training, because it may be damaged
        saved, folder = newest_checkpoint(root), last_checkpoint(root).parent
        resumes = config.ckpt_path and Path(config.ckpt_path).resolve().parent == folder.resolve()
        if saved is not None and not resumes and not config.trainer.fast_dev_run:
            named = "last" if saved == last_checkpoint(root) else saved
            raise InputError(
                f"{root} holds a run already: go on with it by --ckpt_path {named}, or choose "
                "another folder by --trainer.default_root_dir"
            )
        if saved is None and is_first_process() and not config.trainer.fast_dev_run:
            for path in set_aside(root):
                print(f"{path} is of a start that saved nothing; renamed to {UNSAVED}…")

    def instantiate_classes(self) -> None:
        """Let the loggers write into the run folder, which their saved settings do not repeat."""
        trainer = self.config[self.subcommand].trainer
        stated = trainer.logger
        trainer.logger = _loggers(stated, trainer.default_root_dir)
        super().instantiate_classes()
        trainer.logger = stated

    def begin_logs(self, step: int | None) -> None:
        """Prepare the loggers for a resume after this step, or for a start."""
        for tracker in trackers_of(self.trainer) if is_first_process() else ():
            tracker.begin(step, self.config.subcommand)

    def after_instantiate_classes(self) -> None:
        """Refuse data that a checkpoint was not made for; prepare the loggers and the weights."""
        config = self.config[self.subcommand]
        path = config.get("ckpt_path")
        if not path:
            self.begin_logs(None)
            if config.get("init_from") and self.subcommand == "fit":
                said = initialize(self.model, config.init_from)
                if is_first_process():
                    print(said)
            return
        checkpoint = read_checkpoint(path)
        self.begin_logs(checkpoint["global_step"] if self.subcommand == "fit" else None)
        given = self.model.hparams["data"]
        for name, value in checkpoint["hyper_parameters"]["data"].items():
            unlabelled = name == "num_classes" and not self.model.hparams.get("conditional")
            if given.get(name) != value and not unlabelled:
                raise InputError(
                    f"{path} was trained on data of {name} {value}, but "
                    f"{type(self.datamodule).__name__} gives {given.get(name)}"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks of every run; check the loggers."""
        trainer = self._get(self.config_init, "trainer")
        given = trainer.callbacks or []
        callbacks = [*given] if isinstance(given, list) else [given]
        if trainer.logger is False:
            callbacks = [one for one in callbacks if not isinstance(one, LOGGING)]
        own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if trainer.enable_progress_bar is not False and not own_bar:
            callbacks.append(StepProgressBar() if shows_bars() else StepLines())
        blocks = [self._get(self.config_init, name) for name in self.blocks]
        blocks = [block for block in blocks if block is not None]
        # HyperParameters lists what metrics measure, whose extractor is chosen in the same hook.
        kwargs["callbacks"] = [*callbacks, *blocks, HyperParameters()]
        instance = super().instantiate_trainer(**kwargs)
        _check_launcher(instance)
        for tracker in trackers_of(instance) if is_first_process() else ():
            tracker.check()
        # The final metrics are logged when all are measured, and a save is the last act of a step.
        last = (TrainingMonitor, RunCheckpoint)
        instance.callbacks.sort(key=lambda one: [isinstance(one, kind) for kind in reversed(last)])  # type: ignore[attr-defined]
        return instance

    def before_fit(self) -> None:
        """Say what slows the training down."""
        busy = busy_machine(self.trainer.strategy.root_device)
        if busy and self.trainer.is_global_zero:
            print(busy, file=sys.stderr)

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            root = self.trainer.default_root_dir
            print(f"\n{root} holds the run")
            for tracker in trackers_of(self.trainer):
                if where := tracker.where():
                    print(f"Look at it: {where}")
            if (last := last_checkpoint(root)).exists():
                print(self.next_command(last))

    def next_command(self, last: Path) -> str:
        """What a run's checkpoint is for, as a command."""
        packages = foreign_packages([self.model.class_path(), dict(self.model.hparams)])
        trust = ["--trust", ",".join(packages)] if packages else []
        grids = (one for one in self.trainer.callbacks if isinstance(one, SampleGrid))  # type: ignore[attr-defined]
        drawn = next((sampling_flags(grid.example) for grid in grids), [])
        words = shlex.join(["sample", "--ckpt", str(last), *trust, *drawn])
        return f"Draw from it: {PROGRAM} {words} --out FOLDER"

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the checkpoint's arguments override the command line's without a word.
        config = self.config[self.config.subcommand]
        if not config.get("ckpt_path"):
            return
        auto, root = config.ckpt_path == "auto", config.trainer.default_root_dir
        if auto and self.config.subcommand != "fit":
            raise InputError(
                "--ckpt_path auto starts a fit or goes on with it; give a file, or last"
            )
        newest = newest_checkpoint(root)
        if auto and newest is None:
            config.ckpt_path = None
            return
        path = newest if auto and newest else checkpoint_named(config.ckpt_path, root)
        if auto and path.name != "last.ckpt" and is_first_process():
            print(f"{last_checkpoint(root)} is gone; the run goes on from {path}")
        checkpoint = read_checkpoint(path)
        check_description(checkpoint, path, self.base)
        config.ckpt_path = str(path)
        stated = stated_model(checkpoint)
        different = differences(config.model.as_dict(), stated)
        if auto and is_finished(config, checkpoint):
            print(
                f"{path} stands at step {checkpoint['global_step']} already: the run is finished"
            )
            sys.exit(0)
        if self.config.subcommand == "fit":
            check_resume(config, checkpoint, different)
        for key, (ours, theirs) in different.items():
            print(
                f"ignored: model.{key}={ours}; {path} says {theirs}, and a checkpoint describes "
                "its model itself",
                file=sys.stderr,
            )
        try:
            update = {self.config.subcommand: {"model": stated}}
            self.config = self.parser.parse_object(update, self.config)
        except ParseError as error:
            raise InputError(
                f"{path} describes parts that do not exist any more, or not so: "
                f"{users_mistake(error)}"
            ) from error


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration of a training run to config.yaml in its folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave a run's configuration alone when it is only tested."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, whatever the logger."""
        config = self.config.clone()
        config.ckpt_path = None  # resuming is said on the command line, each time
        file = Path(trainer.default_root_dir) / self.config_filename
        with atomic_write(file) as partial:
            partial.write_text(self.parser.dump(config, skip_none=False), encoding="utf-8")


def _check_trainer(settings: Any) -> None:
    """Raise InputError for what Lightning divides by, or writes into, only later."""
    for name in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch"):
        if settings[name] == 0:
            raise InputError(f"trainer.{name} 0: give 1 or more")
    if settings.barebones:
        raise InputError(
            "trainer.barebones true runs without logger, callbacks and checkpoints, and a run "
            "here has its own; leave it out, and time with --trainer.fast_dev_run"
        )
    if settings.enable_checkpointing is False:
        raise InputError(
            "trainer.enable_checkpointing false: a run is saved at its end at least; leave it "
            "out, and save seldom by --checkpoint.every_n_steps"
        )
    given = settings.callbacks or []
    for callback in given if isinstance(given, list) else [given]:
        name = callback.class_path.rpartition(".")[2]
        if name in UNSUITED:
            raise InputError(f"trainer.callbacks: {UNSUITED[name]}")
    if settings.default_root_dir is None:
        raise InputError("trainer.default_root_dir null: a run is one folder; name it")
    if is_first_process():  # because two that try would remove each other's folder
        check_folder(Path(settings.default_root_dir))


def _loggers(stated: Any, root: str) -> Any:
    """Place the loggers of a trainer's settings in the run folder; by default, TensorBoard."""
    if stated is False:
        return False
    if stated in (None, True):
        stated = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger")
    several = stated if isinstance(stated, list) else [stated]
    placed = in_run_folder([one.as_dict() for one in several], root)
    loggers = [Namespace(one | {"init_args": Namespace(one["init_args"])}) for one in placed]
    return loggers if isinstance(stated, list) else loggers[0]


def is_first_process() -> bool:
    """Whether this is the process that prints and writes, before a trainer can tell."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _check_launcher(trainer: Trainer) -> None:
    """Raise InputError if torchrun started more processes than train together, or fewer."""
    started, counts = os.environ.get("WORLD_SIZE"), (trainer.num_devices, trainer.num_nodes)
    if TorchElasticEnvironment.detect() and int(started or 1) != counts[0] * counts[1]:
        raise InputError(
            f"torchrun started {started} processes, but trainer.devices × num_nodes is "
            f"{counts[0]} × {counts[1]}: give --trainer.devices and --trainer.num_nodes as "
            "torchrun has --nproc_per_node and --nnodes"
        )


def sampling_flags(request: Request) -> list[str]:
    """The flags with which sample draws as a grid of the run does."""
    flags = _flags_of_part("--sampler", request.sampler)
    if request.variance is not None:
        flags += _flags_of_part("--variance", request.variance)
    if request.guidance != Guidance():
        stated = asdict(request.guidance)
        rest = {name: stated[name] for name in ("interval", "rescale") if stated[name]}
        scale = "--guidance.scale" if rest else "--guidance"
        flags += [scale, json.dumps(stated["scale"])]
        for name, value in rest.items():
            flags += [f"--guidance.{name}", json.dumps(value)]
    for name, value in request.changed().items():
        if name == "prompt":
            flags += [word for text in request.prompts or () for word in ("--prompt", text)]
        if name in ("labels", "weights", "seed", "negative_prompt"):
            flags += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return flags


def _flags_of_part(flag: str, part: Configurable) -> list[str]:
    path = part.class_path()
    flags = [flag, type(part).__name__ if path.startswith("ddpm_lightning.") else path]
    for name, value in part.changed().items():
        if isinstance(value, Configurable):
            flags += _flags_of_part(f"{flag}.{name}", value)
        else:
            flags += [f"{flag}.{name}", value if isinstance(value, str) else json.dumps(value)]
    return flags


def _seed(seed: bool | int) -> int:
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"seed_everything {seed}: give a number from 0 to 4294967295")
    return seed


def _stated_defaults(base: type, module_class: type) -> dict[str, Any]:
    """State the module's default objects the way a config file would."""
    stated: dict[str, Any] = {}
    parameters = inspect.signature(base).parameters
    for name, parameter in {**parameters, **inspect.signature(module_class).parameters}.items():
        default = parameter.default
        if isinstance(default, Configurable):
            stated[f"model.{name}"] = default.describe()
        elif isinstance(default, partial):
            class_path = f"{default.func.__module__}.{default.func.__qualname__}"
            stated[f"model.{name}"] = {"class_path": class_path, "init_args": default.keywords}
    return stated
