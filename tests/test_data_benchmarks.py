"""Benchmarks of data and growth: both sides give the same, and the models fit what they should."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import data, folder, growth, paper
from benchmarks.report import Report
from benchmarks.timing import Spread
from ddpm_lightning.data import ImageFolder
from ddpm_lightning.networks.layers import Attention
from tests.test_gpu_benchmark import TINY


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_both_data_paths_give_the_same_images(channels, side):
    ours = data.Noise(channels, side, n=16)
    usual = data.PerImage(*ours.images("train"), flip=False)
    batch = ours.finished("train")
    items = [usual[place] for place in range(16)]
    torch.testing.assert_close(batch.x0, torch.stack([image for image, _ in items]))
    assert batch.condition.label.tolist() == [label for _, label in items]


def test_both_data_paths_are_timed():
    report = Report("data")
    data.compare(report, "small", data.Noise(1, 8, n=256), rounds=1, at_least=0)
    assert [row.name for row in report.rows][-1] == "small: in memory / image by image"


@pytest.mark.parametrize("size", [24, 32])
def test_the_folder_is_decoded_as_by_pillow(size, tmp_path):
    folder.draw_files(tmp_path / "images", 3, 32)
    ours = ImageFolder(str(tmp_path / "images"), size=size, store="memory", held_out=0)
    images, _ = ours.images("train")
    for image, file in zip(images, sorted((tmp_path / "images").iterdir()), strict=True):
        expected = folder.decoded(file, size)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_used_memory_is_what_is_written():
    before = folder.memory_added()
    with mmap.mmap(-1, 32 * folder.MIB) as block:  # new pages, where tensors may reuse freed ones
        block.write(b"1" * len(block))
        assert 30 < folder.memory_added(before) / folder.MIB < 40


def test_a_law_is_found_and_a_wrong_one_told():
    def times(of):
        return [Spread.of([of(size)]) for size in law.sizes]

    law = growth.Law("step", "side", [8, 16, 32, 64], [0, 2], lambda size: lambda: None)
    fit = growth.Fit(law, times(lambda size: 0.002 + 3e-6 * size**2))
    assert fit.apart < 1e-6
    assert fit.words == "2 + 0.003·x² ms"
    assert growth.Fit(law, times(lambda size: 1e-9 * size**6)).apart > growth.LIMIT


def test_the_plot_is_drawn(tmp_path):
    law = growth.Law("step", "batch", [1, 2, 4], [0, 1], lambda size: lambda: None)
    growth.drawn([growth.Fit(law, [Spread.of([s]) for s in (1, 2, 4)])] * 2, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 100


def test_operations_are_those_of_convolutions_linear_layers_and_attention():
    counted = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d | nn.Linear):
            counted.append(2 * output.numel() * module.weight[0].numel())
        if isinstance(module, Attention):
            _, channels, height, width = output.shape
            counted.append(2 * 2 * (height * width) ** 2 * channels)

    net = TINY.module().net.eval()
    for module in net.modules():
        module.register_forward_hook(count)
    net(torch.zeros(1, *TINY.spec.shape), torch.ones(1))
    forwards, trained = paper.operations(TINY)
    assert forwards == sum(counted)
    assert trained == pytest.approx(3 * forwards, rel=0.1)


def test_the_paper_calculation_is_of_the_published_size():
    rows = dict(paper.table(TINY, utilisation=0.3))
    assert rows["hours on 8 H100"] != rows["hours on 1 H100"]
    parameters = sum(p.numel() for p in TINY.module().net.parameters())
    assert rows["parameters"] == f"{parameters / 1e6:.1f} M"
