"""Tests of the network, the data set and the training: python -m pytest."""

from pathlib import Path

import torch
from my_project.data import Shapes
from my_project.network import DilatedConvolutions

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.cli import main

CONFIG = Path(__file__).parent / "config.yaml"


def test_the_network_keeps_the_shape_and_sees_level_and_label():
    torch.manual_seed(0)
    net = DilatedConvolutions(DataSpec((1, 16, 16), num_classes=2), out_channels=1, width=8)
    x = torch.randn(1, 1, 16, 16).expand(3, -1, -1, -1)
    levels, labels = torch.tensor([10.0, 900.0, 900.0]), torch.tensor([0, 0, 1])
    a, b, c = net(x, levels, Condition(label=labels))
    assert a.shape == x[0].shape
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)


def test_the_data_are_images_of_both_classes():
    images, labels = Shapes().read("train")
    assert images.shape == (2100, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert labels.bincount().min() > 500


def test_two_steps_train_and_sample(tmp_path):
    run = tmp_path / "run"
    small = ["--model.net.width=8", "--model.net.depth=1", "--grid=null"]
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1"]
    where = [f"--trainer.default_root_dir={run}", "--trainer.accelerator=cpu"]
    main(["fit", f"--config={CONFIG}", *small, *short, *where])
    checkpoint = ["--ckpt", str(run / "checkpoints" / "last.ckpt"), "--trust", "my_project"]
    steps = ["--sampler", "DDIM", "--sampler.steps", "2"]
    main(["sample", *checkpoint, "--out", str(tmp_path / "images"), "--n", "2", *steps])
    assert (tmp_path / "images" / "000001.png").is_file()
