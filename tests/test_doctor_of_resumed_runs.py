"""doctor examines the extractor that a resumed run keeps, not that of a new run."""

from __future__ import annotations

import json

import pytest

from ddpm_lightning.callbacks import GenerativeMetrics
from ddpm_lightning.cli import main
from ddpm_lightning.data import CIFAR10
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.run_folder import last_checkpoint
from tests.make_data import write_cifar10
from tests.small import fit
from tests.test_extractor_choice import INCEPTION, SavedElsewhere

SMALL = """
    --model.net=UNet --model.net.channels=8 --model.net.multipliers=[1] --model.net.blocks=1
    --model.net.attention_levels=[] --model.net.groups=4 --trainer.accelerator=cpu --grid=null
    --trainer.limit_val_batches=0 --trainer.enable_progress_bar=false
    --metrics=GenerativeMetrics --metrics.n=8 --metrics.sampler=DDIM --metrics.sampler.steps=1
    --data=CIFAR10 --data.held_out=8 --data.global_batch_size=8
"""


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Flags of a tiny run on colour images; Inception's weights are not on the machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("ddpm_lightning.doctor.model_checks.SECONDS", 1e-6)  # trains no batch
    write_cifar10(tmp_path, train=40, test=10)
    run = f"--trainer.default_root_dir={tmp_path / 'run'}"
    return [*SMALL.split(), f"--data.root={tmp_path}", run]


def weights_of_metrics(capsys, *words: str) -> dict[str, str]:
    """What doctor finds of them."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["doctor", *words, "--json"])
    findings = json.loads(capsys.readouterr().out)
    return next(one for one in findings if one["check"] == "weights of the metrics")


@pytest.mark.slow
def test_weights_that_have_come_since_are_not_looked_at(flags, tmp_path, capsys):
    main(["fit", *flags, "--trainer.max_steps=1"])
    path = tmp_path / "torch" / INCEPTION
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no weights: to read them would fail")
    found = weights_of_metrics(capsys, *flags, "--trainer.max_steps=2", "--ckpt_path=last")
    assert (found["state"], found["text"]) == ("ok", "ColourNet found")


@pytest.mark.slow
def test_weights_that_are_gone_are_missed_as_by_fit(flags, tmp_path, capsys):
    data = CIFAR10(str(tmp_path), held_out=8, global_batch_size=8)
    metric = GenerativeMetrics(every_n_steps=3, n=8, sampler=DDIM(1))
    fit(tmp_path, 1, metric, SavedElsewhere("Inception"), data=data)
    found = weights_of_metrics(capsys, *flags, f"--ckpt={last_checkpoint(tmp_path)}")
    assert found["state"] == "failed"
    assert "the run began with Inception" in found["text"]
