"""The extractor that auto chooses is one for all processes, and for a run from its begin on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from ddpm_lightning.callbacks import GenerativeMetrics
from ddpm_lightning.cli import main
from ddpm_lightning.data import CIFAR10
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import write_png
from ddpm_lightning.metrics import ColourNet, chosen_before, chosen_extractor
from tests.make_data import write_cifar10
from tests.small import fit

INCEPTION = "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_cifar10(root, train=40, test=10)
    return root


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """Where Inception's weights are expected; they are not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "torch" / INCEPTION
    path.parent.mkdir(parents=True)
    return path


def measured(folder: Path, photos: Path, steps: int, *more: Callback, **run) -> list:
    """Fit with a metric of the extractor auto every three steps; name and number of each."""
    data = CIFAR10(str(photos), held_out=8, global_batch_size=8)
    metric = run.pop("metric", None) or GenerativeMetrics(every_n_steps=3, n=8, sampler=DDIM(2))
    fit(folder, steps, metric, *more, data=data, **run)
    records = json.loads((folder / "metrics.json").read_text())
    return [(record["step"], record["metric"], record["value"]) for record in records]


class SavedElsewhere(Callback):
    """Saves what a run with such an extractor saves."""

    def __init__(self, extractor) -> None:
        self.extractor = extractor

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["callbacks"]["GenerativeMetrics"] = {"extractor": self.extractor}


class Late(SingleDeviceStrategy):
    """Restores callbacks after on_fit_start, as FSDP does."""

    restore_checkpoint_after_setup = True


@pytest.mark.slow
def test_a_resumed_run_keeps_name_and_number_when_inceptions_weights_have_come(
    photos, hub, tmp_path, capsys
):
    whole = measured(tmp_path / "whole", photos, 6)
    assert [name for _, name, _ in whole] == ["fd_colour", "fd_colour"]
    measured(tmp_path / "run", photos, 3)
    hub.write_bytes(b"no weights: to read them would fail")
    capsys.readouterr()
    assert measured(tmp_path / "run", photos, 6, resume=True) == whole
    assert "extractor auto: ColourNet (fd_colour) as when the run began" in capsys.readouterr().out


@pytest.mark.slow
def test_a_choice_that_is_restored_late_is_kept(photos, hub, tmp_path, inception_file):
    late = {"strategy": Late(accelerator=CPUAccelerator(), device="cpu"), "accelerator": "auto"}
    measured(tmp_path, photos, 3, run=late)
    hub.symlink_to(inception_file)
    found = measured(tmp_path, photos, 6, resume=True, run=late)
    assert [name for _, name, _ in found] == ["fd_colour", "fd_colour"]


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ("Inception", r"not at .*6726825d\.pth any more; --metrics.extractor Inception downloads"),
        pytest.param("Pixels", "'Pixels' is none that auto chooses", marks=pytest.mark.slow),
        pytest.param(7, "is no name; .* --metrics.extractor NAME", marks=pytest.mark.slow),
    ],
)
def test_a_choice_that_cannot_be_kept_is_refused_before_training(
    photos, hub, tmp_path, extractor, message
):
    measured(tmp_path, photos, 3, SavedElsewhere(extractor))
    with pytest.raises(InputError, match=message) as caught:
        measured(tmp_path, photos, 6, resume=True)
    assert "\n" not in str(caught.value)
    assert not hub.exists()


@pytest.mark.slow
@pytest.mark.parametrize("before", ["Inception", 7])
def test_an_extractor_that_is_named_on_resuming_is_taken(photos, hub, tmp_path, before):
    measured(tmp_path, photos, 3, SavedElsewhere(before))
    named = GenerativeMetrics(ColourNet(), every_n_steps=3, n=8, sampler=DDIM(2))
    found = measured(tmp_path, photos, 6, metric=named, resume=True)
    assert [name for _, name, _ in found] == ["fd_colour", "fd_colour"]


def test_weights_that_another_process_lacks_are_not_chosen(hub):
    hub.touch()
    assert type(chosen_extractor("auto", (3, 8, 8), lambda here: False)) is ColourNet
    with pytest.raises(InputError, match=r"--metrics\.extractor\.weights PATH"):
        chosen_before("Inception", lambda here: False)


@pytest.mark.slow
def test_two_processes_of_which_one_has_inceptions_weights_measure_with_colournet(
    photos, hub, tmp_path, inception_file
):
    hub.symlink_to(inception_file)
    command = [sys.executable, "-m", "tests.test_extractor_choice", str(tmp_path), str(photos)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = [(step, name) for step, name, _ in json.loads((tmp_path / "found.json").read_text())]
    assert two == [(3, "fd_colour")]


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["0", "1"])
def test_two_processes_of_which_one_has_inceptions_weights_score_with_colournet(
    hub, tmp_path, lacks
):
    hub.write_bytes(b"no weights: to read them would fail")
    for k in range(40):
        write_png(tmp_path / "images" / f"{k}.png", torch.full((3, 8, 8), k, dtype=torch.uint8))
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    words = [*launcher, "tests.test_extractor_choice", "score", lacks, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "extractor auto: ColourNet" in done.stdout
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metric"] == "fd_colour"


def score_without_weights(lacks: str, folder: Path) -> None:
    """Score as one of several processes; that of this rank lacks Inception's weights."""
    if os.environ["LOCAL_RANK"] == lacks:
        os.environ["TORCH_HOME"] = str(folder / "nothing")
    flags = [f"--samples={folder / 'images'}", f"--reference.folder={folder / 'images'}"]
    main(["score", *flags, f"--out={folder / 'out'}", "--device=cpu", "--batch_size=10"])


if __name__ == "__main__" and sys.argv[1] == "score":
    score_without_weights(sys.argv[2], Path(sys.argv[3]))
elif __name__ == "__main__":
    out, data = map(Path, sys.argv[1:])
    if os.environ.get("LOCAL_RANK") == "1":
        os.environ["TORCH_HOME"] = str(out / "nothing")
    found = measured(out / "two", data, 3, run={"devices": 2, "strategy": "ddp"})
    (out / "found.json").write_text(json.dumps(found))
