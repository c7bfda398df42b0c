"""Keyed noise: a function of (seed, stream, index, draw), standard normal over each of them."""

import numpy as np
import pytest
import torch

from ddpm_lightning.randomness import BatchNoise, Draw, IndexedNoise, Stream, step_seed

INDICES = torch.arange(20)


def kurtosis(x):
    return float(((x - x.mean()) / x.std()).pow(4).mean())


def correlation(a, b):
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])


# What a row depends on


@pytest.mark.parametrize("indices", [[5], [5, 0], [19, 7, 5], list(range(20))])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(indices):
    everything = IndexedNoise(0, INDICES)(3, (2, 4))
    assert torch.equal(IndexedNoise(0, torch.tensor(indices))(3, (2, 4)), everything[indices])


@pytest.mark.parametrize("indices", [[5], [5, 0], [19, 7, 5]])
def test_a_rows_uniform_number_does_not_depend_on_the_rest_of_the_batch(indices):
    everything = IndexedNoise(0, INDICES).uniform(3)
    assert torch.equal(IndexedNoise(0, torch.tensor(indices)).uniform(3), everything[indices])


def test_a_row_does_not_depend_on_what_was_drawn_before():
    fresh, used = IndexedNoise(0, INDICES), IndexedNoise(0, INDICES)
    used(1, (7,))
    used.uniform(2)
    assert torch.equal(used(2, (3,)), fresh(2, (3,)))


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


# Distribution


def test_noise_is_standard_normal_within_a_sample():
    x = IndexedNoise(0, torch.tensor([3]))(0, (1, 400, 500)).double()
    assert abs(float(x.mean())) < 5 / 200_000**0.5
    assert float(x.var()) == pytest.approx(1, abs=5 * (2 / 200_000) ** 0.5)
    assert kurtosis(x) == pytest.approx(3, abs=5 * (24 / 200_000) ** 0.5)


def test_noise_is_standard_normal_across_samples_that_each_draw_one_number():
    x = IndexedNoise(0, torch.arange(20_000))(0, (1,)).double()
    assert abs(float(x.mean())) < 5 / 20_000**0.5
    assert float(x.var()) == pytest.approx(1, abs=5 * (2 / 20_000) ** 0.5)
    assert kurtosis(x) == pytest.approx(3, abs=5 * (24 / 20_000) ** 0.5)
    assert abs(correlation(x[:-1], x[1:])) < 5 / 20_000**0.5


def test_uniform_numbers_are_uniform_over_zero_to_one_without_one():
    u = IndexedNoise(0, torch.arange(20_000)).uniform(1)
    assert 0 <= u.min() < u.max() < 1
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50.8  # chi-square, 19 degrees, p = 1e-4
    assert abs(correlation(u[:-1], u[1:])) < 5 / 20_000**0.5


def test_uniform_numbers_of_different_draws_are_unrelated():
    noise = IndexedNoise(0, torch.arange(20_000))
    assert abs(correlation(noise.uniform(1), noise.uniform(2))) < 5 / 20_000**0.5


def test_noise_is_float32_on_the_device_asked_for():
    noise = IndexedNoise(0, INDICES, device="meta")
    for x in (noise(0, (3, 2)), noise.uniform(0)):
        assert (x.dtype, x.device.type, len(x)) == (torch.float32, "meta", 20)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 8, 8), (2, 3, 4, 5)])
def test_noise_has_the_shape_of_the_samples(shape):
    assert IndexedNoise(0, INDICES)(0, shape).shape == (20, *shape)


def test_no_indices_give_an_empty_batch():
    noise = IndexedNoise(0, torch.tensor([], dtype=torch.int64))
    assert noise(0, (3, 2)).shape == (0, 3, 2)
    assert noise.uniform(0).shape == (0,)


# Seeds of steps


def test_step_seeds_of_different_keys_differ():
    keys = [(seed, step, rank) for seed in range(5) for step in range(200) for rank in range(5)]
    assert len({step_seed(*key) for key in keys}) == len(keys)


def test_a_step_seed_is_the_same_every_time():
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**63])
def test_torch_accepts_every_step_seed(seed):
    for step in range(100):
        torch.Generator().manual_seed(step_seed(seed, step))


def test_normal_and_uniform_numbers_of_the_same_draw_are_independent():
    noise = IndexedNoise(0, torch.arange(4000))
    correlation = np.corrcoef(noise(1, (1,)).abs().flatten(), noise.uniform(1))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(4000)


def test_noise_shares_no_number_with_the_order_of_the_data():
    # The order of the data is drawn from Philox keys (seed, purpose) at counter word 2 = 0.
    taken = {tuple(np.random.Philox(key=[5, purpose]).random_raw(4)) for purpose in range(8)}
    for stream in Stream:
        for index in range(8):
            counter = [0, 0, int(stream), 0]
            assert (
                tuple(np.random.Philox(key=[5, index], counter=counter).random_raw(4)) not in taken
            )


def test_what_a_timestep_distribution_draws_does_not_decide_which_labels_are_dropped():
    noise = BatchNoise(0, 5, torch.arange(20_000), 20_000)
    dropped = noise.uniform(Draw.LABEL_DROPOUT) < 0.1
    assert abs(float(dropped.float().mean()) - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    for draw in range(1, 10):
        assert abs(correlation(noise.uniform(draw), dropped.float())) < 5 / 20_000**0.5
