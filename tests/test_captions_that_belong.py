"""Captions, labels and condition images of one sample stay together."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks import SampleGrid
from ddpm_lightning.commands.edits import Interpolate, edit_images
from ddpm_lightning.data import Captioned, Conditioned, Digits, SuperResolution
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import write_png
from ddpm_lightning.sampling import Request
from ddpm_lightning.text import VocabularyEncoder
from tests.small import fit, lively, trainer
from tests.test_text import NAMES, TextUNet, digits, text_module


def asked(grid: SampleGrid, module: DiffusionModule) -> list[tuple[int | None, str]]:
    """What a grid asks its samples to be: a class, if the model has some, and a caption."""
    indices = torch.arange(grid.n)
    labels = grid._request.label(module, indices, grid._condition)
    prompts = grid._request.prompts or []
    captions = [prompts[k % len(prompts)] for k in range(grid.n)]
    return list(zip([None] * grid.n if labels is None else labels.tolist(), captions, strict=True))


def test_a_grid_asks_for_the_class_of_the_caption(tmp_path):
    grid = SampleGrid(every_n_steps=1, n=12, columns=4, sampler=DDIM(2))
    data = digits()
    module = fit(
        tmp_path, 1, grid, data=data, net=TextUNet, text=VocabularyEncoder(), conditional=True
    )
    pairs = asked(grid, module)
    assert len(set(pairs)) == 3
    for label, caption in pairs:
        assert label is not None
        assert caption == f"a handwritten {NAMES[label]}"


def test_a_grid_asks_for_the_caption_of_the_condition_image(tmp_path):
    grid = SampleGrid(every_n_steps=1, n=6, columns=2, sampler=DDIM(2))
    data = Conditioned(digits(), SuperResolution(2))
    module = fit(tmp_path, 1, grid, data=data, net=TextUNet, text=VocabularyEncoder())
    assert [caption for _, caption in asked(grid, module)] == list(data.captions("val"))[:6]


def test_predictions_have_the_classes_of_their_captions(tmp_path):
    data = digits()
    module = lively(
        DiffusionModule(data.spec, TextUNet, text=VocabularyEncoder(), conditional=True)
    )
    seen: dict[str, list] = {}

    def spy(indices, request, condition, *_, **__):
        seen["labels"] = request.label(module, indices, condition).tolist()
        seen["prompts"] = request.prompts
        return DiffusionModule.generate(
            module, indices, request.replace(sampler=DDIM(2)), condition
        )

    module.generate = spy
    data.predict_n = 5
    trainer(tmp_path, 1).predict(module, datamodule=data)
    named = [f"a handwritten {NAMES[label]}" for label in seen["labels"]]
    assert named == list(seen["prompts"])[:5]


def test_a_prompt_of_a_model_with_labels_needs_labels():
    data = digits()
    module = text_module(data=data.spec, conditional=True)
    request = Request(DDIM(2), prompt="a handwritten one")
    with pytest.raises(InputError, match=r"\(--labels\)"):
        module.generate(torch.arange(2), request)
    module.generate(torch.arange(2), request.replace(labels=1))


@pytest.mark.parametrize("prompt", [None, "", " "])
def test_a_model_that_never_saw_the_null_caption_needs_a_prompt(prompt):
    module = text_module(label_dropout=LabelDropout(0.0))
    with pytest.raises(InputError, match=r"no unconditional prediction: give a prompt"):
        module.generate(torch.arange(2), Request(DDIM(2), prompt=prompt))


def test_a_grid_on_loaders_of_ones_own_asks_for_no_caption(tmp_path):
    data = digits()
    batch = data.finished("train", 8)._replace(row=torch.arange(8))
    module = text_module(data=data.spec)
    grid = SampleGrid(every_n_steps=1, n=4, sampler=DDIM(2))
    trainer(tmp_path, 1, callbacks=[grid]).fit(module, DataLoader([batch], batch_size=None))
    assert grid._request.prompts is None
    assert list((tmp_path / "samples").glob("*.png"))


def test_classes_of_prompts_are_found_whatever_their_letters():
    from ddpm_lightning.evaluation.sample_set import SampleSet

    data = Captioned(Digits(global_batch_size=8), [f"a handwritten {name}" for name in NAMES])
    module = text_module(data=data.spec)
    samples = SampleSet(n=3, prompt=["A Handwritten ONE", "a handwritten two", "a one"])
    labels = samples.labels_of(module, Condition(), data.texts)
    assert labels is not None
    assert labels.tolist() == [1, 2, -1]


def test_an_interpolation_takes_one_prompt(tmp_path):
    module = text_module(data=digits().spec)
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, torch.zeros(1, 8, 8, dtype=torch.uint8))
    edit = Interpolate(tmp_path / "a.png", tmp_path / "b.png", iterations=1)
    one, two = (
        Request(prompt=[f"a handwritten {n}" for n in ns]) for ns in (["one"], ["one", "two"])
    )
    edit_images(module, edit, 2, one.replace(sampler=DDIM(2)))
    with pytest.raises(InputError, match="one prompt for all"):
        edit_images(module, edit, 2, two.replace(sampler=DDIM(2)))
