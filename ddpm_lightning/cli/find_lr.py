"""find_lr: Lightning's learning rate finder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch.tuner import Tuner

from ddpm_lightning.cli.training import FIND_LR, is_first_process
from ddpm_lightning.cli.trial import TrialCLI
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import check_new_file
from ddpm_lightning.plots.figure import new_figure, write_figure


class FindLRCLI(TrialCLI):
    """find_lr: Lightning's learning rate finder, with fit's flags, in a folder of its own."""

    name = "find_lr"
    description = FIND_LR

    @staticmethod
    def add_flags(parser: Any) -> None:
        """Add the flags of the search."""
        parser.add_argument("--min_lr", type=PositiveFloat, default=1e-6, help="at step 1")
        parser.add_argument("--max_lr", type=PositiveFloat, default=1.0, help="at the last step")
        parser.add_argument("--steps", type=PositiveInt, default=100, help="of the search")
        parser.add_argument("--out", type=Path | None, help="picture of loss over rate, .png")

    def before_instantiate_classes(self) -> None:
        """Search in a folder that is removed afterwards."""
        settings = self.config.fit
        if settings.out is not None:
            check_new_file(settings.out, (".png",))
        if settings.ckpt_path or settings.trainer.fast_dev_run:
            raise InputError("find_lr searches before a run: leave out ckpt_path and fast_dev_run")
        settings.trainer.default_root_dir = self._held.enter_context(TemporaryDirectory())
        settings.trainer.logger = False

    def fit(self, **_: Any) -> None:
        """Search in place of training."""
        settings = self.config.fit
        found = Tuner(self.trainer).lr_find(
            self.model,
            datamodule=self.datamodule,
            min_lr=settings.min_lr,
            max_lr=settings.max_lr,
            num_training=settings.steps,
            update_attr=False,
        )
        lr = found.suggestion() if found is not None else None
        if found is None or lr is None:
            more = max(100, 2 * settings.steps)
            raise InputError(
                f"{settings.steps} steps are too few for a suggestion: --steps {more}"
            )
        if not is_first_process():
            return
        if settings.out is not None:
            figure = new_figure(6, 4)
            found.plot(suggest=True, ax=figure.add_subplot())
            write_figure(settings.out, figure)
        print(f"the loss falls fastest at this rate: --model.optimizer.lr {lr:.2g}")
