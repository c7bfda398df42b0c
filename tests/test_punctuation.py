"""Punctuation in captions and prompts."""

from __future__ import annotations

import pytest
import torch

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion import LabelDropout
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.sample_set import SampleSet
from ddpm_lightning.sampling import Request
from ddpm_lightning.text import VocabularyEncoder
from ddpm_lightning.text.words import vocabulary, words_of
from tests.test_text import text_module

ENCODER = VocabularyEncoder(["a", "blue", "dark", "dark-blue", "red", "ring"], 6)


def test_all_words_of_captions_are_words_of_their_vocabulary():
    texts = ["A dark-red ring, closed.", "the ring's hole: 20% (or so)"]
    words, longest = vocabulary(texts)
    assert words == tuple(sorted({word for text in texts for word in words_of(text, words)}))
    assert longest == max(len(words_of(text, words)) for text in texts)


@pytest.mark.parametrize(
    "text",
    [
        "A red ring.",
        "a, red; ring!",
        "a 'red' “ring”",
        "a red-ring",
        "(a) red – ring…",
        "a red: ring",
    ],
)
def test_punctuation_that_no_caption_has_is_left_out(text):
    for found, expected in zip(ENCODER([text]), ENCODER(["a red ring"]), strict=True):
        assert torch.equal(found, expected)


def test_punctuation_that_captions_have_is_a_word_as_it_was():
    tokens, mask = VocabularyEncoder([",", "a", "red", "ring"], 4)(["a red, ring."])
    assert tokens[0, :, :4].argmax(1).tolist() == [1, 2, 0, 3]
    assert mask.all()


def test_a_hyphened_word_of_the_vocabulary_stays_one():
    assert words_of("a dark-blue ring", ENCODER.words) == ["a", "dark-blue", "ring"]
    assert words_of("a dark-red ring", ENCODER.words) == ["a", "dark", "red", "ring"]


@pytest.mark.parametrize(("text", "word"), [("a rod-ring", "rod-ring"), ("a red ring %", "%")])
def test_what_is_no_punctuation_is_refused_as_it_was_written(text, word):
    with pytest.raises(InputError, match=f"the word '{word}' is none of the 6"):
        ENCODER([text])


def test_a_prompt_asks_for_the_caption_that_it_is_but_for_punctuation():
    samples = SampleSet(n=3, prompt=["A red ring.", "a blue, ring", "a ring"])
    labels = samples.labels_of(text_module(), Condition(), ["a blue ring", "a red ring"])
    assert labels.tolist() == [1, 0, -1]


@pytest.mark.parametrize("prompt", ["", "...", ",", ["a red ring", "…"]])
def test_a_prompt_without_words_is_none_to_a_model_that_was_trained_with_all_captions(prompt):
    module = text_module(label_dropout=LabelDropout(0.0))
    with pytest.raises(InputError, match="no unconditional prediction: give a prompt"):
        Request(prompt=prompt).check(module)


def test_a_prompt_without_words_is_the_null_caption_to_other_models():
    module = text_module(label_dropout=LabelDropout(0.1))
    condition = Request(prompt="...").condition(module, torch.arange(2), Condition())
    assert condition.mask is not None
    assert not condition.mask.any()
