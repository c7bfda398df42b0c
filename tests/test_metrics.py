"""What is computed from features, against closed forms and other implementations."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import (
    KID,
    Comparison,
    Features,
    Floor,
    FrechetDistance,
    Inception,
    LeNet,
    Measures,
    Metric,
    Pixels,
    Reference,
    Score,
    Statistics,
    as_metrics,
    extrapolated_frechet,
    frechet_distance,
    inception_score,
    kid,
    manifold,
)
from ddpm_lightning.metrics.frechet import distances_left_out
from ddpm_lightning.metrics.jackknife import shuffled
from ddpm_lightning.metrics.train_lenet import embedded_digits
from tests.small import frechet


def gaussian(n, d, seed, scale=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale


def fd(x, y):
    return frechet_distance(Statistics.of(x), Statistics.of(y))


def plain_jackknife(left_out):
    left_out = np.array(left_out)
    return np.sqrt(19 / 20 * np.square(left_out - left_out.mean()).sum())


def frechet_error(x, reference):
    """As FrechetDistance has it."""
    real = Features(torch.empty(0, x.shape[1]))
    vars(real)["statistics"] = reference
    return FrechetDistance()(Comparison(Features(x), real))["fd"].standard_error


def without_blocks(x, seed):
    for rows in shuffled(len(x), seed).tensor_split(20):
        yield x[torch.from_numpy(np.setdiff1d(np.arange(len(x)), rows.numpy()))]


@pytest.fixture(scope="module")
def digits():
    return embedded_digits()[0]  # uint8 [1797, 1, 8, 8]


# -------------------------------------------------------------------- Fréchet distance


def test_statistics_are_numpys_mean_and_covariance_also_of_the_rest():
    features = gaussian(5000, 6, seed=0) + 100
    whole, x = Statistics.of(features), features.double().numpy()
    for found, rows in ((whole, x), (whole.without(Statistics.of(features[:20])), x[20:])):
        assert found.n == len(rows)
        assert found.mean.dtype == found.cov.dtype == torch.float64
        np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.cov, np.cov(rows.T), rtol=1e-9, atol=1e-9)


def test_frechet_distances_of_features_of_other_lengths_are_refused():
    a, b = torch.randn(40, 3), Statistics.of(torch.randn(40, 4))
    for compare in (
        lambda: frechet_distance(Statistics.of(a), b),
        lambda: distances_left_out(a, b),
    ):
        with pytest.raises(InputError, match=r"length 3 cannot be compared with .* length 4"):
            compare()


def test_frechet_distance_is_the_formula_with_scipys_matrix_root():
    a = gaussian(200, 12, seed=1) @ gaussian(12, 12, seed=2)
    b = gaussian(300, 12, seed=3) @ gaussian(12, 12, seed=4) + 0.5
    assert fd(a, b) == pytest.approx(frechet(a.double().numpy(), b.double().numpy()), rel=1e-9)
    assert fd(a, b) == pytest.approx(fd(b, a))


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_frechet_distance_of_equals_is_zero_and_a_shift_adds_its_square(n):
    statistics = Statistics.of(gaussian(n, 64, seed=5))
    shifted = Statistics(statistics.mean + 2.0, statistics.cov, n)
    assert 0 <= frechet_distance(statistics, statistics) < 1e-10
    assert frechet_distance(statistics, shifted) == pytest.approx(64 * 2.0**2, abs=1e-10)


def test_singular_covariances_give_a_finite_distance():
    few = Statistics.of(gaussian(5, 128, seed=6))
    expected = (few.mean - 1).square().sum() + few.cov.trace()
    assert np.isfinite(frechet_distance(few, Statistics.of(gaussian(7, 128, seed=7))))
    constant = Statistics.of(torch.ones(5, 128))
    assert frechet_distance(few, constant) == pytest.approx(expected.item())


def test_fid_and_kid_are_torchmetrics_of_the_same_features(digits):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Network(torch.nn.Module):
        num_features = 84

        def forward(self, images):
            return LeNet()(images)

    a, b = digits[:200], digits[900:1100]
    fid = FrechetInceptionDistance(Network(), input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    kd = KernelInceptionDistance(Network(), subsets=1, subset_size=200)
    for metric in (fid, kd):
        metric.update(a, real=False)
        metric.update(b, real=True)
    x, y = LeNet()(a), LeNet()(b)
    assert fd(x, y) == pytest.approx(float(fid.compute()), rel=1e-4)
    assert kid(x, y, 1, 200, 0)[0] == pytest.approx(float(kd.compute()[0]), rel=1e-4)


@pytest.mark.slow  # torch-fidelity's eigenvalues of a matrix [2048, 2048] that is not symmetric
@pytest.mark.filterwarnings("ignore:.*not comparable")
def test_fid_kid_and_inception_score_are_those_of_torch_fidelitys_command(inception_file):
    import torch_fidelity

    images = torch.randint(256, (2, 24, 3, 16, 16), dtype=torch.uint8)
    images[1] //= 2
    expected = torch_fidelity.calculate_metrics(
        input1=_Images(images[0]),
        input2=_Images(images[1]),
        feature_extractor_weights_path=str(inception_file),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        isc_splits=3,
        kid_subset_size=10,
        rng_seed=5,
        cache=False,
        verbose=False,
        batch_size=8,
        num_workers=0,
    )
    inception = Inception(weights=str(inception_file))
    a, b = (Features.compute(inception, x, batch_size=7) for x in images)
    found = {
        "frechet_inception_distance": frechet_distance(a.statistics, b.statistics),
        "kernel_inception_distance": kid(a.features, b.features, 100, 10, 5),
        "inception_score": inception_score(a.logits, splits=3, seed=5),
    }
    assert found.pop("frechet_inception_distance") == pytest.approx(
        expected["frechet_inception_distance"], rel=1e-3
    )
    for name, pair in found.items():
        both = expected[f"{name}_mean"], expected[f"{name}_std"]
        assert pair == pytest.approx(both, rel=1e-3)


class _Images(list, torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_extrapolated_distance_is_the_closed_form_and_closer_than_any_sample(shift):
    d = 16
    reference = Statistics(torch.zeros(d).double(), torch.eye(d).double(), 10**9)
    x = 1.2 * gaussian(1200, d, seed=3) + shift
    truth = d * (shift**2 + 0.2**2)
    limit = extrapolated_frechet(x, reference)
    raw = frechet_distance(Statistics.of(x), reference)
    assert limit.settings == {"sizes": [1200, 600, 400]}
    values = limit.parts["values"]
    assert values[0] == pytest.approx(raw)
    assert values[0] < values[1] < values[2]
    assert abs(limit.value - truth) < abs(raw - truth)
    assert abs(limit.value - truth) < 3 * limit.standard_error
    assert 0 < limit.standard_error < 0.2 * max(truth, 0.5)


def test_a_reference_of_features_loses_its_own_bias_too():
    # Both of one distribution: the limit of both ends is 0.
    pairs = [(gaussian(900, 12, seed=2 * i), gaussian(900, 12, seed=2 * i + 1)) for i in range(8)]
    fixed = np.mean([extrapolated_frechet(a, Statistics.of(b)).value for a, b in pairs])
    both = np.mean([extrapolated_frechet(a, b).value for a, b in pairs])
    raw = np.mean([fd(a, b) for a, b in pairs])
    assert abs(both) < 0.2 * raw
    assert fixed == pytest.approx(raw / 2, rel=0.4)  # half of the bias is the reference's


@pytest.mark.slow
def test_standard_errors_are_the_scatter_over_repeated_draws():
    d, repeats = 8, 60
    reference = Statistics(torch.zeros(d).double(), torch.eye(d).double(), 10**9)
    draws = [1.3 * gaussian(600, d, seed=i) + 0.2 for i in range(repeats)]
    distances = [frechet_distance(Statistics.of(x), reference) for x in draws]
    errors = [frechet_error(x, reference) for x in draws]
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.25)
    limits = [extrapolated_frechet(x, reference) for x in draws]
    scatter = np.std([limit.value for limit in limits], ddof=1)
    assert np.mean([limit.standard_error for limit in limits]) == pytest.approx(scatter, rel=0.3)


def test_the_order_of_the_samples_decides_nothing_but_the_cuts():
    # Classes one after the other, as generated: blocks of neighbours would be classes.
    centres = torch.arange(10.0)[:, None].repeat(1, 3)
    x = (centres[:, None] + 0.1 * gaussian(1000, 3, seed=0).view(10, 100, 3)).reshape(-1, 3)
    reference = Statistics.of(x + 1)
    error, other = (frechet_error(rows, reference) for rows in (x, x[shuffled(1000, 1)]))
    assert error == pytest.approx(other, rel=0.5)
    assert extrapolated_frechet(x, reference, seed=1).value == pytest.approx(3.0, abs=0.2)


# ------------------------------------------------------------------ KID, Inception score


def test_subsets_of_kid_are_drawn_by_the_seed():
    from torchmetrics.image.kid import poly_mmd

    x, y = gaussian(90, 20, seed=0).double(), gaussian(70, 20, seed=1, scale=1.3).double()
    rng = np.random.RandomState(4)
    values = []
    for _ in range(6):
        rows = rng.choice(90, 40, replace=False), rng.choice(70, 40, replace=False)
        values.append(poly_mmd(x[rows[0]], y[rows[1]], degree=3, gamma=None, coef=1.0).item())
    mean, std = kid(x.float(), y.float(), 6, 40, 4)
    assert (mean, std) == pytest.approx((np.mean(values), np.std(values)), rel=1e-5)
    assert std > 0


def plain_kid(x, y):
    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    x, y = x.double().numpy(), y.double().numpy()
    within = [k(a, a)[~np.eye(len(a), dtype=bool)].mean() for a in (x, y)]
    return sum(within) - 2 * k(x, y).mean()


def test_kid_of_everything_is_the_formula_and_zero_on_average_for_equals():
    x, y = gaussian(30, 7, seed=0).double(), gaussian(30, 7, seed=1).double() + 1
    mean, std = kid(x, y, 3, 30, 0)
    assert mean == pytest.approx(plain_kid(x, y), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)
    pairs = [(gaussian(100, 4, 2 * i), gaussian(100, 4, 2 * i + 1)) for i in range(40)]
    equals = [kid(*pair, 1, 100, 0)[0] for pair in pairs]
    assert min(equals) < 0 < max(equals)
    assert abs(np.mean(equals)) < 3 * np.std(equals) / 40**0.5


def test_kid_without_each_block_is_kid_of_the_rest_and_errs_by_their_jackknife_and_the_subsets():
    x, y = gaussian(60, 5, seed=0) + 0.3, gaussian(60, 5, seed=1)
    rests = [plain_kid(rest, y) for rest in without_blocks(x, 2)]
    for subset_size in (60, 20):
        score = KID(subset_size, 25)(Comparison(Features(x), Features(y), seed=2))["kid"]
        assert score.left_out == pytest.approx(rests)
        _, std = kid(x, y, 25, subset_size, 2)
        expected = np.hypot(plain_jackknife(rests), std / 5)
        assert score.standard_error == pytest.approx(expected)


def test_inception_score_is_the_formula():
    logits = gaussian(50, 6, seed=0, scale=3.0).double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = [
        np.exp((part * np.log(part / part.mean(axis=0))).sum(axis=1).mean())
        for part in np.split(p, 5)
    ]
    found = inception_score(torch.from_numpy(logits).float(), splits=5, seed=None)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-5)


def test_inception_score_is_of_shuffled_samples_unless_asked_otherwise():
    # A class after the other: without shuffling, each part has one class.
    in_order = 50 * torch.eye(4).repeat_interleave(25, dim=0)
    assert inception_score(in_order, splits=4, seed=None)[0] == pytest.approx(1)
    assert inception_score(in_order, splits=4)[0] > 3


# -------------------------------------------------- precision, recall, density, coverage


def values(found):
    return {name: score.value for name, score in found.items()}


def errors(found):
    return [score.standard_error for score in found.values()]


def plain_manifold(fake, real, k):
    def distances(a, b):
        return np.sqrt(np.square(a[:, None].astype(np.float64) - b[None]).sum(axis=2))

    fake, real = fake.numpy(), real.numpy()
    cross = distances(fake, real)
    # Column 0 is the vector itself.
    fake_radius, real_radius = (np.sort(distances(x, x), axis=1)[:, k] for x in (fake, real))
    return {
        "precision": (cross <= real_radius).any(axis=1).mean(),
        "recall": (cross <= fake_radius[:, None]).any(axis=0).mean(),
        "density": (cross < real_radius).sum() / (k * len(fake)),
        "coverage": (cross.min(axis=0) < real_radius).mean(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("k", "offset"), [(1, 0.0), (3, 0.5), (5, 1000.0)])
def test_manifold_is_the_plain_one_whatever_the_tiles(monkeypatch, k, offset):
    fake, real = gaussian(61, 4, seed=0, scale=0.7) + offset, gaussian(83, 4, seed=1) + offset
    expected = plain_manifold(fake, real, k)
    first = manifold(fake, real, k)
    assert values(first) == pytest.approx(expected)
    module = sys.modules["ddpm_lightning.metrics.manifold"]  # the function has its name
    monkeypatch.setattr(module, "TILE", 2)
    assert values(manifold(fake, real, k, errors=False)) == pytest.approx(expected)
    monkeypatch.setattr(module, "TILE", 9)  # or the twenty jackknife parts take long
    assert values(manifold(fake, real, k)) == pytest.approx(expected)
    assert errors(manifold(fake, real, k)) == pytest.approx(errors(first))
    assert 0 < expected["recall"] < 1


def test_precision_and_recall_are_torch_fidelitys(digits):
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    a, b = LeNet()(digits[:400]), LeNet()(255 - (255 - digits[400:900]) // 2)
    expected = calculate_precision_recall_part(a.double(), b.double(), neighborhood=3)
    shares = values(manifold(a, b, k=3))
    assert (shares["precision"], shares["recall"]) == pytest.approx(expected)


def test_manifolds_errors_are_the_plain_jackknife_the_binomial_and_that_of_a_mean():
    fake, real = gaussian(103, 4, seed=0, scale=0.7), gaussian(83, 4, seed=1)
    found = manifold(fake, real, k=3, seed=4)
    rest = [plain_manifold(part, real, 3) for part in without_blocks(fake, 4)]
    for name in ("recall", "coverage"):
        expected = plain_jackknife([one[name] for one in rest])
        assert found[name].standard_error == pytest.approx(expected)
        assert expected > 0
    p = found["precision"].value
    assert found["precision"].standard_error == pytest.approx((p * (1 - p) / 103) ** 0.5)
    cross, within = torch.cdist(fake, real).numpy(), torch.cdist(real, real).numpy()
    counts = (cross < np.sort(within, axis=1)[:, 3]).sum(1) / 3
    assert found["density"].standard_error == pytest.approx(counts.std(ddof=1) / 103**0.5)


def test_no_jackknife_without_enough_samples_or_without_being_asked():
    few = manifold(gaussian(6, 2, seed=0), gaussian(9, 2, seed=1), k=5)
    assert few["recall"].standard_error is few["coverage"].standard_error is None
    assert errors(manifold(gaussian(50, 2, 0), gaussian(50, 2, 1), errors=False)) == [None] * 4
    limit = extrapolated_frechet(gaussian(200, 3, 0), Statistics.of(gaussian(99, 3, 1)), 0, False)
    assert limit.standard_error is None


@pytest.mark.slow
def test_errors_are_the_scatter_over_repeated_draws_whatever_the_subsets():
    real = gaussian(400, 5, seed=10**6)
    for subset_size in (50, 200):
        draws = [gaussian(200, 5, seed=i, scale=1.1) + 0.4 for i in range(40)]
        metric, y = KID(subset_size, 30), Features(real)
        found = [
            metric(Comparison(Features(x), y, seed=i, errors=i < 12))["kid"]
            for i, x in enumerate(draws)
        ]
        scatter = np.std([score.value for score in found], ddof=1)
        stated = [score.standard_error for score in found[:12]]
        assert np.mean(stated) == pytest.approx(scatter, rel=0.35)
    scores = [inception_score(gaussian(500, 6, seed=i, scale=3.0)) for i in range(60)]
    scatter = np.std([mean for mean, _ in scores], ddof=1)
    assert np.mean([std / 3 for _, std in scores]) == pytest.approx(scatter, rel=0.25)
    shares = [manifold(gaussian(200, 5, seed=i, scale=0.9), real[:200], k=3) for i in range(40)]
    for name, most in (("precision", 1.35), ("density", 1.35), ("recall", 2.5), ("coverage", 2.5)):
        scatter = np.std([one[name].value for one in shares], ddof=1)
        stated = np.mean([one[name].standard_error for one in shares])
        assert 0.7 * scatter < stated < most * scatter, name


# ------------------------------------------------------------------ metrics by name


class Spread(Metric):
    """The standard deviation of all features."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, sets):
        return {self.name: Score(self.factor * float(sets.samples.features.std()))}


class Needy(Spread):
    """Has a setting without a default."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)


def kinds(metrics):
    return [type(metric).__name__ for metric in as_metrics(metrics)]


def test_metrics_are_found_by_short_name_class_and_path():
    assert kinds("fd, fd_inf,kid") == ["FrechetDistance", "ExtrapolatedFrechetDistance", "KID"]
    assert kinds(["is", "PrecisionRecall", "accuracy"])[1:] == ["PrecisionRecall", "Accuracy"]
    assert kinds("swd,ddpm_lightning.metrics.MMD") == ["SlicedWasserstein", "MMD"]
    assert kinds("spread") == kinds("Spread") == kinds([f"{__name__}.Spread"]) == ["Spread"]
    own = KID(subset_size=7)
    assert as_metrics([own, "fd"])[0] is own


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("", "name one or more, each once"),
        (["fd", "FrechetDistance"], "name one or more, each once"),
        ("fdd", "no metric 'fdd'; did you mean fd?"),
        ("sharp", "there are accuracy, "),
        ("my_metric.Sharpness", "cannot import my_metric.Sharpness"),
        ("ddpm_lightning.metrics.LeNet", "is no metric"),
        (f"{__name__}.Needy", "needs settings"),
    ],
)
def test_what_is_no_metric_is_named(metrics, message):
    with pytest.raises(InputError, match=re.escape(message)):
        as_metrics(metrics)


def test_scores_are_named_after_the_extractor_and_as_published_for_inception():
    def names(metrics, extractor):
        x = Features(gaussian(130, 3, 0), gaussian(130, 4, 0))
        labels = torch.zeros(130, dtype=torch.long)
        scores = Measures(as_metrics(metrics), extractor)(x, x, labels, errors=False)
        return {name: score.alias for name, score in scores.items()}

    metrics = ["fd", "fd_inf", "kid", "is", "accuracy", Spread(2.0)]
    assert names(metrics, LeNet()) == {
        "fd_lenet": "fd",
        "fd_lenet_inf": "fd_inf",
        "kd_lenet": "kd",
        "is_lenet": "is",
        "accuracy": "accuracy",
        "spread_lenet": "spread",
    }
    published = ("fid", "fid_inf", "kid", "is", "accuracy", "spread")
    assert names(metrics, Inception("none")) == {name: name for name in published}
    assert names("fd,kid,swd,mmd", None) == {name: name for name in ("fd", "kid", "swd", "mmd")}


def test_a_reference_without_its_features_gives_the_same_distances():
    x, real = Features(gaussian(150, 3, 0)), Features(gaussian(90, 3, 1))
    measures = Measures(as_metrics("fd,fd_inf"))
    assert measures(x, real.summarised()) == measures(x, real)
    assert not measures.needs_pairs
    assert Measures(as_metrics("fd,kid")).needs_pairs


def test_floors_compare_random_real_data_with_all_others_and_leave_out_what_cannot_be():
    real = Features(gaussian(100, 3, 1))
    reference = Reference(Measures(as_metrics(["fd", "fd_inf", KID(60), "pr"])), real, {})
    floors, order = reference.floors(70), shuffled(100, 0)
    distance = fd(real.features[order[:50]], real.features[order[50:]])
    assert floors["fd"] == Floor(distance, 50, 50)
    assert floors.keys() == {"fd", "kid", "precision", "recall", "density", "coverage"}
    assert reference.in_words(70).startswith("50 against the 50 others (fewer than the 70 samples")
    assert reference.in_words(20) == "20 against the 80 others"
    score = reference(Features(gaussian(150, 3, 2)))["fd_inf"]
    assert score.floor is None


# ---------------------------------------------------------------- what cannot be measured


FEW, BROKEN = torch.zeros(3, 4), torch.full((500, 4), float("nan"))
REFERENCE = Statistics.of(gaussian(50, 4, seed=0))


def check(metric, extractor, *sizes):
    Measures(as_metrics([metric]), extractor).check(*sizes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Statistics.of(torch.zeros(1, 4)), "needs 2 or more"),
        (lambda: Statistics.of(BROKEN), "not finite"),
        (lambda: extrapolated_frechet(FEW, REFERENCE), "needs 120 or more"),
        (lambda: extrapolated_frechet(BROKEN, REFERENCE), "not finite"),
        (lambda: extrapolated_frechet(gaussian(500, 4, 0), FEW), "needs 120 or more"),
        (lambda: distances_left_out(FEW, REFERENCE), "needs 40 or more"),
        (lambda: kid(FEW, torch.zeros(3, 5), 1, 2, 0), "same extractor"),
        (lambda: kid(FEW, BROKEN, 1, 50, 0), "needs 50 or more"),
        (lambda: inception_score(FEW), "10 splits needs 10 or more"),
        (lambda: inception_score(BROKEN), "not finite"),
        (lambda: inception_score(2000 * torch.eye(20)), "temperature"),
        (lambda: manifold(FEW, FEW), "needs 6 or more"),
        (lambda: manifold(BROKEN, BROKEN), "not finite"),
        (lambda: check(KID(50), LeNet(), 30), "kid needs 50 or more samples, not 30"),
        (lambda: check(KID(65), LeNet(), 70, 64), "kid needs 65 or more real data, not 64"),
        (lambda: check("is", LeNet(), 9), "is needs 10 or more samples, not 9"),
        (lambda: check("is", Pixels(), 50), "Pixels gives no logits"),
        (lambda: check("accuracy", None, 50), "needs a classifier"),
        (lambda: check("fd_inf", LeNet(), 119), "fd_inf needs 120 or more"),
        (lambda: check("fd", LeNet(), 119, 1), "fd needs 2 or more real data, not 1"),
        (lambda: check("pr", LeNet(), 5), "pr needs 6 or more samples"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_too_few_features_for_their_length_are_warned_about():
    with pytest.warns(UserWarning, match="rough"):
        extrapolated_frechet(gaussian(120, 50, 0), Statistics.of(gaussian(200, 50, 1)))
