"""Models that come with the package: named in place of a file, and as good as is said."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.samplers import DPMSolverPP
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.metrics import LeNet
from ddpm_lightning.shipped_models import shipped_models


@pytest.mark.parametrize("name", ["mnist_quick"])
def test_its_file_is_at_most_two_megabytes_of_half_precision(name):
    path = shipped_models()[name]
    assert path.stat().st_size <= 2_000_000
    weights = {k: v for k, v in load_file(path).items() if k.startswith("net.")}
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_mnist_quick_draws_the_digits_that_are_asked_for():
    labels = torch.arange(50) % 10
    request = DPMSolverPP(10)
    drawn = Loaded.read("mnist_quick").module.sample(50, request, labels.tolist(), guidance=1.5)
    logits = LeNet().features_and_logits(to_uint8(drawn)).logits
    assert logits is not None
    assert int((logits.argmax(1) == labels).sum()) >= 47


def test_sample_takes_its_name(tmp_path):
    out = tmp_path / "drawn"
    words = ["--n=4", "--sampler=DDIM", "--sampler.steps=2"]
    main(["sample", "--ckpt=mnist_quick", f"--out={out}", *words])
    assert len(list(out.glob("0*.png"))) == 4


def test_sample_goes_on_in_a_folder_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--out=mnist_quick", "--n=2", "--sampler=DDIM", "--sampler.steps=1"]
    for _ in range(2):
        main(["sample", "--ckpt=mnist_quick", *words])
    assert len(list((tmp_path / "mnist_quick").glob("0*.png"))) == 2


def test_a_run_folder_of_the_same_name_is_not_taken_for_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist_quick" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mnist_quick" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match=r"is a folder, .* holds checkpoints/last\.ckpt"):
        read_checkpoint("mnist_quick")


@pytest.mark.parametrize("command", ["doctor", "validate"])
def test_a_config_beside_is_not_taken_for_its_run(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {net: nosuchpackage.Thing}")
    flag = "--ckpt=mnist_quick" if command == "doctor" else "--ckpt_path=mnist_quick"
    with pytest.raises(SystemExit) as end:
        main([command, flag, "--data.root=nowhere"] if command == "doctor" else [command, flag])
    assert end.value.code
    assert "nosuchpackage" not in capsys.readouterr().err


def test_a_file_of_the_same_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist_quick").write_bytes(b"something else")
    with pytest.raises(InputError, match="mnist_quick is damaged or not a checkpoint"):
        read_checkpoint("mnist_quick")


def test_a_misspelt_name_is_answered_with_the_names_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.ckpt").touch()
    with pytest.raises(InputError, match=r"at mnist_quik; .*other\.ckpt; .*: mnist_quick"):
        read_checkpoint("mnist_quik")
