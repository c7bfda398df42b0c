"""LeNet and ColourNet alike: their weights, what they compute and refuse."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import ColourNet, LeNet


@pytest.fixture(scope="module", params=[LeNet, ColourNet])
def extractor(request):
    return request.param()


def images(extractor, *size, n=3):
    generator = torch.Generator().manual_seed(0)
    shape = (n, *extractor.channels, *size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def test_its_weights_are_less_than_a_megabyte_and_state_their_digest(extractor):
    assert extractor.weights.stat().st_size < 1_000_000
    assert extractor.digest == hashlib.sha256(extractor.weights.read_bytes()).hexdigest()


def test_loading_draws_nothing_and_the_network_is_frozen_and_registered_nowhere(extractor):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.extractor = type(extractor)()

    state, holder = torch.get_rng_state(), Holder()
    with torch.inference_mode():
        holder.extractor.check()
    assert torch.equal(state, torch.get_rng_state())
    network = holder.extractor.network
    assert not holder.state_dict()
    assert not network.training
    assert not any(p.requires_grad or p.is_inference() for p in network.parameters())
    assert not holder.extractor(images(extractor, 8, 8)).requires_grad


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (9, 40)])
def test_one_pass_gives_features_and_logits_of_any_size_from_eight_pixels_on(extractor, size):
    both = extractor.both(images(extractor, *size))
    assert torch.equal(both.features, extractor(images(extractor, *size)))
    assert (both.features.shape, both.features.dtype) == ((3, extractor.dim), torch.float32)
    assert both.logits.shape == (3, extractor.classes)


def test_features_depend_on_nothing_but_the_image(extractor):
    drawn = images(extractor, 16, 16, n=64)
    features = extractor(drawn)
    assert torch.equal(features, type(extractor)()(drawn))
    torch.testing.assert_close(features[:1], extractor(drawn[:1]), atol=1e-5, rtol=1e-4)
    assert extractor(drawn[:0]).shape == (0, extractor.dim)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features, extractor(drawn))


def test_images_that_it_cannot_read_are_refused_in_a_line(extractor):
    (own,) = extractor.channels
    other = 4 - own
    for shape, dtype, message in (
        (
            (1, other, 28, 28),
            torch.uint8,
            rf"{own} channel.*\[{other}, 28, 28\].*ColourNet",
        ),
        ((1, own, 7, 32), torch.uint8, "8×8 pixels or more"),
        ((1, own, 28, 28), torch.float32, "8-bit images, got torch.float32.*to_uint8"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            extractor(torch.zeros(shape, dtype=dtype))
        assert "\n" not in str(caught.value)
