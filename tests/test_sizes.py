"""Sizes that cannot be are refused before memory is asked for, or time is spent."""

from __future__ import annotations

from functools import lru_cache, partial

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.data import Digits, Toy2D
from ddpm_lightning.diffusion import Cosine, Linear, Straight
from ddpm_lightning.diffusion.schedules import Karras, Sigmoid
from ddpm_lightning.errors import InputError
from ddpm_lightning.memory import check_integers
from ddpm_lightning.networks import MLP, UNet
from ddpm_lightning.networks.checks import check_size, largest_divisor
from tests.small import TinyUNet, image_spec
from tests.test_cli import DIGITS, fail


@pytest.mark.parametrize("schedule", [Linear, Cosine, Sigmoid, Karras, Straight])
def test_a_schedule_has_a_million_levels_at_most(schedule):
    with pytest.raises(InputError, match=r"T=1000000000000\): use 1,000,000 levels or fewer"):
        schedule(T=10**12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 2**31 - 1}, r"groups=2147483647\): must be at most 65536"),
        ({"channels": 10**9}, r"channels=1000000000\): must be at most 65536"),
        ({"blocks": 10**6}, r"blocks=1000000\): must be at most 1000"),
        ({"channels": 60_000, "groups": 4}, r"would take [\d,]+ GiB, and this machine has"),
        ({"multipliers": [1, 2**40]}, "the network|would take"),
    ],
)
def test_a_network_that_no_memory_holds_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        DiffusionModule(data=image_spec(), net=partial(UNet, **arguments))


def test_the_check_of_a_network_leaves_its_weights_as_they_were():
    torch.manual_seed(3)
    first = TinyUNet(image_spec(), 1).state_dict()
    torch.manual_seed(3)
    check_size(partial(TinyUNet, image_spec(), 1))
    second = TinyUNet(image_spec(), 1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@lru_cache
def table(width: int) -> torch.Tensor:
    return torch.arange(width)


class Tabled(MLP):
    """A network of another package, whose instances share a table."""

    def __init__(self, data, out_channels, width=8):
        super().__init__(data, out_channels, width=width, depth=1)
        self.register_buffer("table", table(width) / 2)


def test_the_table_that_an_outside_network_keeps_is_a_real_one():
    module = DiffusionModule(DataSpec((2,)), net=partial(Tabled, width=6))
    assert module.net.table.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]


def test_the_largest_divisor_is_that_of_a_search():
    for number in range(1, 60):
        for most in range(1, 70):
            divisors = [d for d in range(1, most + 1) if number % d == 0]
            assert largest_divisor(number, most) == max(divisors)
    assert largest_divisor(2**40, 2**31 - 1) == 2**30


@pytest.mark.parametrize(
    "build",
    [
        lambda: Digits(global_batch_size=10**12),
        lambda: Digits(image_size=10**6),
        lambda: Toy2D(n=10**12),
    ],
)
def test_data_that_no_memory_holds_are_refused(build):
    with pytest.raises(InputError, match="and this machine has"):
        build()


def test_what_the_command_line_makes_of_a_network_is_sized(capsys):
    command = ("fit", "--config", DIGITS, "--model.net.channels=60000")
    assert "would take" in fail(capsys, *command)


def test_integers_beyond_31_bits_are_refused_by_name_but_for_seeds_and_versions():
    settings = {"data": {"init_args": {"sizes": [3, 2**31]}}}
    with pytest.raises(InputError, match=r"data\.sizes 2147483648: no size is that large"):
        check_integers(settings)
    check_integers({"trainer": {"logger": [{"init_args": {"version": 202611252246}}]}})
    check_integers({"seed": 2**63, "data": {"seed": 2**40}, "n": 2**31 - 1, "flag": True})
