"""Keyed noise: a function of (seed, stream, index, draw), standard normal over each of them."""

import numpy as np
import pytest
import torch

from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import (
    BatchNoise,
    Draw,
    IndexedNoise,
    Stream,
    check_seed,
    step_seed,
)

INDICES = torch.arange(20)


def correlation(a, b):
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])


# What a row depends on


@pytest.mark.parametrize("indices", [[], [5], [5, 0], [19, 7, 5], list(range(20))])
def test_a_row_depends_neither_on_the_rest_of_the_batch_nor_on_what_was_drawn_before(indices):
    fresh, used = IndexedNoise(0, INDICES), IndexedNoise(0, torch.tensor(indices).long())
    used(1, (7,))
    used.uniform(2)
    assert torch.equal(used(3, (2, 4)), fresh(3, (2, 4))[indices])
    assert torch.equal(used.uniform(3), fresh.uniform(3)[indices])


def test_rows_of_a_global_batch_are_keyed_by_step_and_row():
    noise = BatchNoise(0, 5, torch.tensor([2, 3]), 8)
    assert torch.equal(
        noise(0, (3,)), IndexedNoise(0, torch.tensor([42, 43]), Stream.TRAINING)(0, (3,))
    )
    others = (BatchNoise(0, 5, torch.tensor([7]), 8), BatchNoise(0, 6, torch.tensor([2]), 8))
    assert noise.shared(1) == others[0].shared(1) != others[1].shared(1)


def test_the_global_generators_are_neither_used_nor_moved():
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1:3]
        draws.append(IndexedNoise(0, INDICES)(0, (3,)))
        after = torch.get_rng_state(), np.random.get_state()[1:3]
        assert torch.equal(after[0], before[0])
        np.testing.assert_equal(after[1], before[1])
    assert torch.equal(*draws)


N = 100_000
BASE = (0, Stream.SAMPLING, 7, 1)


@pytest.mark.parametrize(
    "other",
    [
        (1, Stream.SAMPLING, 7, 1),
        (0, Stream.TRAINING, 7, 1),
        (0, Stream.VALIDATION, 7, 1),
        (0, Stream.SAMPLING, 8, 1),
        (0, Stream.SAMPLING, 7, 2),
        (7, Stream.SAMPLING, 0, 1),  # seed and index change places
        (0, Stream.TRAINING, 7, 0),  # draw and stream change places
        (2**40, Stream.SAMPLING, 7, 1),
        (0, Stream.SAMPLING, 7 + 2**40, 1),
    ],
    ids=str,
)
def test_noise_of_another_seed_stream_index_or_draw_is_unrelated(other):
    a, b = (
        IndexedNoise(seed, torch.tensor([index]), stream)(draw, (N,))[0]
        for seed, stream, index, draw in (BASE, other)
    )
    assert abs(correlation(a, b)) < 5 / N**0.5
    # Nor are they pieces of one sequence: no pair of neighbours occurs in both.
    pairs = [set(zip(x[:-1].tolist(), x[1:].tolist(), strict=True)) for x in (a, b)]
    assert not pairs[0] & pairs[1]


def test_noise_shares_no_number_with_the_order_of_the_data():
    # The order of the data is drawn from Philox keys (seed, purpose) at counter word 2 = 0.
    def words(key, stream):
        return tuple(np.random.Philox(key=[5, key], counter=[0, 0, stream, 0]).random_raw(4))

    taken = {words(purpose, 0) for purpose in range(8)}
    assert not taken & {words(index, int(stream)) for stream in Stream for index in range(8)}


# Distribution


@pytest.mark.parametrize(
    ("indices", "shape"),
    [(torch.tensor([3]), (1, 400, 500)), (torch.arange(20_000), (1,))],
    ids=["within a sample", "across samples that each draw one number"],
)
def test_noise_is_standard_normal(indices, shape):
    x = IndexedNoise(0, indices)(0, shape).double().flatten()
    n = len(x)
    assert abs(float(x.mean())) < 5 / n**0.5
    assert float(x.var()) == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    kurtosis = float(((x - x.mean()) / x.std()).pow(4).mean())
    assert kurtosis == pytest.approx(3, abs=5 * (24 / n) ** 0.5)
    assert abs(correlation(x[:-1], x[1:])) < 5 / n**0.5


def test_uniform_numbers_are_uniform_over_zero_to_one_and_unrelated_to_any_other():
    noise = IndexedNoise(0, torch.arange(20_000))
    u = noise.uniform(1)
    assert 0 <= u.min() < u.max() < 1
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50.8  # chi-square, 19 degrees, p = 1e-4
    for a, b in ((u[:-1], u[1:]), (u, noise.uniform(2)), (u, noise(1, (1,)).abs())):
        assert abs(correlation(a, b)) < 5 / 20_000**0.5


def test_what_a_timestep_distribution_draws_does_not_decide_which_labels_are_dropped():
    noise = BatchNoise(0, 5, torch.arange(20_000), 20_000)
    dropped = noise.uniform(Draw.LABEL_DROPOUT) < 0.1
    assert abs(float(dropped.float().mean()) - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    for draw in range(1, 10):
        assert abs(correlation(noise.uniform(draw), dropped.float())) < 5 / 20_000**0.5


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 8, 8), (2, 3, 4, 5)])
def test_noise_is_float32_of_the_samples_shape_on_the_device_asked_for(shape):
    noise = IndexedNoise(0, INDICES, device="meta")
    for x, expected in ((noise(0, shape), (20, *shape)), (noise.uniform(0), (20,))):
        assert (x.dtype, x.device.type, x.shape) == (torch.float32, "meta", expected)


# Seeds


def test_step_seeds_of_different_keys_differ_and_are_the_same_every_time():
    keys = [(seed, step, rank) for seed in range(5) for step in range(200) for rank in range(5)]
    seeds = [step_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [step_seed(*key) for key in keys]


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**64 - 1])
def test_torch_and_the_noise_take_every_seed_but_those_out_of_range(seed):
    check_seed(seed)
    IndexedNoise(seed, INDICES)(0, (1,))
    for step in range(100):
        torch.Generator().manual_seed(step_seed(seed, step))
    for refused in (-1, 2**64):
        with pytest.raises(InputError, match="below 2"):
            check_seed(refused)
