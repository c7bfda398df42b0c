"""Images given beside x_t: the pairs, the network's input, training, and the sample command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.callbacks import GenerativeMetrics, Likelihood, SampleGrid
from ddpm_lightning.commands.analytic_variance import x0_errors
from ddpm_lightning.commands.edits import SDEdit
from ddpm_lightning.commands.sample import Overview
from ddpm_lightning.commands.sample import sample as sample_command
from ddpm_lightning.configurable import build
from ddpm_lightning.data import (
    CIFAR10,
    MNIST,
    Colourisation,
    Conditioned,
    Inpainting,
    SuperResolution,
)
from ddpm_lightning.data.data_module import RawBatch
from ddpm_lightning.diffusion import Cosine, EDMPreconditioning, V
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import from_uint8, grid, to_uint8
from ddpm_lightning.loaded import DataPlace
from ddpm_lightning.metrics import LeNet
from ddpm_lightning.networks import Network
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.sampling import Request
from tests.make_data import write_cifar10, write_mnist
from tests.small import fit, randomized, tiny_data, tiny_module, trainer

TASKS = [SuperResolution(2), Inpainting(3)]


def digits(task=TASKS[0], **arguments) -> Conditioned:
    return Conditioned(tiny_data(**arguments), task)


def images_of(data: Conditioned, n: int, split="test") -> Condition:
    """The first condition images of a split, without their labels."""
    return Condition(image=data.finished(split, n).condition.image)


def conditioned_module(task=TASKS[0], **arguments) -> DiffusionModule:
    module = tiny_module(data=digits(task).spec, **arguments).eval()
    randomized(module.net)
    module.ema.net.load_state_dict(module.net.state_dict())
    return module


# ---------------------------------------------------------------------------- the pairs


def test_a_small_image_is_the_mean_over_squares_and_as_large_as_the_image(tmp_path):
    images, labels = write_mnist(tmp_path)["test"]
    data = Conditioned(MNIST(root=str(tmp_path), global_batch_size=50), SuperResolution(4))
    batch = next(iter(data.test_dataloader()))
    condition = batch.condition
    assert condition.image.shape == batch.x0.shape == (50, 1, 28, 28)
    means = images.astype(np.float64).reshape(50, 7, 4, 7, 4).mean(axis=(2, 4))
    expected = np.kron(means, np.ones((4, 4))) / 127.5 - 1
    np.testing.assert_allclose(condition.image[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(batch.x0[:, 0].numpy(), images / 127.5 - 1, atol=1e-6)
    assert condition.label.tolist() == labels.tolist()


def test_a_grey_image_is_pillows_and_mirrored_with_its_colours(tmp_path):
    write_cifar10(tmp_path)
    data = Conditioned(CIFAR10(root=str(tmp_path), flip=True), Colourisation())
    images, labels = data.data.samples("test")
    index = torch.arange(len(images))
    batch = data.finish(RawBatch(images, labels, index, index % 2 == 0))
    assert batch.condition.image.shape == (50, 1, 32, 32)
    for k in range(4):
        rgb = images[k].permute(1, 2, 0).numpy()
        grey = np.asarray(Image.fromarray(rgb).convert("L"), dtype=np.float64)
        grey = grey[:, ::-1] if k % 2 == 0 else grey
        ours = (batch.condition.image[k, 0].double().numpy() + 1) * 127.5
        assert np.abs(ours - grey).max() <= 1.01  # Pillow's is in whole numbers
    assert torch.equal(batch.x0[1], from_uint8(images[1]))


def test_a_hole_is_a_square_inside_that_depends_on_the_place_alone():
    data = digits(Inpainting(3))
    batch = next(iter(data.test_dataloader()))
    hidden, mask = batch.condition.image.split(1, dim=1)
    assert torch.equal(mask.sum((1, 2, 3)), torch.full((len(mask),), 9.0))
    for one in mask[:, 0]:
        rows, columns = one.nonzero(as_tuple=True)
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2
    assert torch.equal(hidden, torch.where(mask > 0, 0.0, batch.x0))
    again = data.task(batch.x0.flip(0), batch.index.flip(0)).flip(0)
    assert torch.equal(again, batch.condition.image)


def test_holes_cover_every_place_about_equally_often():
    mask = Inpainting(3)(torch.zeros(3600, 1, 8, 8), torch.arange(3600))[:, 1]
    corners = mask.flatten(1).argmax(1)
    counts = torch.bincount(corners, minlength=64).view(8, 8)[:6, :6]
    assert counts.sum() == 3600
    assert counts.min() >= 90
    assert counts.max() <= 110


def test_training_rows_are_those_of_the_plain_data_with_the_hole_of_their_own_image():
    plain, data = tiny_data(flip=True), digits(Inpainting(3), flip=True)
    whole = data.finished("train")
    for ours, theirs in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(ours.x0, theirs.x0)
        assert torch.equal(ours.condition.label, theirs.condition.label)
        assert torch.equal(ours.row, theirs.row)
        assert torch.equal(ours.condition.image[:, 1], whole.condition.image[ours.index, 1])


@pytest.mark.parametrize("task", TASKS)
def test_the_data_describe_themselves(task):
    rebuilt, data = build(digits(task).describe()), digits(task)
    assert rebuilt.spec == data.spec
    assert data.spec.image_channels == task.channels(data.shape)
    assert torch.equal(images_of(rebuilt, 5, "val").image, images_of(data, 5, "val").image)


# ---------------------------------------------------------------------- the denoiser


class Probe(Network):
    """Keeps what it was given and answers the sum over its channels, with classes told apart."""

    def __init__(self, data: DataSpec, out_channels: int = 1):
        super().__init__()
        self.data = data
        self.weight = nn.Parameter(torch.linspace(0.1, 0.5, self.in_channels))
        self.seen: list[torch.Tensor] = []

    def forward(self, x, c_noise, condition=Condition()):
        stacked = self.stack_image(x, condition)
        self.seen.append(stacked)
        label = 0.0 if condition.label is None else condition.label[:, None, None, None]
        return torch.einsum("bchw,c->bhw", stacked, self.weight)[:, None] + 0.01 * label


def noisy(rows: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, 4, 4, generator=generator)


def test_both_halves_of_guidance_see_scaled_x_t_and_then_the_image_as_it_is():
    net = Probe(DataSpec((1, 4, 4), num_classes=3, image_channels=2))
    denoiser = Denoiser(net, Cosine(T=100), EDMPreconditioning(0.5))
    x_t, image = noisy(5), noisy(5, 2, seed=1)
    guide(denoiser, 3.0)(x_t, 60, Condition(torch.arange(5) % 3, image=image))
    seen = denoiser.net.seen[0]
    alpha, sigma = float(denoiser.schedule.alpha[60]), float(denoiser.schedule.sigma[60])
    c_in = 1 / np.sqrt(alpha**2 * 0.5**2 + sigma**2)
    assert abs(c_in - 1) > 0.05
    torch.testing.assert_close(seen[:, :1], c_in * torch.cat([x_t, x_t]))
    assert torch.equal(seen[:, 1:], torch.cat([image, image]))


def test_the_error_of_x0_is_measured_with_each_images_own_condition():
    class PassOn(Probe):
        """−condition: x0_hat = alpha·x_t + sigma·condition under V, the condition at t = T."""

        def forward(self, x, c_noise, condition=Condition()):
            return -condition.image

    net, x0 = PassOn(DataSpec((1, 4, 4), image_channels=1)), noisy(8)
    denoiser = Denoiser(net, Cosine(T=10), V())
    assert x0_errors(denoiser, x0, Condition(image=x0), n=8)[10] < 1e-3
    assert x0_errors(denoiser, x0, Condition(image=x0.flip(0)), n=8)[10] > 1


# ------------------------------------------------------------------------ the module


def test_samples_with_conditions_do_not_depend_on_the_batch_size():
    module, given = conditioned_module(conditional=True), images_of(digits(), 5)
    request = Request(DDIM(4, eta=1.0), guidance=2.0, seed=3)

    def draw(indices=torch.arange(7), request=request, given=given):
        return module.generate(indices, request, given).x

    together, apart = draw(), draw(request=request.replace(batch_size=2))
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=0)
    # Sample 6 is given image 6 mod 5, and the image matters.
    torch.testing.assert_close(draw(torch.tensor([6]))[0], together[6], atol=2e-5, rtol=0)
    other = draw(torch.tensor([6]), given=given.rows(slice(2, 3)))
    assert (other[0] - together[6]).abs().max() > 1e-2


def sampled_with(image):
    return lambda _: conditioned_module().sample(2, DDIM(2), condition=Condition(image=image))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda _: digits(SuperResolution(3)), "that it divides, not 8×8"),
        (lambda _: digits(Colourisation()), "needs RGB images, the data has 1"),
        (lambda _: digits(Inpainting(9)), "larger than the 8×8 images; give 8 or less"),
        (sampled_with(None), "none are given; give condition images"),
        (sampled_with(torch.zeros(2, 1, 8, 4)), r"takes one or more of \[1, 8, 8\]"),
        (sampled_with(torch.zeros(0, 1, 8, 8)), r"takes one or more of \[1, 8, 8\]"),
        (sampled_with(torch.zeros(1, 8, 8)), r"takes one or more of \[1, 8, 8\]"),
        (sampled_with(torch.zeros(2, 2, 8, 8)), r"takes one or more of \[1, 8, 8\]"),
        (
            lambda _: tiny_module().sample(2, DDIM(2), condition=images_of(digits(), 2)),
            "but the model takes none; leave them out",
        ),
        (
            lambda folder: trainer(folder, 1).fit(conditioned_module(), tiny_data()),
            r"image is None.*image_channels=1",
        ),
        (lambda folder: trainer(folder, 1).fit(tiny_module(), digits()), "image_channels=0"),
    ],
)
def test_tasks_and_images_that_do_not_fit_data_or_model_are_refused(call, words, tmp_path):
    with pytest.raises(InputError, match=words):
        call(tmp_path)


@pytest.mark.parametrize(
    "task", [TASKS[0], *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[1:])]
)
def test_a_run_trains_draws_measures_and_its_checkpoint_loads_by_path_alone(task, tmp_path):
    data = digits(task, predict_n=3)
    sampling = {"sampler": DDIM(2)}
    callbacks = (
        SampleGrid(n=6, columns=4, frames=2, **sampling),
        GenerativeMetrics(LeNet(), n=100, batch_size=100, **sampling),
    )
    arguments = {"run": {"limit_val_batches": 1}, "conditional": True, "schedule": Cosine(20)}
    module = fit(tmp_path, 2, *callbacks, data=data, **arguments)
    assert len(json.loads((tmp_path / "metrics.json").read_text())) == 1
    path = tmp_path / "samples" / "ddim2_ema_step_00000002.png"
    # Below the caption, two rows of 4: condition, sample and truth each.
    picture = torch.from_numpy(np.array(Image.open(path)))[None, 20:]
    batch = data.finished("val", 6)
    samples = module.sample(6, DDIM(2), condition=batch.condition)
    above = task.shown(batch.condition.image, (1, 8, 8))
    shown = grid(samples, 4, above=above, below=batch.x0)
    assert picture.shape[1:3] == (6 * 66 + 2, 4 * 66 + 2)
    assert (picture[..., 0] - shown[:1].int()).abs().max() <= 1

    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path))
    assert loaded.data == data.spec
    again = loaded.sample(6, DDIM(2), condition=batch.condition)
    torch.testing.assert_close(again, samples, atol=1e-6, rtol=0)

    run = trainer(tmp_path, 2, callbacks=[Likelihood(2)], limit_test_batches=1)
    run.test(module, data, verbose=False)
    assert np.isfinite(float(run.callback_metrics["test/bpd"]))
    predicted = torch.cat(trainer(tmp_path, 2).predict(module, data))
    given = data.finished("test", 3).condition
    sampled = module.sample(3, seed=module.seed, condition=given)
    torch.testing.assert_close(predicted, sampled, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the sample command


@pytest.fixture(scope="module", params=[SuperResolution(4), Inpainting(10)])
def trained(request, tmp_path_factory) -> tuple[Conditioned, Path]:
    """A one-step run on 28×28 noise: the data and the checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    write_mnist(folder / "data")
    images = MNIST(root=str(folder / "data"), held_out=20, global_batch_size=8)
    data = Conditioned(images, request.param)
    fit(folder, 1, data=data, schedule=Cosine(T=20))
    return data, last_checkpoint(folder)


def sample(ckpt: Path, out: Path, **more) -> None:
    shape = {"n": 3, "grid": Overview(columns=3), "device": "cpu"}
    sample_command(ckpt, out, sampler=DDIM(2), **shape | more)


def tiles(picture: Path, row: int) -> list[np.ndarray]:
    """A row of 28×28 images in a picture of 3 columns, at native size."""
    pixels = np.array(Image.open(picture))
    assert pixels.shape[1] == 3 * 58 + 2
    band = pixels[2 + 58 * row : 58 * (row + 1) : 2, :, 0]
    return [band[:, 2 + 58 * k : 58 * (k + 1) : 2] for k in range(3)]


def test_sample_takes_the_first_test_images_and_says_how_near_it_came(trained, tmp_path, capsys):
    data, ckpt = trained
    sample(ckpt, tmp_path / "out", data=DataPlace(data.data.root))
    images = data.data.samples("test")[0][:3, 0].numpy()
    samples = np.stack([np.array(Image.open(tmp_path / "out" / f"{k:06d}.png")) for k in range(3)])
    assert np.array_equal(tiles(tmp_path / "out" / "grid.png", 2), images)
    squared = ((samples - images.astype(float)) / 255) ** 2
    expected = (-10 * np.log10(squared.reshape(3, -1).mean(1))).mean()
    said = capsys.readouterr().out
    assert float(said.split("PSNR ")[1].split(" dB")[0]) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_sample_takes_condition_files_and_repeats_them(trained, tmp_path):
    data, ckpt = trained
    conditions = tmp_path / "conditions"
    conditions.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        if isinstance(data.task, SuperResolution):
            image = Image.fromarray(random.integers(0, 256, (7, 7), dtype=np.uint8))
        else:
            image = np.full((28, 28, 2), 255, dtype=np.uint8)
            image[..., 0] = random.integers(0, 256, (28, 28))
            image[4:9, 5:20, 1] = 0
            image = Image.fromarray(image, "LA")
        image.save(conditions / f"{name}.png")
    sample(ckpt, tmp_path / "one", condition=conditions)
    sample(ckpt, tmp_path / "two", condition=[conditions / "a.png", conditions / "b.png"])
    picture = tmp_path / "one" / "grid.png"
    assert picture.read_bytes() == (tmp_path / "two" / "grid.png").read_bytes()
    first, second, third = tiles(picture, 0)
    assert np.array_equal(first, third)
    given = np.array(Image.open(conditions / "b.png"))
    if isinstance(data.task, SuperResolution):
        assert np.array_equal(second, np.kron(given, np.ones((4, 4))))
    else:
        assert (second[4:9, 5:20] == 128).all()
        around = given[..., 1] > 0
        assert np.array_equal(second[around], given[..., 0][around])


@pytest.mark.slow
def test_conditions_that_do_not_fit_a_conditioned_checkpoint_are_refused(trained, tmp_path):
    data, ckpt = trained
    wrong, opaque, empty = (tmp_path / name for name in ("wrong.png", "opaque.png", "empty"))
    Image.new("L", (9, 9)).save(wrong)
    Image.new("L", (28, 28)).save(opaque)
    empty.mkdir()
    inpainting = isinstance(data.task, Inpainting)
    size = "28×28" if inpainting else "7×7"
    refused = [
        ({"condition": wrong}, f"images of {size} are needed here"),
        ({"condition": Path("gone.png")}, "no image at"),
        ({"condition": empty}, "holds no PNG"),
        ({"edit": SDEdit(opaque)}, "an edit gives none beside x_t"),
    ] + [({"condition": opaque}, "no transparent pixel")] * inpainting
    for arguments, message in refused:
        with pytest.raises(InputError, match=message):
            sample(ckpt, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_condition_for_a_model_without_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(InputError, match="makes images out of noise alone; leave out --condition"):
        sample(tiny_checkpoint, tmp_path / "out", condition=Path("a.png"))


def test_grid_rows_alternate_and_the_last_is_filled_up():
    x = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 2, 2)
    values = grid(x, columns=3, tile=2, above=-x, below=x)[0][2::4, 2::4]
    first, second = to_uint8(x[:, 0, 0, 0]), to_uint8(-x[:, 0, 0, 0])
    blank = torch.tensor([64])
    full = [second[:3], first[:3], first[:3]]
    last = [torch.cat([part[3:], blank]) for part in (second, first, first)]
    assert torch.equal(values, torch.stack(full + last))
