"""doctor: the run that fit would begin, examined."""

from __future__ import annotations

import json
from typing import Any

from ddpm_lightning.checkpoint import KEY, read_checkpoint
from ddpm_lightning.cli.training import DOCTOR
from ddpm_lightning.cli.trial import TrialCLI
from ddpm_lightning.commands.given_checkpoint import config_of_checkpoint
from ddpm_lightning.commands.words import read_words
from ddpm_lightning.configurable import with_download
from ddpm_lightning.doctor import Run, examine
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.trust import check_trust


class DoctorCLI(TrialCLI):
    """doctor: examines the run that fit would begin, with fit's flags, or that of a checkpoint.

    The exit code is 0: every check passed; 1: one failed; 3: none failed, but one is unknown.
    """

    name = "doctor"
    description = (
        f"{DOCTOR} Exit code 0: all is well; 1: a check failed; 3: none failed, but one could not "
        "tell."
    )

    def __init__(self, module_class: type[DiffusionModule], args: list[str]) -> None:
        super().__init__(module_class, [*_run_of_checkpoint(args), *args])

    @staticmethod
    def add_flags(parser: Any) -> None:
        """Add the flags of doctor itself."""
        parser.add_argument("--ckpt", type=str | None, help="a checkpoint, whose run is examined")
        parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    def fit(self, **_: Any) -> None:
        """Examine in place of training."""
        model, config = self.model, self.config.fit
        if config.ckpt:
            model = Loaded.read(config.ckpt).module
            model.optimizer = self.model.optimizer  # which a checkpoint does not describe
        path = config.ckpt or config.ckpt_path
        kept = read_checkpoint(path).get("callbacks", {}) if path else {}
        run = Run(model, self.datamodule, self.trainer, bool(path), kept)
        findings = []
        for finding in examine(run):
            findings.append(finding)
            if not config.json:
                print(finding, flush=True)
        if config.json:
            print(json.dumps([finding.plain() for finding in findings], indent=2))
        states = {finding.state for finding in findings}
        self.exit_code = 1 if "failed" in states else 3 if "unknown" in states else 0


def _run_of_checkpoint(words: list[str]) -> list[str]:
    """Name the configuration of the run of --ckpt, else the data that the checkpoint states."""
    given = dict(read_words(words))
    if "ckpt" not in given or {"c", "config", "data"} & given.keys():
        return []
    data = read_checkpoint(given["ckpt"])[KEY]["data"]
    if found := config_of_checkpoint([f"--ckpt_path={given['ckpt']}", *words]):
        return found
    check_trust(given["ckpt"], data)
    return [f"--data={json.dumps(with_download(data, False))}"]
