"""Frozen encoders of transformers: small random ones, saved here, against the library itself."""

from __future__ import annotations

import json

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.configurable import build
from ddpm_lightning.errors import InputError
from ddpm_lightning.text import HuggingFaceEncoder
from tests.test_text import TextUNet

transformers = pytest.importorskip("transformers")

TEXTS = ["a red ring", "a ring", "a red red red ring"]


def tokenizer(**special):
    """A tokenizer that splits at spaces, of a vocabulary made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: k for k, word in enumerate(["[pad]", "[end]", "[unk]", "a", "red", "ring"])}
    words_of = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    words_of.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words_of, pad_token="[pad]", eos_token="[end]", unk_token="[unk]"
    )


def saved(folder, kind, safe=True):
    """A random model with its tokenizer, as transformers saves them: the folder and the model."""
    torch.manual_seed(0)
    if kind == "clip":
        model = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=6,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=8,
                eos_token_id=1,
                pad_token_id=0,
                bos_token_id=0,
            )
        )
    else:
        model = transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=6, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2
            )
        )
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder, model


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_tokens_are_the_last_layer_of_the_library(tmp_path, kind):
    folder, model = saved(tmp_path / kind, kind)
    tokens, mask = HuggingFaceEncoder(str(folder), length=8, download=False)(TEXTS)
    assert tokens.shape == (3, 8, 16)
    assert mask.sum(1).tolist() == [3, 2, 5]
    for row, text in enumerate(TEXTS):  # one at a time, so without padding
        words = tokenizer()(text, return_tensors="pt")
        with torch.no_grad():
            expected = model(**words).last_hidden_state[0]
        torch.testing.assert_close(tokens[row, : len(expected)], expected)
        assert not tokens[row, len(expected) :].any()


def test_a_long_text_is_cut_off_and_an_empty_one_has_no_token(tmp_path):
    encoder = HuggingFaceEncoder(str(saved(tmp_path, "clip")[0]), length=4, download=False)
    _, mask = encoder(["a red red red red ring", ""])
    assert mask.sum(1).tolist() == [4, 0]


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path):
    encoder = HuggingFaceEncoder(str(saved(tmp_path, "clip")[0]), length=9, download=False)
    with pytest.raises(InputError, match=r"takes up to 8 tokens.*--model\.text\.length 8"):
        _ = encoder.width


def test_a_text_is_encoded_once(tmp_path):
    encoder = HuggingFaceEncoder(str(saved(tmp_path, "t5")[0]), length=8, download=False)
    first = encoder(TEXTS)[0]
    seen = []
    encoder._model.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(encoder(TEXTS[::-1])[0], first.flip(0))
    assert not seen
    encoder(["a a"])
    assert len(seen) == 1


def test_pickled_weights_are_not_read(tmp_path):
    folder, _ = saved(tmp_path, "clip", safe=False)
    encoder = HuggingFaceEncoder(str(folder), length=8, download=False)
    with pytest.raises(InputError, match=r"cannot be loaded as a text encoder .*--model\.text\.p"):
        encoder(TEXTS)


def test_code_of_a_model_is_not_executed(tmp_path):
    folder, _ = saved(tmp_path, "clip")
    mark = tmp_path / "executed"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        _ = HuggingFaceEncoder(str(folder), download=False).width
    assert not mark.exists()


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"name a folder with config\.json") as caught:
        _ = HuggingFaceEncoder(str(tmp_path / "nowhere"), download=False).width
    assert "\n" not in str(caught.value)


def test_without_the_library_there_is_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'ddpm_lightning\[text\]'"):
        _ = HuggingFaceEncoder(str(tmp_path)).width


def test_a_model_names_its_encoder_and_stores_none_of_its_weights(tmp_path):
    encoder = HuggingFaceEncoder(str(saved(tmp_path, "t5")[0]), length=8, download=False)
    module = DiffusionModule(DataSpec((1, 8, 8)), TextUNet, text=encoder)
    assert module.net.context.linear.in_features == 16
    stored = dict(module.hparams)["text"]
    assert stored["class_path"] == "ddpm_lightning.text.HuggingFaceEncoder"
    assert torch.equal(build(stored)(TEXTS)[0], encoder(TEXTS)[0])
    parts = {name.split(".")[0] for name in module.state_dict()}
    assert parts <= {"net", "ema", "schedule"}


def test_tokens_do_not_depend_on_the_texts_beside(tmp_path):
    folder, _ = saved(tmp_path, "t5")
    encoder = HuggingFaceEncoder(str(folder), length=8)
    alone = HuggingFaceEncoder(str(tmp_path), length=8).encode(["a ring"])[0][0]
    beside = encoder.encode(["a red ring left of a blue ring", "a ring"])[0][1]
    assert torch.equal(alone, beside)
