"""A file that was received imports, downloads and reads only what its user has allowed."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from ddpm_lightning import DiffusionModule
from ddpm_lightning.checkpoint import KEY
from ddpm_lightning.cli import main
from ddpm_lightning.commands.found_config import check_found_config
from ddpm_lightning.configurable import with_download
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.trust import check_trust, class_paths, is_trusted, trusting
from tests.test_whole_checkpoints import altered

MNIST = {"class_path": "ddpm_lightning.data.MNIST", "init_args": {"root": "data"}}


def set_at(content: dict, place: str, value: object) -> None:
    *parents, last = place.split("/")
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A file which the packages far_away and far-away leave when they are imported."""
    left = tmp_path / "imported"
    for name in ("far_away", "far-away"):
        (tmp_path / f"{name}.py").write_text(f"open({str(left)!r}, 'a').write('x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield left
    for name in ("far_away", "far-away"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("key", ["root", "table", "weights", "folder"])
def test_an_object_is_looked_at_where_a_file_is_expected(tmp_path, tiny_checkpoint, trace, key):
    def edit(checkpoint):
        part = {"class_path": "far_away.Thing", "init_args": {}}
        set_at(checkpoint, f"hyper_parameters/objective/init_args/{key}", part)

    with pytest.raises(InputError, match=r"trust=\['far_away'\]"):
        DiffusionModule.load_from_checkpoint(altered(tiny_checkpoint, tmp_path, edit))
    assert not trace.exists()


def test_a_class_path_that_is_no_identifier_is_looked_at(tmp_path, tiny_checkpoint, trace):
    def edit(checkpoint):
        set_at(checkpoint, "hyper_parameters/objective/class_path", "far-away.Thing")

    with pytest.raises(InputError, match=r"trust=\['far-away'\]"):
        DiffusionModule.load_from_checkpoint(altered(tiny_checkpoint, tmp_path, edit))
    assert not trace.exists()


@pytest.mark.parametrize(
    "description",
    [
        {"callbacks": ["far-away.Thing"]},
        {"model": "{net: {class_path: far-away.Thing}}"},
        {"class_path": ["far-away.Thing"]},
        {"root": {"class_path": "far-away.Thing"}},
        {"root": "- far-away.Thing"},
    ],
)
def test_every_place_of_a_class_is_found(description):
    assert any("far-away.Thing" in path for path in class_paths(description))


def test_a_file_is_no_class():
    assert class_paths({"root": "my.data", "scale": "1.5", "filename": "{step:03d}"}) == set()


def test_settings_that_hold_themselves_have_an_end():
    endless: list = ["a.B"]
    endless.append(endless)
    assert class_paths(endless) == {"a.B"}


def test_an_imported_package_does_not_allow_its_other_modules(tmp_path, monkeypatch):
    (tmp_path / "near").mkdir()
    for name in ("__init__", "used", "other"):
        (tmp_path / "near" / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("near.used")
    assert is_trusted("near.used.Thing")
    assert not is_trusted("near.other.Thing")
    assert is_trusted("near.other.Thing", ["near"])


def test_an_imported_module_is_allowed():
    assert is_trusted("json.decoder.JSONDecoder")


def test_doctor_does_not_import_what_a_checkpoint_names_as_its_data(
    tmp_path, tiny_checkpoint, trace, capsys
):
    def edit(checkpoint):
        checkpoint[KEY]["data"] = {"class_path": "far_away.Thing", "init_args": {}}

    path = altered(tiny_checkpoint, tmp_path, edit)
    with pytest.raises(SystemExit):
        main(["doctor", "--ckpt", str(path)])
    assert capsys.readouterr().err.endswith(" --trust far_away\n")
    assert not trace.exists()


def test_doctor_does_not_let_a_checkpoint_download(tmp_path, tiny_checkpoint):
    from ddpm_lightning.cli.doctor import _run_of_checkpoint

    def edit(checkpoint):
        checkpoint[KEY]["data"] = MNIST | {"init_args": {"root": "data", "download": True}}

    (word,) = _run_of_checkpoint(["--ckpt", str(altered(tiny_checkpoint, tmp_path, edit))])
    assert json.loads(word.removeprefix("--data="))["init_args"]["download"] is False


def test_a_class_that_downloads_by_default_is_told_not_to(tmp_path, tiny_checkpoint):
    def edit(checkpoint):
        arguments = {"root": str(tmp_path / "data"), "image_size": None}
        checkpoint[KEY]["data"] = MNIST | {"init_args": arguments}
        checkpoint["hyper_parameters"]["data"]["shape"] = [1, 28, 28]

    path = altered(tiny_checkpoint, tmp_path, edit)
    assert Loaded.read(path).data.download is False
    assert Loaded.read(path, DataPlace(download=True)).data.download is True


def test_no_part_of_a_data_module_downloads_at_any_depth():
    nested = {"class_path": "ddpm_lightning.data.Conditioned", "init_args": {"data": [MNIST]}}
    found = with_download(nested, False)
    assert found["init_args"]["data"][0]["init_args"] == {"root": "data", "download": False}


@pytest.mark.parametrize("place", ["model", "trainer"])
def test_a_found_configuration_takes_nothing_from_another_file(
    tmp_path, tiny_checkpoint, trace, capsys, place
):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(tiny_checkpoint.read_bytes())
    other = tmp_path / "run" / "d.txt"
    other.write_text("net: {class_path: far_away.Thing}\ncallbacks: [far_away.Thing]\n")
    (tmp_path / "run" / "config.yaml").write_text(f"{place}: {other}\n")
    with pytest.raises(SystemExit):
        main(["validate", "--ckpt_path", str(folder / "last.ckpt")])
    error = capsys.readouterr().err
    assert f"takes settings from {other}" in error
    assert f"--config {tmp_path}/run/config.yaml" in error
    assert not trace.exists()


@pytest.mark.parametrize("first", ["near.Thing", "near.OptimizedSpacing", "OptimizedSpacing"])
def test_only_the_table_of_our_spacing_may_be_a_file_that_nobody_named(tmp_path, first):
    other = tmp_path / "d.json"
    other.write_text('{"class_path": "far_away.Thing"}')
    # The alias gives the same arguments to two classes.
    (tmp_path / "config.yaml").write_text(
        f"a: {{class_path: {first}, init_args: &same {{table: {other}}}}}\n"
        "b: {class_path: OptimizedSpacing, init_args: *same}\n"
    )
    with trusting(["--trust", "near"]):
        if first == "OptimizedSpacing":
            check_found_config(tmp_path / "config.yaml")
        else:
            with pytest.raises(InputError, match="takes settings from"):
                check_found_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["init_from", "path", "default_root_dir", "project", "cache"])
def test_the_name_of_a_file_or_run_may_have_a_dot(name):
    check_trust("a.ckpt", {"init_args": {name: "base.ckpt"}})
