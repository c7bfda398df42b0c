"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict, _sanitize_params
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from ddpm_lightning.trackers.address import check_address
from ddpm_lightning.trackers.tracker import Tracker

COLORSPACE = {"L": 1, "LA": 2, "RGB": 3, "P": 3, "RGBA": 4}
"""TensorBoard's numbers for Pillow's modes."""

COLUMNS = 5
"""Hyper-parameters that the HPARAMS page shows before more are asked for."""


class TensorBoard(Tracker):
    """Pictures and animations as they are in their files, and the HPARAMS page from the start."""

    @classmethod
    @override
    def arguments(cls, root: str, given: dict[str, Any], run_id: str | None) -> dict[str, Any]:
        place = {} if "save_dir" in given else {"save_dir": root, "name": "", "version": ""}
        return place | {"default_hp_metric": False}  # whose HPARAMS page would hide ours

    @override
    def check(self) -> None:
        check_address(str(self.logger.save_dir))

    @override
    def hyperparameters(self, values: dict[str, Any], metrics: Sequence[str]) -> None:
        super().hyperparameters(values, metrics)
        # Lightning writes them to the events with metrics only, which there are none of yet.
        flat = _sanitize_params(_flatten_dict(values))
        # torch writes false as the number 0.
        flat = {name: str(one) if isinstance(one, bool) else one for name, one in flat.items()}
        experiment, start, _ = hparams(flat, dict.fromkeys(metrics, 0.0))
        _show_first(experiment, list(flat)[:COLUMNS])
        for summary in (experiment, start):
            self._write(summary, 0)

    @override
    def show(self, tag: str, file: Path, step: int) -> None:
        if file.suffix == ".mp4":  # which a browser does not show as a picture
            return
        # SummaryWriter.add_video would write the same, but wants moviepy to make the file anew.
        with Image.open(file) as picture:
            image = Summary.Image(
                height=picture.height,
                width=picture.width,
                colorspace=COLORSPACE.get(picture.mode, 3),
                encoded_image_string=file.read_bytes(),
            )
        self._write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    @override
    def finish(self, metrics: dict[str, float], step: int) -> None:
        super().finish(metrics, step)
        *_, end = hparams({}, {})
        self._write(end, step)

    @override
    def where(self) -> str:
        return f"tensorboard --logdir {self.logger.log_dir.rstrip('/')}"

    def _write(self, summary: Summary, step: int) -> None:
        self.logger.experiment._get_file_writer().add_summary(summary, step)


def _show_first(experiment: Summary, names: Sequence[str]) -> None:
    """Mark hyper-parameters as different between runs: those come first, then the alphabet."""
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin.content = content.SerializeToString()
