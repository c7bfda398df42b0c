"""Captions as tokens: encoders, cross-attention, prompts, guidance and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.data import Captioned, Conditioned, Digits, SuperResolution
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import DiT, SmallUNet
from ddpm_lightning.networks.context import (
    Context,
    ContextEmbedding,
    CrossAttention,
    TokenAttention,
)
from ddpm_lightning.sampling import Request
from ddpm_lightning.text import TextEncoder, VocabularyEncoder
from tests.small import TinyUNet, fit, lively

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEC = DataSpec((1, 8, 8), None, words=("a", "blue", "red", "ring"), caption_length=4)
TextUNet = partial(TinyUNet, cross_attention_levels=[1], dropout=0.0, context_depth=1)
TextDiT = partial(DiT, patch=4, width=16, depth=1, heads=2, cross_attention=True)


def digits(**settings):
    settings = {"global_batch_size": 8, "subset": 64} | settings
    return Captioned(Digits(**settings), [f"a handwritten {name}" for name in NAMES])


def text_module(net=TextUNet, data=SPEC, **arguments):
    return lively(DiffusionModule(data, net, text=VocabularyEncoder(), **arguments))


# ------------------------------------------------------------------------------- encoders


def test_a_token_is_one_word_at_one_position():
    tokens, mask = VocabularyEncoder().of(SPEC)(["a red ring", "Red"])
    words = torch.eye(4)
    assert torch.equal(tokens[0, :3, :4], words[[0, 2, 3]])
    assert torch.equal(tokens[0, :3, 4:], torch.eye(4)[:3])
    assert torch.equal(tokens[1, 0, :4], words[2])
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert not tokens[~mask].any()


def test_an_unknown_word_is_named_with_the_nearest_one():
    with pytest.raises(
        InputError, match=r"'rad' is none of the 4 .*did you mean red.*--model.text"
    ):
        VocabularyEncoder().of(SPEC)(["a rad ring"])


def test_a_text_that_is_too_long_names_the_length_that_would_do():
    with pytest.raises(InputError, match=r"has 5 words, .* takes 4; .*--model\.text\.length 5"):
        VocabularyEncoder().of(SPEC)(["a a a red ring"])


def test_a_vocabulary_of_thousands_names_the_other_encoder():
    with pytest.raises(InputError, match=r"--model\.text HuggingFaceEncoder"):
        VocabularyEncoder([f"word{k}" for k in range(4097)], 8)


# -------------------------------------------------------------------------------- networks


def test_attention_to_a_context_is_the_softmax_over_its_tokens():
    torch.manual_seed(0)
    layer = TokenAttention(8, 6, heads=2).double()
    x, tokens = torch.randn(3, 5, 8).double(), torch.randn(3, 4, 6).double()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, True, False]])
    ours = layer(x, Context(tokens, mask))
    for b in range(3):  # without the tokens that are not there, head by head
        q, kept = layer.query(x[b]), tokens[b][mask[b]]
        k, v = layer.key(kept), layer.value(kept)
        parts = []
        for h in (slice(0, 4), slice(4, 8)):
            weights = (q[:, h] @ k[:, h].T / 2).softmax(-1)
            parts.append(weights @ v[:, h])
        expected = layer.out(torch.cat(parts, dim=1))
        torch.testing.assert_close(ours[b], expected)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    embed = ContextEmbedding(DataSpec((1, 8, 8), token_width=8), 16, depth=2)
    tokens = torch.randn(2, 3, 8)
    longer = torch.cat([tokens, torch.randn(2, 5, 8)], dim=1)
    mask = torch.arange(8)[None].expand(2, -1) < 3
    short = embed(Condition(tokens=tokens), 2)
    padded = embed(Condition(tokens=longer, mask=mask), 2)
    torch.testing.assert_close(padded.tokens[:, :4], short.tokens)
    torch.testing.assert_close(padded.mean(), short.mean())


@pytest.mark.parametrize("net", [TextUNet, TextDiT])
def test_the_null_caption_is_no_caption(net):
    module = text_module(net)
    tokens, mask = module.text(["a red ring", "a blue ring"])
    x, c_noise = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    captioned = Condition(tokens=tokens, mask=mask)
    null = module.net(x, c_noise, captioned.null())
    torch.testing.assert_close(null, module.net(x, c_noise))
    assert not torch.allclose(null, module.net(x, c_noise, captioned))


@pytest.mark.parametrize("net", [TextUNet, TextDiT])
def test_rows_read_their_own_caption(net):
    module = text_module(net)
    tokens, mask = module.text(["a red ring", "a blue ring"])
    x, c_noise = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.tensor([3.0, 3.0])
    both = module.net(x, c_noise, Condition(tokens=tokens, mask=mask))
    swapped = module.net(x, c_noise, Condition(tokens=tokens.flip(0), mask=mask.flip(0)))
    torch.testing.assert_close(both, swapped.flip(0))
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("kind", [TinyUNet, partial(DiT, patch=4, width=16, depth=1, heads=2)])
def test_a_network_without_text_has_no_weights_for_it(kind):
    names = [name for name, _ in kind(DataSpec((1, 8, 8)), 1).named_parameters()]
    assert not [name for name in names if "context" in name or "cross" in name]


@pytest.mark.parametrize(
    ("net", "text", "message"),
    [
        (SmallUNet, True, r"SmallUNet .*does not read the text; take UNet with --model\.net\."),
        (TinyUNet, True, "does not read the text"),
        (TextUNet, False, r"reads a text, and the model has none; .*--model\.text Vocab"),
        (TextDiT, False, r"leave out --model\.net\.cross_attention"),
        (partial(TextUNet, cross_attention_levels=[2]), True, "one level per multiplier, 0 to 1"),
    ],
)
def test_a_network_that_does_not_suit_the_text_is_refused(net, text, message):
    with pytest.raises(InputError, match=message):
        DiffusionModule(SPEC, net, text=VocabularyEncoder() if text else None)


@pytest.mark.parametrize("net", [TextUNet, TextDiT])
def test_attention_reads_a_condition_image_patch_by_patch(net):
    torch.manual_seed(0)
    data = DataSpec((1, 8, 8), image_channels=2)
    network = net(data, 1, image_patch=4)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.15)
    assert network.in_channels == 1
    x, c_noise, image = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 3.0]), torch.randn(2, 2, 8, 8)
    whole = network(x, c_noise, Condition(image=image))
    moved = network(x, c_noise, Condition(image=image.roll(4, -1)))  # the same patches elsewhere
    assert not torch.allclose(whole, moved)
    swapped = network(x.flip(0), c_noise, Condition(image=image.flip(0)))
    torch.testing.assert_close(whole, swapped.flip(0))


def test_text_and_image_are_read_together():
    data = DataSpec((1, 8, 8), image_channels=1, token_width=3)
    embed = ContextEmbedding(data, 16, depth=1, image_patch=4)
    tokens, mask = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    condition = Condition(None, torch.randn(2, 1, 8, 8), tokens, mask)
    assert embed(condition, 2).mask.sum(1).tolist() == [1 + 5 + 4, 1 + 2 + 4]


@pytest.mark.parametrize(
    ("settings", "channels", "message"),
    [
        ({"image_patch": 3}, 1, r"does not divide .*--model\.net\.image_patch 2"),
        ({"image_patch": 4}, 0, "needs data with condition images"),
        (
            {"image_patch": 4, "cross_attention_levels": []},
            1,
            r"needs --model\.net\.cross_attention_levels",
        ),
    ],
)
def test_patches_that_cannot_be_are_refused(settings, channels, message):
    with pytest.raises(InputError, match=message):
        TextUNet(DataSpec((1, 8, 8), image_channels=channels), 1, **settings)


def test_data_without_captions_is_refused():
    with pytest.raises(InputError, match=r"the data has no captions; .*--data Shapes"):
        DiffusionModule(DataSpec((1, 8, 8)), TextUNet, text=VocabularyEncoder())


# ------------------------------------------------------------------------- data and training


def test_captions_are_those_of_the_labels():
    data = digits()
    batch = data.finished("val", 20)
    expected = [f"a handwritten {NAMES[label]}" for label in batch.condition.label.tolist()]
    assert batch.captions == expected
    assert data.spec.caption_length == 3
    assert set(data.spec.words) == {"a", "handwritten", *NAMES}


def test_captions_follow_the_shuffled_training_images():
    data = digits()
    batch = next(iter(data.train_dataloader()))
    assert batch.captions == [f"a handwritten {NAMES[k]}" for k in batch.condition.label.tolist()]


def test_captions_pass_a_task_of_condition_images():
    data = Conditioned(digits(), SuperResolution(2))
    assert data.finished("val", 3).captions == digits().finished("val", 3).captions
    assert data.spec.words == digits().spec.words


def test_another_number_of_captions_than_classes_is_refused():
    with pytest.raises(InputError, match="2 captions for Digits of 10 classes"):
        Captioned(Digits(), ["a zero", "a one"])


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return fit(folder, 3, data=digits(), net=TextUNet, text=VocabularyEncoder()), folder


def test_the_checkpoint_knows_the_words_and_draws_the_same(text_run):
    module, folder = text_run
    again = DiffusionModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert again.text.words == sorted({"a", "handwritten", *NAMES})
    settings = {"sampler": DDIM(2), "prompt": "a handwritten six", "guidance": 2.0}
    assert torch.equal(again.sample(2, **settings), module.sample(2, **settings))


def test_the_average_follows_the_embedding_of_words(text_run):
    module, _ = text_run
    trained, average = module.net.context.linear.weight, module.ema.net.context.linear.weight
    before = DiffusionModule(module.data, TextUNet, text=VocabularyEncoder()).net
    assert not torch.equal(trained, average)
    assert trained.shape == before.context.linear.weight.shape
    assert module.net.context.linear.weight.grad is not None


def test_a_model_without_text_keeps_no_words():
    module = DiffusionModule(SPEC, TinyUNet)
    assert "words" not in module.hparams["data"]


class Length(TextEncoder):
    """An encoder of one's own: one token, which says how long a text is."""

    width = 1

    def encode(self, texts, device="cpu"):
        tokens = torch.tensor([[[float(len(text))]] for text in texts])
        return tokens, torch.ones(len(texts), 1, dtype=torch.bool)


@pytest.mark.slow
def test_an_encoder_from_outside_is_named_by_its_class(tmp_path):
    module = fit(tmp_path, 3, data=digits(), net=TextUNet, text=Length())
    again = DiffusionModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert isinstance(again.text, Length)
    settings = {"sampler": DDIM(2), "prompt": "any text at all"}
    assert torch.equal(again.sample(2, **settings), module.sample(2, **settings))


def test_a_batch_without_captions_is_refused(text_run):
    batch = Digits().finished("val", 2)
    with pytest.raises(InputError, match="reads captions, and the data has none"):
        text_run[0].known(batch)


# --------------------------------------------------------------------------------- prompts


def test_prompts_repeat_along_the_samples():
    module = text_module()
    both = module.sample(4, DDIM(2), prompt=["a red ring", "a blue ring"])
    red = module.sample(4, DDIM(2), prompt="a red ring")
    torch.testing.assert_close(both[::2], red[::2])
    assert not torch.allclose(both[1], red[1])


def test_an_empty_prompt_is_none():
    module = text_module()
    torch.testing.assert_close(module.sample(2, DDIM(2), prompt=""), module.sample(2, DDIM(2)))


def test_guidance_leads_away_from_the_negative_prompt():
    module, x_t = text_module(), torch.randn(3, 1, 8, 8)
    request = Request(guidance=3.0, prompt="a red ring", negative_prompt="a blue ring")
    from ddpm_lightning.diffusion.guidance import guide

    denoiser = module.denoiser()
    guided = guide(denoiser, request.guidance, request.negative(module))
    red, blue = (
        Condition(None, None, *module.text([text] * 3)) for text in ("a red ring", "a blue ring")
    )
    positive, negative = denoiser(x_t, 500, red).x0, denoiser(x_t, 500, blue).x0
    expected = negative + 3 * (positive - negative)
    torch.testing.assert_close(guided(x_t, 500, red).x0, expected)


def test_a_negative_prompt_that_says_the_same_is_no_guidance():
    module = text_module()
    settings = {"sampler": DDIM(2), "prompt": "a red ring"}
    request = Request(guidance=4.0, negative_prompt="a red ring", **settings)
    ours = module.generate(torch.arange(2), request).x
    torch.testing.assert_close(ours, module.sample(2, **settings), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(prompt="a rod ring"), "'rod' is none"),
        (Request(guidance=2.0, prompt="a ring", negative_prompt="a rod"), "'rod' is none"),
    ],
)
def test_prompts_of_other_words_are_refused_before_sampling(request_, message):
    with pytest.raises(InputError, match=message):
        request_.check(text_module())


def test_a_prompt_for_a_model_without_text_is_refused():
    module = DiffusionModule(DataSpec((1, 8, 8)), TinyUNet)
    with pytest.raises(InputError, match=r"trained without text.*leave out --prompt"):
        Request(prompt="a red ring").check(module)


def test_a_negative_prompt_without_guidance_is_refused():
    with pytest.raises(InputError, match=r"changes nothing at guidance 1; .*--guidance 3"):
        Request(prompt="a ring", negative_prompt="red")


def test_guidance_needs_a_model_that_was_trained_with_null_captions():
    from ddpm_lightning.diffusion import LabelDropout

    module = text_module(label_dropout=LabelDropout(0.0))
    with pytest.raises(InputError, match="no unconditional prediction: give a prompt"):
        Request(guidance=2.0, prompt="a ring").check(module)


@pytest.mark.parametrize("position", [False, True])
def test_pixels_that_look_alike_read_alike_unless_they_know_their_place(position):
    torch.manual_seed(0)
    cross = CrossAttention(8, 12, heads=2, groups=4, position=position)
    for weight in cross.parameters():
        torch.nn.init.normal_(weight)
    context = Context(torch.randn(1, 3, 12), torch.ones(1, 3, dtype=torch.bool))
    read = cross(torch.randn(1, 8, 1, 1).expand(1, 8, 4, 4), context)
    alike = torch.allclose(read, read[..., :1, :1].expand_as(read), atol=1e-5)
    assert alike is not position
