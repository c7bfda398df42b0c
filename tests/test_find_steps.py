"""The find_steps command, its search, and sampling at the levels that it has found."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.cli import main
from ddpm_lightning.commands.tried_levels import TriedLevels
from ddpm_lightning.configurable import build
from ddpm_lightning.diffusion import Cosine, Linear
from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    AdaptiveODE,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    Levels,
    OptimizedSpacing,
    PredictorCorrector,
    UniPC,
)
from ddpm_lightning.diffusion.samplers.optimized import settings_of
from ddpm_lightning.diffusion.step_search import (
    FIXED,
    Found,
    descend,
    distance,
    distance_from_many,
    find_levels,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import json_value
from ddpm_lightning.metrics.frechet import frechet_distance
from ddpm_lightning.metrics.statistics import Statistics
from tests.core import named
from tests.test_cli import tiny_run

VARIANCES = torch.tensor([4.0, 1.0, 0.1, 0.01], dtype=torch.float64)
LEVELS = [40, 25, 8, 0]


def noise(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def from_many(sampler, oracle, x_T):
    return distance_from_many(sampler, oracle.schedule, lambda one: one(oracle, x_T))


def distances_on_fresh_noise(found, sampler, oracle, x_T, exact):
    """Distance from the exact samples: at the levels found, and the least of fixed spacings."""
    at_found = sampler.replace(spacing=Levels(found.levels))(oracle, x_T)
    fixed = [sampler.replace(spacing=one)(oracle, x_T) for one in FIXED]
    return distance(at_found, exact), min(distance(x, exact) for x in fixed)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DDIM(5), DDIM(10), DPMSolverPP(8), Heun(5)], ids=named)
@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=lambda one: type(one).__name__)
def test_on_normal_data_the_levels_found_beat_every_fixed_spacing_against_the_exact_solution(
    sampler, schedule
):
    oracle = Gaussian(schedule, torch.zeros(4), VARIANCES.diag())
    seen, fresh = noise(64, 4, seed=0), noise(256, 4, seed=1)
    found = find_levels(sampler, schedule, from_many(sampler, oracle, seen))
    last = float(schedule.alpha[-1]) ** 2 * VARIANCES + float(schedule.sigma[-1]) ** 2
    exact = (VARIANCES / last).sqrt() * fresh  # the flow keeps each coordinate's quantile
    ours, best_fixed = distances_on_fresh_noise(found, sampler, oracle, fresh, exact)
    assert ours < best_fixed


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DDIM(5), UniPC(8)], ids=named)
def test_on_a_mixture_they_do_so_too(sampler):
    schedule = Cosine()
    oracle = Mixture(schedule, noise(6, 8, seed=2), torch.full((6,), 0.01))
    seen, fresh = noise(256, 8, seed=0), noise(500, 8, seed=1)
    found = find_levels(sampler, schedule, from_many(sampler, oracle, seen))
    exact = Heun(200)(oracle, fresh)
    ours, best_fixed = distances_on_fresh_noise(found, sampler, oracle, fresh, exact)
    assert ours < best_fixed


@pytest.mark.parametrize("sampler", [DDIM(5), UniPC(4)], ids=named)
def test_the_levels_of_least_frechet_distance_have_the_least_on_fresh_noise_too(sampler):
    oracle = Gaussian(Cosine(), torch.zeros(4), VARIANCES.diag())
    data = Statistics(torch.zeros(4).double(), VARIANCES.diag(), 1000)

    def error(one, x_T):
        return frechet_distance(Statistics.of(one(oracle, x_T)), data)

    seen, fresh = noise(1000, 4, seed=0), noise(1000, 4, seed=1)
    found = find_levels(sampler, oracle.schedule, lambda one: error(one, seen))
    fixed = [error(sampler.replace(spacing=one), fresh) for one in FIXED]
    assert error(sampler.replace(spacing=Levels(found.levels)), fresh) < min(fixed)


def test_the_levels_found_are_the_best_of_those_tried():
    tried = {}

    def error(sampler):
        levels = tuple(sampler.levels(Cosine()))
        tried[levels] = 1 + 1e-5 * abs(levels[1] - 612)
        return tried[levels]

    found = find_levels(DDIM(2), Cosine(), error, gain=0.5)  # for which no level is moved
    assert tried[tuple(found.levels)] == found.error == min(tried.values())
    assert found.error < min(found.fixed.values())


def test_the_error_found_is_never_above_that_of_a_fixed_spacing():
    oracle = Gaussian(Cosine(40), torch.zeros(4), VARIANCES.diag())
    x_T = noise(8, 4, seed=0)
    found = find_levels(DDIM(30), oracle.schedule, from_many(DDIM(30), oracle, x_T))
    assert found.error <= min(found.fixed.values())
    assert found.levels[0] == 40
    assert found.levels[-1] == 0
    assert all(t > s for t, s in pairwise(found.levels))


def test_the_search_comes_to_the_least_of_a_convex_error():
    wanted = [1000, 700, 333, 20, 0]
    found = descend(
        [1000, 750, 500, 250, 0],
        lambda levels: sum(abs(a - b) for a, b in zip(levels, wanted, strict=True)),
    )
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 20


def test_a_level_moves_only_for_the_gain_that_is_asked():
    start = [100, 50, 0]

    def error(levels):
        return 1 + 1e-4 * abs(levels[1] - 75)  # a quarter of a per cent is to be had

    assert descend(start, error, gain=1e-2) == start
    assert descend(start, error, gain=1e-3) == [100, 75, 0]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (DDPM(8), "adds noise at its steps"),
        (DDIM(8, eta=0.5), "adds noise at its steps"),
        (Euler(8, churn=40.0), "adds noise at its steps"),
        (DPMSolverPPSDE(8), "adds noise at its steps"),
        (PredictorCorrector(8), "adds noise at its steps"),
        (AdaptiveODE(8), "chooses its own levels"),
        (DDIM(None), "has no level to place"),
        (DDIM(1), "has no level to place"),
    ],
    ids=named,
)
def test_samplers_without_steps_to_place_are_refused_before_a_sample_is_drawn(sampler, message):
    with pytest.raises(InputError, match=message):
        find_levels(sampler, Cosine(), pytest.fail)


# The spacing


def table(sampler=DDIM(3), schedule=Cosine(40)) -> dict:
    return {
        "levels": LEVELS,
        "sampler": settings_of(sampler),
        "schedule": json_value(schedule.describe()),
    }


@pytest.mark.parametrize("sampler", [DDIM(3), Euler(3), UniPC(3, clip=(-1.0, 1.0))], ids=named)
def test_a_sampler_walks_the_levels_of_the_file(sampler, tmp_path):
    path = tmp_path / "levels.json"
    path.write_text(json.dumps(table(sampler)))
    with_file = sampler.replace(spacing=OptimizedSpacing(str(path)))
    assert with_file.levels(Cosine(40)) == LEVELS
    path.unlink()
    assert build(with_file.describe()).levels(Cosine(40)) == LEVELS


@pytest.mark.parametrize(
    ("sampler", "schedule", "message"),
    [
        (UniPC(3), Cosine(40), r"found for DDIM\(eta=0.0\), not for UniPC"),
        (DDIM(3, eta=0.5), Cosine(40), r"not for DDIM\(eta=0.5\)"),
        (DDIM(3), Cosine(50), "not for Cosine.T=50"),
        (DDIM(3), Linear(40), "not for Linear"),
        (DDIM(4), Cosine(40), "found for 3 steps, not for 4; give --sampler.steps 3"),
    ],
)
def test_levels_of_another_sampler_schedule_or_number_are_refused(sampler, schedule, message):
    with pytest.raises(InputError, match=message):
        sampler.replace(spacing=OptimizedSpacing(table())).levels(schedule)


@pytest.mark.parametrize(
    "text", ["", "[3, 0]", "{}", '{"levels": [3, 0], "sampler": 1, "schedule": {}}']
)
def test_a_file_that_holds_something_else_is_refused(text, tmp_path):
    path = tmp_path / "levels.json"
    path.write_text(text)
    with pytest.raises(InputError, match="OptimizedSpacing"):
        OptimizedSpacing(str(path))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("levels", [float("inf"), 0]),
        ("levels", [100.9, 50.7, "10", False]),
        ("levels", [40, 25, 8, False]),
        ("levels", "40"),
        ("levels", {"40": 0}),
        *(
            (entry, part)
            for entry in ("sampler", "schedule")
            for part in (
                {"class_path": "DDIM"},
                {"init_args": {}},
                {"class_path": "DDIM", "init_args": []},
                {"class_path": 5, "init_args": {}},
                [],
            )
        ),
    ],
)
def test_a_table_of_other_types_is_refused(entry, value):
    with pytest.raises(InputError, match="holds no levels with their sampler and schedule"):
        OptimizedSpacing(table() | {entry: value})


def test_a_missing_file_is_told_with_the_command_that_makes_it():
    with pytest.raises(InputError, match=r"no file gone.json; .* find_steps --ckpt"):
        OptimizedSpacing("gone.json")


# The command


@pytest.fixture(scope="module")
def found(lively_checkpoint, tmp_path_factory):
    """A checkpoint, and the file of levels beside it."""
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path_factory.mktemp("found")))
    main(["find_steps", f"--ckpt={checkpoint}", "--n=2", "--sampler=DDIM", "--sampler.steps=2"])
    return checkpoint, checkpoint.with_suffix(".ddim2_ema.json")


def test_samples_at_the_levels_found_are_those_at_the_levels_in_the_file(found, tmp_path):
    checkpoint, path = found
    draw = ["sample", f"--ckpt={checkpoint}", "--n=1", "--sampler=DDIM"]
    optimized = "--sampler.spacing=OptimizedSpacing", f"--sampler.spacing.table={path}"
    main([*draw, f"--out={tmp_path / 'a'}", "--sampler.steps=2", *optimized])
    levels = json.loads(path.read_text())["levels"]
    stated = "--sampler.spacing=Levels", f"--sampler.spacing.levels={levels}"
    main([*draw, f"--out={tmp_path / 'b'}", "--sampler.steps=2", *stated])
    images = [(tmp_path / name / "000000.png").read_bytes() for name in "ab"]
    pixels = [data[data.index(b"IDAT") :] for data in images]  # behind what says how it was made
    assert pixels[0] == pixels[1]
    # The same command goes on with the folder's own record of the settings.
    main([*draw, f"--out={tmp_path / 'a'}", "--sampler.steps=2", *optimized])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 3])
def test_the_distance_from_the_data_is_what_evaluate_finds_at_the_levels(
    seed, lively_checkpoint, tmp_path
):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    asked = [f"--ckpt={checkpoint}", "--n=100", "--sampler=DDIM", "--sampler.steps=2"]
    given = [] if seed is None else [f"--seed={seed}"]
    main(["find_steps", *asked, *given, "--goal=data"])
    found = json.loads(checkpoint.with_suffix(".ddim2_ema_data.json").read_text())
    at_them = "--sampler.spacing=Levels", f"--sampler.spacing.levels={found['levels']}"
    out = f"--out={tmp_path / 'scores'}"
    main(["evaluate", *asked, f"--seed={found['seed']}", *at_them, out])
    (record,) = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert found["distance_is"] == f"{record['metric']} to the training images"
    assert found["distance"] == pytest.approx(record["value"])


@pytest.mark.slow
def test_a_second_search_finds_the_same(found):
    checkpoint, path = found
    before = path.read_bytes()
    path.unlink()
    main(["find_steps", f"--ckpt={checkpoint}", "--n=2", "--sampler=DDIM", "--sampler.steps=2"])
    assert path.read_bytes() == before


@pytest.fixture
def drawn(monkeypatch):
    """The spacings of which samples were drawn; the seventh draw is stopped by Ctrl-C."""
    spacings, generate = [], DiffusionModule.generate

    def draw(self, indices, request, *args):
        spacings.append(request.sampler.spacing.describe())
        if len(spacings) == 7:
            raise KeyboardInterrupt
        return generate(self, indices, request, *args)

    monkeypatch.setattr(DiffusionModule, "generate", draw)
    return spacings


@pytest.fixture
def stopped(lively_checkpoint, tmp_path, drawn):
    """The words of a search that was stopped at its seventh draw."""
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    words = ["find_steps", f"--ckpt={checkpoint}", "--n=2", "--sampler=DDIM", "--sampler.steps=2"]
    with pytest.raises(SystemExit):
        main(words)
    return words


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_and_finds_the_same(stopped, drawn, tmp_path):
    main(stopped)
    in_two, tries = (tmp_path / "last.ddim2_ema.json").read_bytes(), len(drawn)
    assert not (tmp_path / "last.ddim2_ema.tried.json").exists()
    (tmp_path / "last.ddim2_ema.json").unlink()
    main(stopped)
    assert (tmp_path / "last.ddim2_ema.json").read_bytes() == in_two
    # The stopped draw, and that of many steps, are what going on repeats.
    assert len(drawn) - tries == tries - 2


def test_a_search_that_was_stopped_is_not_mixed_with_another(stopped, drawn, capsys):
    with pytest.raises(SystemExit):
        main([*stopped, "--seed=3"])
    message = capsys.readouterr().err
    assert "last.ddim2_ema.tried.json is of a stopped search with another seed" in message
    assert len(drawn) == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"settings": {}}',
        '{"settings": {}, "tries": [1]}',
        '{"settings": {}, "tries": [[[3, 0], NaN]]}',
        '{"settings": {}, "tries": [[[Infinity, 0], 1.0]]}',
    ],
)
def test_a_damaged_file_of_tries_is_refused(text, tmp_path):
    path = tmp_path / "last.tried.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"last\.tried\.json is damaged"):
        TriedLevels(lambda sampler: 0.0, Cosine(40), path, {})


@pytest.mark.slow
def test_a_search_by_the_data_that_was_stopped_goes_on_without_drawing_again(
    lively_checkpoint, tmp_path, drawn
):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    words = ["find_steps", f"--ckpt={checkpoint}", "--n=100", "--goal=data", "--sampler=DDIM"]
    with pytest.raises(SystemExit):
        main([*words, "--sampler.steps=2"])
    main([*words, "--sampler.steps=2"])
    assert not [one for one in drawn[:6] if one in drawn[6:]]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [([], 1e-3), (["--goal=data"], 1e-2), (["--goal=data", "--gain=0.002"], 2e-3)],
)
def test_a_level_moves_for_the_gain_of_the_goal_or_the_one_given(
    flags, wanted, lively_checkpoint, tmp_path, monkeypatch
):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    seen = []

    def find(sampler, schedule, error, gain, progress):
        seen.append(gain)
        return Found([40, 20, 0], 1.0, {})

    monkeypatch.setattr("ddpm_lightning.commands.find_steps.find_levels", find)
    words = [f"--ckpt={checkpoint}", "--n=100", "--sampler=DDIM", "--sampler.steps=2"]
    main(["find_steps", *words, *flags])
    assert seen == [wanted]


def test_levels_that_were_found_before_are_not_overwritten(found, capsys):
    checkpoint, path = found
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        main(["find_steps", f"--ckpt={checkpoint}", "--sampler=DDIM", "--sampler.steps=2"])
    assert f"{path} holds levels that were found before; move it away" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "DDPM adds noise"),
        (["--sampler=DDIM", "--sampler.steps=4", "--guidance=2", "--n=0"], "n=0"),
        (
            ["--sampler=DDIM", "--sampler.steps=2", "--extractor=LeNet"],
            "or leave --extractor out",
        ),
        (["--sampler=DDIM", "--sampler.steps=2", "--goal=data", "--n=1"], "n is at least 2"),
        (["--sampler=DDIM", "--sampler.steps=2", "--gain=-0.1"], "gain"),
        (["--sampler=DDIM", "--sampler.steps=41"], "41 sampling steps; this model takes 1 to 40"),
    ],
)
def test_a_mistake_is_one_line(lively_checkpoint, flags, message, capsys):
    with pytest.raises(SystemExit):
        main(["find_steps", f"--ckpt={lively_checkpoint}", *flags])
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]


@pytest.mark.slow
def test_a_run_that_names_the_file_in_its_config_goes_on(tmp_path):
    path, run = tmp_path / "levels.json", tmp_path / "run"
    levels = {"levels": [1000, 500, 10, 0]}
    path.write_text(json.dumps(table(DDIM(3), Cosine(1000)) | levels))
    spacing = {"class_path": "OptimizedSpacing", "init_args": {"table": str(path)}}
    sampler = {"class_path": "DDIM", "init_args": {"steps": 3, "spacing": spacing}}
    grid = json.dumps({"class_path": "SampleGrid", "init_args": {"n": 1, "sampler": sampler}})
    main(["fit", *tiny_run(run, f"--trainer.callbacks=[{grid}]", max_steps=1)])
    last = run / "checkpoints" / "last.ckpt"
    main(["fit", f"--ckpt_path={last}", "--trainer.max_steps=2"])
    assert torch.load(last, weights_only=True)["global_step"] == 2
