"""Time to quality: presets, peers, and the bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import rates, time_to_quality
from benchmarks.peers.length import OURS, TIME, length_of
from benchmarks.peers.peer import Peer, after_images, after_seconds, train
from benchmarks.report import machine
from benchmarks.time_to_quality import (
    FASTER,
    PEERS,
    TASKS,
    peer_named,
    report,
)
from ddpm_lightning.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = {"cpu_seconds": 9.0, "distances": {"fd_lenet": 1.0, "fd_colour": 1.0}}
FLOOR = {"fd_lenet": 20.0, "fd_colour": 0.5}


class Recorder(Peer):
    """A peer that keeps what it is given."""

    name = "recorder"
    batch_size = 4

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.progress: list[float] = []

    def step(self, images, progress):
        self.seen.append(images)
        self.progress.append(progress)

    def sample(self, n, seed):
        return torch.zeros(n, 1, 2, 2)


@pytest.mark.parametrize("preset", ["mnist_quick", "cifar10_quick"])
def test_the_rate_of_a_quick_preset_reaches_zero_with_its_last_step(preset):
    settings = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())
    steps, model = settings["trainer"]["max_steps"], settings["model"]
    assert model["warmup_steps"] + model["lr_schedule"]["init_args"]["total_iters"] == steps
    assert settings["grid"]["every_n_steps"] == settings["metrics"]["init_args"]["every_n_steps"]
    assert settings["grid"]["every_n_steps"] == steps


@pytest.mark.parametrize("data", ["MNIST", "CIFAR10"])
def test_other_minutes_are_a_share_of_the_preset(data):
    task = TASKS[data]
    settings = yaml.safe_load(Path(task.config).read_text())
    assert task.steps_of(task.minutes) == settings["trainer"]["max_steps"]
    assert task.steps_of(task.minutes / 2) == round(settings["trainer"]["max_steps"] / 2)


def test_a_peer_is_trained_until_the_time_is_over_on_images_that_are_not_mirrored():
    images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    peer = Recorder()
    trained = train(peer, images, after_seconds(0.05), seed=0)
    assert trained.seconds >= 0.05
    assert trained.images == 4 * len(peer.seen) > 0
    assert peer.progress == sorted(peer.progress)
    assert 0 <= peer.progress[0] <= peer.progress[-1] < 1
    expected = torch.tensor([[[-1.0, 1.0], [-0.6, -0.2]]]).expand(4, 1, 2, 2)
    torch.testing.assert_close(torch.cat(peer.seen), expected.repeat(len(peer.seen), 1, 1, 1))


def test_colour_is_mirrored_where_the_recipe_mirrors():
    peer = Recorder()
    train(
        peer,
        torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 2, 2),
        after_images(64),
        seed=0,
    )
    left = {float(image[0, 0, 0]) for images in peer.seen for image in images}
    assert left == {-1.0, 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_and_draws_samples_in_range(name):
    pytest.importorskip(
        {"diffusers": "diffusers", "lucidrains": "denoising_diffusion_pytorch"}[name]
    )
    torch.manual_seed(0)
    peer = peer_named(name)(1, 8)
    before = [weight.clone() for weight in peer.model.parameters()]
    for _ in range(2):
        peer.step(torch.rand(2, 1, 8, 8) * 2 - 1, 0.5)
    moved = [not torch.equal(a, b) for a, b in zip(before, peer.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    samples = peer.sample(2, seed=1)
    assert samples.shape == (2, 1, 8, 8)
    assert -1 <= float(samples.min()) <= float(samples.max()) <= 1
    torch.testing.assert_close(peer.sample(2, seed=1), samples)


def test_a_peer_is_trained_until_it_has_seen_as_many_images():
    peer = Recorder()
    trained = train(peer, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), after_images(12), seed=0)
    assert trained.images == 12
    assert peer.progress == [0, 1 / 3, 2 / 3]


ELSEWHERE = "Z80; 1 cores with NONE, 1 threads, load average 0"


def shares(share=0.5, where=None):
    return {"diffusers": share, "machine": where or machine()}


def own_run(data="MNIST", where=None):
    images = {"seconds": 100.0, "images": 1000, "machine": where or machine()}
    return {"data": data, "minutes": 7, "who": OURS, "seed": 0, **images}


def wanted(who="diffusers", data="MNIST", seed=0):
    return {"data": data, "minutes": 7, "who": who, "seed": seed}


def test_the_first_seed_of_a_peer_trains_for_the_seconds_that_ours_took():
    length = length_of("diffusers", wanted(), [own_run()], {"MNIST": {"diffusers": 0.5}})
    assert length.progress(50.0, 0) == 0.5


@pytest.mark.parametrize(
    "asked",
    [
        wanted(seed=2),
        wanted(data="FashionMNIST"),
        wanted(data="FashionMNIST", seed=1),
        wanted(who="diffusers, lr 1e-3"),
    ],
    ids=["another seed", "Fashion-MNIST", "another seed of it", "another learning rate"],
)
@pytest.mark.parametrize("where", [machine(), ELSEWHERE], ids=["there", "elsewhere"])
def test_further_runs_of_a_peer_see_as_many_images_as_its_first(asked, where):
    other_minutes = {**wanted(), "minutes": 1, "images": 10}
    runs = [own_run(where=where), other_minutes, {**wanted(), "images": 160}]
    length = length_of("diffusers", asked, runs, {})
    assert length.progress(1e9, 40) == 0.25


@pytest.mark.parametrize("change", [("; ", "; 1"), (" cores", "0 cores")])
def test_on_other_cores_the_first_seed_sees_the_measured_share_of_our_images(change):
    runs = [own_run(where=machine().replace(*change))]
    length = length_of("diffusers", wanted(), runs, {"MNIST": shares()})
    assert length.progress(1e9, 250) == 0.5


def test_shares_of_mnist_hold_for_fashion_mnist():
    runs = [own_run("FashionMNIST", machine().replace("; ", "; 1"))]
    asked = wanted(data="FashionMNIST")
    assert length_of("diffusers", asked, runs, {"MNIST": shares()}).progress(1e9, 250) == 0.5


@pytest.mark.parametrize(
    "rates",
    [{}, {"CIFAR10": shares()}, {"MNIST": shares(where=ELSEWHERE)}],
    ids=["none", "of other data", "of other instructions"],
)
def test_a_first_seed_is_refused_where_nothing_says_how_many_images_it_would_have_seen(rates):
    runs = [own_run(where=machine().replace("; ", "; 1"))]
    with pytest.raises(InputError, match=r"another processor.*benchmarks\.rates.*--out NEW"):
        length_of("diffusers", wanted(), runs, rates)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Results whose runs are made up at once; what was asked of the peers."""
    asked = []
    distances = {"fd_lenet": 1.0, "fd_colour": 1.0}
    run = {"seconds": 9.0, "cpu_seconds": 9.0, "images": 8, "distances": distances}

    def of_peer(name, task, data, length, seed, device):
        asked.append((name, seed, device, length.told))
        return {**run, "length": length.told}

    monkeypatch.setattr(time_to_quality, "ours", lambda *_: run)
    monkeypatch.setattr(time_to_quality, "of_peer", of_peer)
    return tmp_path / "results.json", asked


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["time_to_quality", "--out", *map(str, words)])
    return time_to_quality.main()


@pytest.mark.slow
def test_each_peer_is_timed_once_and_counted_after_that(stored, monkeypatch):
    file, asked = stored
    call(monkeypatch, file, "--seeds", 2)
    counted = [f"images of {peer}, Digits, seed 0" for peer in PEERS]
    first = [(peer, 0, "cpu", TIME) for peer in PEERS]
    faster = [(name, 0, "cpu", told) for name, told in zip(FASTER, counted, strict=True)]
    second = [(peer, 1, "cpu", told) for peer, told in zip(PEERS, counted, strict=True)]
    assert asked == first + faster + second
    assert json.loads(file.read_text())["floors"]["Digits"].keys() == FLOOR.keys()
    call(monkeypatch, file, "--seeds", 2)
    assert len(asked) == 6


def test_a_peer_that_is_timed_is_not_trained_on_a_gpu(stored, monkeypatch):
    with pytest.raises(InputError, match="leave out --device cuda"):
        call(monkeypatch, stored[0], "--device", "cuda")


@pytest.mark.slow
def test_print_trains_nothing(stored, monkeypatch, capsys):
    file, asked = stored
    with pytest.raises(InputError, match=r"no run on Digits, 0\.25 minutes"):
        call(monkeypatch, file, "--print")
    monkeypatch.setattr(time_to_quality, "judge_of", lambda *_: pytest.fail("data are read"))
    run = {**own_run("Digits"), "minutes": 0.25, **RUN}
    file.write_text(json.dumps({"floors": {"Digits": FLOOR}, "runs": [run]}))
    assert call(monkeypatch, file, "--print") == 1
    assert asked == []
    assert (
        "| diffusers over ours, fd_lenet | FAILED: not trained yet | | |"
        in capsys.readouterr().out
    )


def test_shares_are_images_of_the_peer_over_ours(monkeypatch, tmp_path):
    speeds = {"ours": 100.0, "diffusers": 20.0, "lucidrains": 10.0}
    monkeypatch.setattr(rates, "speed_of_ours", lambda *_: speeds["ours"])
    monkeypatch.setattr(rates, "peer_named", lambda name: lambda *_: name)
    monkeypatch.setattr(rates, "speed_of_peer", lambda peer, *_: speeds[peer])
    monkeypatch.setattr("sys.argv", ["rates", "--rounds", "2", "--out", str(tmp_path / "r.json")])
    assert rates.main() == 0
    written = json.loads((tmp_path / "r.json").read_text())["Digits"]
    assert written == {"diffusers": 0.2, "lucidrains": 0.1, "machine": written["machine"]}


def test_the_rate_of_ours_is_that_of_its_training_clock(monkeypatch):
    took = iter([2.0, 1.0, 10.0])
    asked = []

    def fit(trial, folder, steps, callbacks):
        asked.append(steps)
        file = callbacks[0]["init_args"]["file"]
        Path(file).write_text(json.dumps({"seconds": next(took)}))

    monkeypatch.setattr(rates.Trial, "fit", fit)
    speed = rates.speed_of_ours(TASKS["MNIST"], rates.Data(), seconds=12)
    assert asked == [8, 48, 384]  # as long as was asked for, at most eight times the last
    assert speed == 64 * 384 / 10


@pytest.mark.parametrize(
    ("lenet", "colour", "code"),
    [
        ({OURS: 50.0, "diffusers": 600.0, "lucidrains": 501.0}, {}, 0),
        ({OURS: 50.0, "diffusers": 600.0, "lucidrains": 501.0, next(iter(FASTER)): 90.0}, {}, 0),
        ({OURS: 50.0, "diffusers": 600.0, "lucidrains": 499.0}, {}, 1),
        ({OURS: 61.0, "diffusers": 900.0, "lucidrains": 900.0}, {}, 1),
        ({OURS: 50.0, "diffusers": 600.0, "lucidrains": 501.0}, {"lucidrains": 0.9}, 1),
    ],
    ids=[
        "holds",
        "whatever a faster peer does",
        "a peer is near",
        "far above the floor",
        "the other extractor disagrees",
    ],
)
def test_the_bounds_are_ten_times_lower_and_three_floors_and_one_order(
    lenet, colour, code, capsys
):
    runs = [
        {
            "who": who,
            "seed": 0,
            "seconds": 420.0,
            "cpu_seconds": 800.0,
            "images": 1000,
            "distances": {"fd_lenet": value, "fd_colour": colour.get(who, value / 50)},
        }
        for who, value in lenet.items()
    ]
    assert report(runs, TASKS["MNIST"], FLOOR, "MNIST").finish() == code
