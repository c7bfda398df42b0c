"""A logger of a run, of any kind: what Lightning's interface of loggers lacks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import is_address
from ddpm_lightning.trackers.address import write_text


class Tracker:
    """Gives a logger pictures, hyper-parameters and checkpoints; this one, a logger of any kind.

    A kind of logger that does more than these methods is a subclass, entered in TRACKERS. All
    methods but ``check`` are called on the first process alone.

    Args:
        logger: The logger.
        root: The run folder.
    """

    package: ClassVar[str] = ""
    """The package that the logger imports, where it is an optional one."""

    local: ClassVar[tuple[str, ...]] = ()
    """Arguments of the logger that must name folders of this machine, not s3:// and its like."""

    def __init__(self, logger: Logger, root: Path) -> None:
        self.logger: Any = logger
        self.root = root

    @classmethod
    def arguments(cls, root: str, given: dict[str, Any], run_id: str | None) -> dict[str, Any]:
        """Return arguments of the logger's class that put its files into the run folder.

        Args:
            root: The run folder.
            given: The arguments that a person gave, which stay as they are.
            run_id: What :meth:`run_id` was when the run began; None: it begins.
        """
        return {}

    @classmethod
    def check_package(cls, name: str) -> None:
        """Raise InputError if the package of a logger class of this name is not installed."""
        if cls.package and find_spec(cls.package) is None:
            raise InputError(
                f"{name} needs the package {cls.package}, which is not installed: "
                f"pip install {cls.package}"
            )

    @classmethod
    def check_local(cls, name: str, given: dict[str, Any]) -> None:
        """Raise InputError if an argument that must be a folder of this machine is an address."""
        for argument in cls.local:
            if is_address(str(given.get(argument))):
                raise InputError(
                    f"{name}: {argument} {given[argument]} is an address, and this logger writes "
                    f"on this machine only; leave {argument} out for the run folder"
                )

    def check(self) -> None:
        """Raise InputError if the logger could not log: no key, no server, no permission."""

    def begin(self, step: int | None, command: str = "fit") -> None:
        """Prepare a logger before it opens its files.

        Args:
            step: The step that a resumed training goes on from; None: nothing goes on.
            command: fit, or one that measures a checkpoint while a fit may train in the folder.
        """

    def run_id(self) -> str | None:
        """Return the name by which a resumed run finds what it logged; None: by its folder."""
        return None

    def hyperparameters(self, values: dict[str, Any], metrics: Sequence[str]) -> None:
        """Log hyper-parameters at the start.

        Args:
            values: The hyper-parameters, plain data, the most interesting first.
            metrics: Tags by which runs are compared.
        """
        self.logger.log_hyperparams(values)
        if (folder := self.logger.log_dir) is not None:  # a logger that keeps them in a file
            # Lightning's own file has them in the order of the alphabet.
            write_text(f"{folder}/hparams.yaml", yaml.safe_dump(values, sort_keys=False))

    def show(self, tag: str, file: Path, step: int) -> None:
        """Show a picture or an animation: a PNG, GIF or MP4 file in the run folder."""
        if hasattr(self.logger, "log_image") and file.suffix == ".png":
            self.logger.log_image(tag, [np.asarray(Image.open(file))], step=step)

    def samples(self, tag: str, images: Tensor, labels: Tensor, step: int) -> None:
        """Show samples uint8 [n, C, H, W] by their class int64 [n], where tables can be shown."""

    def checkpoint(self, path: Path, step: int, last: bool) -> None:
        """Keep a checkpoint as an artifact, where the logger's ``log_model`` asks for it."""

    def finish(self, metrics: dict[str, float], step: int) -> None:
        """Log the final metrics."""
        self.logger.log_metrics(metrics, step)

    def flush(self) -> None:
        """Let what was logged outlive the process."""
        self.logger.save()

    def where(self) -> str:
        """Say where to look, as a command or a place; empty: nobody knows."""
        return ""
