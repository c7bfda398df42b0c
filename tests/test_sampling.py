"""Samples by index: how they are drawn in batches, and what is kept of the way."""

import pytest
import torch

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.parameterizations import X0, V
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, Levels, SingleStep, UniformSpacing
from ddpm_lightning.diffusion.schedules import Cosine, Linear, Table
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import Request, from_noise, run
from tests.core import Waves, named
from tests.small import image_spec, tiny_module

DENOISER = Denoiser(Waves(), Linear(), V())


def draw(sampler, shape, indices, denoiser=DENOISER, condition=Condition(), frames=0, **request):
    procedure = from_noise(denoiser, sampler, shape)
    indices, cpu = torch.as_tensor(indices), torch.device("cpu")
    return run(procedure, indices, Request(**request), condition, cpu, frames)


@pytest.mark.parametrize("sampler", [DDPM(6), DDIM(6, eta=0.5)], ids=named)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_do_not_depend_on_the_batch_size(sampler, scale):
    labels = Condition(torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    settings = {"denoiser": guide(DENOISER, scale), "condition": labels, "frames": 3}
    together = draw(sampler, (1, 4, 4), range(7), **settings)
    assert together.x.shape == (7, 1, 4, 4)
    for batch_size in (1, 3):
        apart = draw(sampler, (1, 4, 4), range(7), batch_size=batch_size, **settings)
        assert torch.equal(apart.x, together.x)
        assert torch.equal(apart.frames.x_t, together.frames.x_t)


def test_a_sample_depends_on_its_index_and_the_seed_and_not_on_its_place():
    some, every = draw(DDPM(6), (2,), [8, 3, 5]).x, draw(DDPM(6), (2,), range(9)).x
    assert torch.equal(some, every[[8, 3, 5]])
    assert not torch.isclose(draw(DDPM(6), (2,), range(9), seed=1).x, every).any()


# No trajectory has more frames than levels: 6 steps have 7.
@pytest.mark.parametrize(("frames", "kept"), [(2, 2), (5, 5), (50, 7)])
def test_frames_lead_from_the_noise_to_the_sample(frames, kept):
    schedule = Table([1, 0.9, 0.7, 0.5, 0.3, 0.2, 0], [0, 0.5, 1, 1.5, 2, 2.5, 3])
    denoiser = Denoiser(Waves(), schedule, X0())
    settings = {"denoiser": denoiser, "frames": frames, "seed": 4, "batch_size": 2}
    samples = draw(DDPM(6), (2, 3), range(5), **settings)
    noise = IndexedNoise(4, torch.arange(5))(0, (2, 3))
    assert samples.frames.x_t.shape == (kept, 5, 2, 3)
    assert (samples.frames.levels[0], samples.frames.levels[-1]) == (6, 0)
    torch.testing.assert_close(samples.frames.x_t[0], 3 * noise)  # prior_std is sigma_T
    assert torch.equal(samples.frames.x_t[-1], samples.x)


def test_no_frames_are_kept_unless_asked_for_and_one_is_an_error():
    assert draw(DDIM(2), (1,), range(2)).frames is None
    for frames in (1, -1):
        with pytest.raises(InputError, match="2 or more"):
            draw(DDIM(2), (1,), range(2), frames=frames)


def test_noise_is_not_taken_for_data_of_a_lower_level():
    with pytest.raises(InputError, match="starts at level 500, but samples start from noise"):
        draw(DDIM(None, spacing=Levels([500, 0])), (1,), range(2))


@pytest.mark.parametrize(("labels", "scale"), [(None, 2.0), ([3], 0.0), ([-1], 1.0)])
def test_a_model_that_never_dropped_labels_knows_no_null_label(labels, scale):
    module = tiny_module(conditional=True, label_dropout=LabelDropout(0.0))
    Request(labels=[3]).check(module)
    with pytest.raises(InputError, match="label_dropout 0"):
        Request(labels=labels, guidance=scale).check(module)


@pytest.mark.parametrize("label", [[3], [1, 7], [-2], []])
def test_labels_of_a_request_and_of_a_condition_are_checked(label):
    module = tiny_module(data=image_spec(num_classes=3), conditional=True)
    for given in ({"labels": label}, {"condition": Condition(torch.tensor(label))}):
        with pytest.raises(InputError, match="one or more from 0…2"):
            module.sample(2, DDIM(1), **given)


class Bare(SingleStep):
    """A sampler that does not pass on what every sampler takes."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__(steps=steps)

    def step(self, prediction, s, noise):
        return prediction.x0


def test_a_sampler_that_cannot_clip_is_refused_before_anything_is_computed():
    with pytest.raises(InputError, match=r"Bare does not take clip, spacing: let its __init__"):
        Request(Bare()).check(tiny_module())


@pytest.mark.parametrize("levels", [[8, 4], [8, 4, 4, 0], [8, 4.0, 0], [8, 0, 4]], ids=str)
def test_levels_that_do_not_fall_to_0_are_refused(levels, monkeypatch):
    class Stated(UniformSpacing):
        def __call__(self, schedule, steps):
            return levels

    module = tiny_module(schedule=Cosine(8))
    with pytest.raises(InputError, match=r"whole numbers \(int\) that fall, and end with 0"):
        Request(DDIM(2, spacing=Stated())).check(module)
