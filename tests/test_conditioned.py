"""Images given beside x_t: the pairs, the network's input, sampling and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ddpm_lightning.commands.conditions import psnr
from PIL import Image
from torch import nn

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import GenerativeMetrics, Likelihood, SampleGrid
from ddpm_lightning.cli import main
from ddpm_lightning.commands.analytic_variance import x0_errors
from ddpm_lightning.configurable import build
from ddpm_lightning.data import (
    CIFAR10,
    MNIST,
    Colourisation,
    Conditioned,
    Digits,
    Inpainting,
    SuperResolution,
)
from ddpm_lightning.data.in_memory import RawBatch
from ddpm_lightning.diffusion.denoiser import Denoiser, given, guide
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.parameterizations import EDMPreconditioning, V
from ddpm_lightning.diffusion.samplers import DDIM, DPMSolverPP
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import from_uint8, grid, to_uint8
from ddpm_lightning.metrics import LeNet
from ddpm_lightning.networks.network import Network
from tests.make_data import write_cifar10, write_mnist
from tests.small import randomized, tiny_module, trainer

TASKS = [SuperResolution(2), Inpainting(3)]


def digits(task=TASKS[0], **arguments) -> Conditioned:
    return Conditioned(Digits(**{"global_batch_size": 8, "subset": 64} | arguments), task)


def conditioned_module(task=TASKS[0], **arguments) -> DiffusionModule:
    channels = task.channels((1, 8, 8))
    module = tiny_module(condition_channels=channels, **arguments).eval()
    randomized(module.net)
    module.ema.net.load_state_dict(module.net.state_dict())
    return module


# ---------------------------------------------------------------------------- the pairs


def test_a_small_image_is_the_mean_over_squares_and_as_large_as_the_image(tmp_path):
    images, labels = write_mnist(tmp_path)["test"]
    data = Conditioned(MNIST(root=str(tmp_path), global_batch_size=50), SuperResolution(4))
    (x0, y, condition) = next(iter(data.test_dataloader()))
    assert condition.shape == x0.shape == (50, 1, 28, 28)
    means = images.astype(np.float64).reshape(50, 7, 4, 7, 4).mean(axis=(2, 4))
    expected = np.kron(means, np.ones((4, 4))) / 127.5 - 1
    np.testing.assert_allclose(condition[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(x0[:, 0].numpy(), images / 127.5 - 1, atol=1e-6)
    assert y.tolist() == labels.tolist()


def test_a_grey_image_is_pillows_and_mirrored_with_its_colours(tmp_path):
    write_cifar10(tmp_path)
    data = Conditioned(CIFAR10(root=str(tmp_path), flip=True), Colourisation())
    images, labels = data.samples("test")
    flip = torch.arange(len(images)) % 2 == 0
    x0, _, condition = data.finish(RawBatch(images, labels, flip))
    assert condition.shape == (50, 1, 32, 32)
    for k in range(4):
        rgb = images[k].permute(1, 2, 0).numpy()
        grey = np.asarray(Image.fromarray(rgb).convert("L"), dtype=np.float64)
        grey = grey[:, ::-1] if k % 2 == 0 else grey
        ours = (condition[k, 0].double().numpy() + 1) * 127.5
        assert np.abs(ours - grey).max() <= 1.01  # Pillow's is in whole numbers
    assert torch.equal(x0[1], from_uint8(images[1]))


def test_a_hole_is_a_square_inside_that_depends_on_the_place_alone():
    data = digits(Inpainting(3))
    x0, _, condition = next(iter(data.test_dataloader()))
    hidden, mask = condition[:, :1], condition[:, 1:]
    assert torch.equal(mask.sum((1, 2, 3)), torch.full((len(x0),), 9.0))
    for one in mask[:, 0]:
        rows, columns = one.nonzero(as_tuple=True)
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2
    assert torch.equal(hidden, torch.where(mask > 0, 0.0, x0))
    again = data.task(x0.flip(0), torch.arange(len(x0)).flip(0)).flip(0)
    assert torch.equal(again, condition)


def test_holes_cover_every_place_about_equally_often():
    mask = Inpainting(3)(torch.zeros(3600, 1, 8, 8), torch.arange(3600))[:, 1]
    corners = mask.flatten(1).argmax(1)
    counts = torch.bincount(corners, minlength=64).view(8, 8)[:6, :6]
    assert counts.sum() == 3600
    assert counts.min() >= 90
    assert counts.max() <= 110


def test_training_rows_have_the_hole_of_their_own_image():
    # Shuffled batches of the stream against conditions in the order of the split.
    data = digits(Inpainting(3), subset=16, held_out=0)
    x0_all, _ = data.finished("train")
    conditions = data.conditions("train")
    x0, _, condition = next(iter(data.train_dataloader()))
    for one, its in zip(x0, condition, strict=True):
        row = (x0_all == one).flatten(1).all(1).nonzero()[0, 0]
        assert torch.equal(its, conditions[row])


def test_a_task_that_does_not_fit_the_images_is_refused():
    with pytest.raises(InputError, match="that it divides, not 8×8"):
        digits(SuperResolution(3))
    with pytest.raises(InputError, match="needs RGB images, the data has 1"):
        digits(Colourisation())
    with pytest.raises(InputError, match="larger than the 8×8 images; give 8 or less"):
        digits(Inpainting(9))


@pytest.mark.parametrize("task", TASKS)
def test_the_data_describe_themselves(task):
    rebuilt = build(digits(task).describe())
    assert torch.equal(rebuilt.conditions("val", 5), digits(task).conditions("val", 5))


# ---------------------------------------------------------------------- the denoiser


class Probe(Network):
    """Keeps what it was given and answers the sum over its channels, with classes told apart."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 0.5, in_channels))
        self.seen: list[torch.Tensor] = []

    def forward(self, x, c_noise, y=None):
        self.seen.append(x)
        label = 0.0 if y is None else y[:, None, None, None]
        return torch.einsum("bchw,c->bhw", x, self.weight)[:, None] + 0.01 * label


def probe_denoiser(parameterization) -> Denoiser:
    return Denoiser(Probe(3, 1), Cosine(T=100), parameterization)


def noisy(rows: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, 4, 4, generator=generator)


def test_the_network_sees_scaled_x_t_and_then_the_condition_as_it_is():
    denoiser, x_t, image = probe_denoiser(EDMPreconditioning(0.5)), noisy(5), noisy(5, 2, seed=1)
    given(denoiser, image)(x_t, 60)
    (seen,) = denoiser.net.seen
    c_in = denoiser.parameterization.coefficients(denoiser.schedule, 60, like=x_t).c_in
    assert abs(float(c_in) - 1) > 0.05
    assert torch.allclose(seen[:, :1], c_in * x_t)
    assert torch.equal(seen[:, 1:], image)


def test_guidance_gives_both_halves_the_condition():
    denoiser, x_t, image = probe_denoiser(V()), noisy(3), noisy(3, 2, seed=1)
    y = torch.tensor([0, 1, 2])
    guided = given(guide(denoiser, 3.0), image)(x_t, 60, y).x0
    assert torch.equal(denoiser.net.seen[0][:, 1:], torch.cat([image, image]))
    bound = given(denoiser, image)
    conditional = bound(x_t, 60, y).x0
    null = bound(x_t, 60, torch.full_like(y, -1)).x0
    torch.testing.assert_close(guided, null + 3 * (conditional - null))
    torch.testing.assert_close(guide(bound, 3.0)(x_t, 60, y).x0, guided)


def test_binding_nothing_changes_nothing_and_wrong_numbers_are_refused():
    denoiser = probe_denoiser(V())
    assert given(denoiser, None) is denoiser
    with pytest.raises(InputError, match="2 condition images for a batch of 3"):
        given(denoiser, noisy(2, 2))(noisy(3), 60)
    with pytest.raises(InputError, match="Gaussian takes no condition"):
        given(Gaussian(Linear(), torch.zeros(2), torch.eye(2)), noisy(2))


# ------------------------------------------------------------------------ the module


@pytest.mark.parametrize("sampler", [DDIM(4, eta=1.0), DPMSolverPP(4)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_with_conditions_do_not_depend_on_the_batch_size(sampler, guidance):
    module = conditioned_module(conditional=True)
    condition = digits().conditions("test", 5)
    indices = torch.arange(7)
    options = (indices, sampler, None, guidance, 3, True, condition)
    together = module.generate(*options).x
    apart = module.generate(*options, batch_size=2).x
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=0)
    # Sample 6 is given image 6 mod 5, and the image matters.
    alone = module.generate(indices[6:], sampler, None, guidance, 3, True, condition).x
    torch.testing.assert_close(alone[0], together[6], atol=2e-5, rtol=0)
    other = module.generate(indices[6:], sampler, None, guidance, 3, True, condition[2:3]).x
    assert (other[0] - together[6]).abs().max() > 1e-2


def test_missing_superfluous_and_misshapen_conditions_are_refused():
    module, condition = conditioned_module(), digits().conditions("test", 2)
    with pytest.raises(InputError, match="none are given; give condition images"):
        module.sample(2, DDIM(2))
    with pytest.raises(InputError, match="but the model takes none; leave them out"):
        tiny_module().sample(2, DDIM(2), condition=condition)
    for wrong in (condition[..., :4], condition[:0], condition[0], condition.repeat(1, 2, 1, 1)):
        with pytest.raises(InputError, match=r"takes one or more of \[1, 8, 8\]"):
            module.sample(2, DDIM(2), condition=wrong)


def test_training_batches_without_the_conditions_that_the_model_asks_for_are_refused(tmp_path):
    with pytest.raises(InputError, match="none are given"):
        trainer(tmp_path, 1).fit(conditioned_module(), Digits(global_batch_size=8))
    with pytest.raises(InputError, match="the model takes none"):
        trainer(tmp_path, 1).fit(tiny_module(), digits())


def test_the_error_of_x0_is_measured_with_each_images_own_condition():
    class PassOn(Probe):
        """−condition: x0_hat = alpha·x_t + sigma·condition under V, the condition at t = T."""

        def forward(self, x, c_noise, y=None):
            return -x[:, 1:]

    denoiser, x0 = Denoiser(PassOn(2, 1), Cosine(T=10), V()), noisy(8)
    assert x0_errors(denoiser, x0, None, x0, n=8)[10] < 1e-3
    assert x0_errors(denoiser, x0, None, x0.flip(0), n=8)[10] > 1


@pytest.mark.parametrize("task", TASKS)
def test_a_run_trains_draws_measures_and_its_checkpoint_loads_by_path_alone(task, tmp_path):
    module = conditioned_module(task, conditional=True, schedule=Cosine(T=20))
    data = digits(task, predict_n=3)
    callbacks = [
        SampleGrid(n=6, columns=4, sampler=DDIM(2), frames=2),
        GenerativeMetrics(LeNet(), n=100, sampler=DDIM(1), batch_size=100),
    ]
    run = trainer(tmp_path, 2, callbacks=callbacks, limit_val_batches=1)
    run.fit(module, data)
    assert len(json.loads((tmp_path / "metrics.json").read_text())) == 1
    path = tmp_path / "samples" / "ddim2_ema_step_00000002.png"
    # Below the caption, two rows of 4: condition, sample and truth each.
    picture = torch.from_numpy(np.array(Image.open(path)))[None, 20:]
    x0, y = data.finished("val", 6)
    condition = data.conditions("val", 6)
    samples = module.sample(6, DDIM(2), y.tolist(), condition=condition)
    shown = grid(samples, 4, above=task.shown(condition, (1, 8, 8)), below=x0)
    assert picture.shape[1:3] == (6 * 66 + 2, 4 * 66 + 2)
    assert (picture[..., 0] - shown[:1].int()).abs().max() <= 1

    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = DiffusionModule.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.condition_channels == task.channels((1, 8, 8))
    again = loaded.sample(6, DDIM(2), y.tolist(), condition=condition)
    torch.testing.assert_close(again, samples, atol=1e-6, rtol=0)

    run = trainer(tmp_path, 2, callbacks=[Likelihood(2)], limit_test_batches=1)
    run.test(module, data, verbose=False)
    assert np.isfinite(float(run.callback_metrics["test/bpd"]))
    predicted = trainer(tmp_path, 2).predict(module, data)
    test = data.conditions("test", data.predict_n)
    sampled = module.sample(data.predict_n, seed=module.seed, condition=test)
    torch.testing.assert_close(torch.cat(predicted), sampled, atol=1e-5, rtol=0)


def test_a_checkpoint_from_before_conditions_loads(tmp_path):
    module = tiny_module()
    run = trainer(tmp_path, 1)
    run.fit(module, Digits(global_batch_size=8))
    path = tmp_path / "old.ckpt"
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]["condition_channels"]
    torch.save(checkpoint, path)
    assert DiffusionModule.load_from_checkpoint(path).condition_channels == 0


# -------------------------------------------------------------------- the command line

MNIST_DOWN = str(Path(__file__).parent.parent / "configs" / "mnist_super_resolution.yaml")


@pytest.fixture(scope="module", params=["SuperResolution", "Inpainting"])
def trained(request, tmp_path_factory) -> tuple[str, Path]:
    """A two-step run on 28×28 noise: the task and the folder, which holds data/ and run/."""
    folder = tmp_path_factory.mktemp(request.param)
    write_mnist(folder / "data")
    setting = {"SuperResolution": "factor=4", "Inpainting": "size=10"}[request.param]
    main(
        [
            *["fit", "--config", MNIST_DOWN, f"--data.data.root={folder / 'data'}"],
            *["--data.data.held_out=20", "--data.data.global_batch_size=8"],
            *[f"--data.task={request.param}", f"--data.task.{setting}"],
            *["--model.net.channels=8", "--model.net.groups=4", "--model.schedule.T=20"],
            *["--trainer.max_steps=2", "--trainer.callbacks=[]", "--trainer.accelerator=cpu"],
            *["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1"],
            f"--trainer.default_root_dir={folder / 'run'}",
        ]
    )
    return request.param, folder


def sample(trained: tuple[str, Path], out: Path, *more: str) -> None:
    ckpt = trained[1] / "run" / "checkpoints" / "last.ckpt"
    words = ["sample", "--ckpt", str(ckpt), "--out", str(out), "--n=3", "--sampler=DDIM"]
    main([*words, "--sampler.steps=2", "--columns=3", *more])


def fail(capsys, *args) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        sample(*args)
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_sample_takes_the_first_test_images_and_says_how_near_it_came(trained, tmp_path, capsys):
    _, folder = trained
    sample(trained, tmp_path / "out", f"--data.root={folder / 'data'}")
    picture = np.array(Image.open(tmp_path / "out" / "grid.png"))
    assert picture.shape[:2] == (3 * 58 + 2, 3 * 58 + 2)
    images = MNIST(root=str(folder / "data")).images("test")[0][:3]
    samples = np.stack([np.array(Image.open(tmp_path / "out" / f"{k:06d}.png")) for k in range(3)])
    below = np.concatenate(list(images[:, 0].numpy()), axis=1)
    tiles = [picture[2 + 58 * 2 : 58 * 3 : 2, 2 + 58 * k : 58 * (k + 1) : 2, 0] for k in range(3)]
    assert np.array_equal(np.concatenate(tiles, axis=1), below)
    squared = ((samples - images[:, 0].numpy().astype(float)) / 255) ** 2
    expected = (-10 * np.log10(squared.reshape(3, -1).mean(1))).mean()
    said = capsys.readouterr().out
    assert float(said.split("PSNR ")[1].split(" dB")[0]) == pytest.approx(expected, abs=0.05)


def test_sample_takes_condition_files_and_repeats_them(trained, tmp_path):
    task, _ = trained
    conditions = tmp_path / "conditions"
    conditions.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        if task == "SuperResolution":
            image = Image.fromarray(random.integers(0, 256, (7, 7), dtype=np.uint8))
        else:
            image = np.full((28, 28, 2), 255, dtype=np.uint8)
            image[..., 0] = random.integers(0, 256, (28, 28))
            image[4:9, 5:20, 1] = 0
            image = Image.fromarray(image, "LA")
        image.save(conditions / f"{name}.png")
    sample(trained, tmp_path / "one", f"--condition={conditions}")
    listed = f'--condition=["{conditions / "a.png"}", "{conditions / "b.png"}"]'
    sample(trained, tmp_path / "two", listed)
    picture = (tmp_path / "one" / "grid.png").read_bytes()
    assert picture == (tmp_path / "two" / "grid.png").read_bytes()
    above = np.array(Image.open(tmp_path / "one" / "grid.png"))[2:58:2, :, 0]
    tiles = [above[:, 2 + 58 * k : 58 * (k + 1) : 2] for k in range(3)]
    assert np.array_equal(tiles[0], tiles[2])
    given_image = np.array(Image.open(conditions / "b.png"))
    if task == "SuperResolution":
        assert np.array_equal(tiles[1], np.kron(given_image, np.ones((4, 4))))
    else:
        assert (tiles[1][4:9, 5:20] == 128).all()
        around = given_image[..., 1] > 0
        assert np.array_equal(tiles[1][around], given_image[..., 0][around])


def test_a_conditioned_checkpoint_and_conditions_that_do_not_fit_are_one_line(
    trained, tmp_path, capsys
):
    task, _ = trained
    Image.new("L", (9, 9)).save(tmp_path / "wrong.png")
    out = tmp_path / "out"
    size = {"SuperResolution": "7×7", "Inpainting": "28×28"}[task]
    line = fail(capsys, trained, out, f"--condition={tmp_path / 'wrong.png'}")
    assert f"images of {size} are needed here" in line
    assert "no image at" in fail(capsys, trained, out, "--condition=gone.png")
    (tmp_path / "empty").mkdir()
    assert "holds no PNG" in fail(capsys, trained, out, f"--condition={tmp_path / 'empty'}")
    Image.new("L", (28, 28)).save(tmp_path / "opaque.png")
    edit = ["--edit=SDEdit", f"--edit.image={tmp_path / 'opaque.png'}"]
    assert "an edit gives none beside x_t" in fail(capsys, trained, out, *edit)
    if task == "Inpainting":
        line = fail(capsys, trained, out, f"--condition={tmp_path / 'opaque.png'}")
        assert "no transparent pixel" in line
    assert not out.exists()


def test_a_condition_for_a_model_without_is_one_line(tmp_path, capsys):
    run = trainer(tmp_path / "run", 1)
    run.fit(tiny_module(), Digits(global_batch_size=8))
    run.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    line = fail(capsys, ("", tmp_path), tmp_path / "out", "--condition=a.png")
    assert "makes images out of noise alone; leave out --condition" in line


def test_the_training_noise_of_a_run_does_not_depend_on_the_condition(tmp_path):
    # The condition is a function of x0, so order, levels and noise are those of the plain data.
    plain, conditioned = Digits(global_batch_size=8), digits(subset=1.0)
    for (x0, y), (x0_too, y_too, _) in zip(
        plain.train_dataloader(), conditioned.train_dataloader(), strict=True
    ):
        assert torch.equal(x0, x0_too)
        assert torch.equal(y, y_too)


def test_psnr_is_that_of_numpy():
    a, b = noisy(4).clamp(-1, 1), noisy(4, seed=1).clamp(-1, 1)
    expected = [
        10 * np.log10(4 / np.mean((p - q) ** 2)) for p, q in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert psnr(a, b) == pytest.approx(np.mean(expected), abs=1e-4)


def test_grid_rows_alternate_and_the_last_is_filled_up():
    x = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 2, 2)
    picture = grid(x, columns=3, tile=2, above=-x, below=x)[0]
    values = picture[2::4, 2::4]
    first, second = to_uint8(x[:, 0, 0, 0]), to_uint8(-x[:, 0, 0, 0])
    blank = torch.tensor([64])
    assert torch.equal(values[0], second[:3])
    assert torch.equal(values[1], first[:3])
    assert torch.equal(values[2], first[:3])
    assert torch.equal(values[3], torch.cat([second[3:], blank]))
    assert torch.equal(values[4], torch.cat([first[3:], blank]))
