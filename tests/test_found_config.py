"""What a configuration that lies beside a received checkpoint fetches: nothing."""

from __future__ import annotations

import json

import pytest
import yaml

from ddpm_lightning.commands.given_checkpoint import config_of_checkpoint
from ddpm_lightning.errors import InputError

pytest.importorskip("huggingface_hub")

FETCHING = {
    "ddpm_lightning.text.HuggingFaceEncoder": {"path": "some/one"},
    "ddpm_lightning.interchange.DiffusersAutoencoder": {"source": "some/one"},
    "HubImages": {"path": "some/one", "text_column": "caption"},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words_of(folder, part, nested=False):
    """The words that go on with a run whose configuration has a part."""
    value = json.dumps(part) if nested else part
    settings = {"model": {"text": value}, "data": {"class_path": "Digits"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return config_of_checkpoint(["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])


@pytest.mark.parametrize("kind", FETCHING)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.usefixtures("cache")
def test_a_name_on_the_hub_that_nobody_gave_is_not_fetched(kind, nested, tmp_path):
    part = {"class_path": kind, "init_args": FETCHING[kind]}
    with pytest.raises(InputError, match=r"fetches some/one from .* hub, .*: --config .*config\."):
        words_of(tmp_path, part, nested)


@pytest.mark.parametrize("kind", FETCHING)
def test_what_the_hubs_cache_has_is_used(kind, tmp_path, cache):
    is_data = kind == "HubImages"
    folder = cache / f"{'dataset' if is_data else 'model'}s--some--one" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert words_of(tmp_path, {"class_path": kind, "init_args": FETCHING[kind]})


@pytest.mark.parametrize("kind", FETCHING)
def test_a_folder_of_the_cache_without_files_is_not_enough(kind, tmp_path, cache):
    for prefix in ("dataset", "model"):
        (cache / f"{prefix}s--some--one" / "snapshots" / "0123").mkdir(parents=True)
    with pytest.raises(InputError, match="fetches some/one from"):
        words_of(tmp_path, {"class_path": kind, "init_args": FETCHING[kind]})


DOTTED = """
- {data.class_path: HubImages, data.init_args.path: some/one}
- {data: {class_path: Digits}, data.class_path: HubImages, data.init_args: {path: some/one}}
- {model: {text: {class_path: HuggingFaceEncoder, init_args.path: some/one}}}
- {model: {text: "{class_path: HuggingFaceEncoder, init_args.path: some/one}"}}
- {model: {text.class_path: HuggingFaceEncoder, text.init_args.path: some/one}}
- {model.text.class_path: HuggingFaceEncoder, model.text.init_args.path: some/one}
- {model.text: {class_path: HuggingFaceEncoder, init_args: {path: some/one}}}
"""


@pytest.mark.parametrize("settings", yaml.safe_load(DOTTED), ids=str)
@pytest.mark.usefixtures("cache")
def test_dotted_keys_hide_nothing(settings, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(InputError, match=r"has the dotted key '.*\..*'.*: --config .*config\."):
        config_of_checkpoint(["--ckpt_path", str(tmp_path / "checkpoints" / "last.ckpt")])


@pytest.mark.parametrize("harmless", [{"path": "."}, {"path": ".", "download": False}])
@pytest.mark.usefixtures("cache")
def test_other_arguments_that_the_parser_merges_hide_nothing(harmless, tmp_path):
    stated = {"path": "some/one"} | dict.fromkeys(harmless.keys() & {"download"}, True)
    part = {"class_path": "HubImages", "init_args": harmless, "dict_kwargs": stated}
    with pytest.raises(InputError, match="fetches some/one from"):
        words_of(tmp_path, part)


@pytest.mark.usefixtures("cache")
def test_a_part_that_may_not_download_is_no_harm(tmp_path):
    arguments = {"path": "some/one", "download": False}
    assert words_of(tmp_path, {"class_path": "HuggingFaceEncoder", "init_args": arguments})


@pytest.mark.usefixtures("cache")
def test_a_folder_here_is_read(tmp_path):
    arguments = {"path": str(tmp_path)}
    assert words_of(tmp_path, {"class_path": "HuggingFaceEncoder", "init_args": arguments})
