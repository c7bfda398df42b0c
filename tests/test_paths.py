"""One folder has one name: ~ and $VAR are expanded once, and empty variables are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import Namespace

from ddpm_lightning.cli import main
from ddpm_lightning.commands.paths import check_no_empty_paths, expand_paths, expanded
from ddpm_lightning.errors import InputError
from tests.test_cli import fail, tiny_run


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, and another folder in $SCRATCH."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path / "home"


def test_home_and_variables_are_expanded(home):
    scratch = home.parent / "scratch"
    for path, wanted in {
        "~/r": f"{home}/r",
        "$SCRATCH/r": f"{scratch}/r",
        "${SCRATCH}_2/r": f"{scratch}_2/r",
        "a~b/$5": "a~b/$5",
        "plain": "plain",
        "/d/$$RECYCLE.BIN/$SCRATCH": f"/d/$RECYCLE.BIN/{scratch}",
    }.items():
        assert expanded(path, "out") == wanted


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$NOT_SET/r", "variable NOT_SET is not set"),
        ("${NOT_SET}/r", "variable NOT_SET is not set"),
        ("~nosuchuser/r", "no home folder ~nosuchuser"),
        ("s3://bucket/r", "is an address"),
    ],
)
def test_what_cannot_be_expanded_is_refused(home, path, message):
    with pytest.raises(InputError, match=message):
        expanded(path, "out")


def test_paths_are_expanded_at_any_depth_and_nothing_else_is(home):
    settings = Namespace(
        ckpt=Path("~/a.ckpt"),
        condition=[Path("~/a.png"), Path("b.png")],
        data={"class_path": "~.$NOT_SET", "init_args": {"root": "~/data", "kind": "~/data"}},
        trainer=Namespace(default_root_dir="$SCRATCH/r", callbacks=[Namespace(dirpath="~/c")]),
        out=None,
    )
    expand_paths(settings)
    assert settings.ckpt == home / "a.ckpt"
    assert settings.condition == [home / "a.png", Path("b.png")]
    assert settings.data["init_args"] == {"root": f"{home}/data", "kind": "~/data"}
    assert settings.data["class_path"] == "~.$NOT_SET"
    assert settings.trainer.default_root_dir == f"{home.parent}/scratch/r"
    assert settings.trainer.callbacks[0].dirpath == f"{home}/c"


def test_a_path_is_expanded_once(home, monkeypatch):
    monkeypatch.setenv("ODD", "/data/$NOT_SET")
    assert expanded("$ODD/r", "out") == "/data/$NOT_SET/r"


@pytest.mark.parametrize(
    "words",
    [
        ["--ckpt_path="],
        ["--trainer.default_root_dir="],
        ["--trainer.default_root_dir", ""],
        ["--out=", "--n=3"],
        ["--data.root="],
        ["--init_from="],
        ["--edit.image="],
        ["--config="],
    ],
)
def test_an_empty_path_is_refused_by_name(words):
    name = words[0].rstrip("=")
    with pytest.raises(InputError, match=f"{name} is empty .*leave out {name}"):
        check_no_empty_paths(words)


def test_a_name_may_be_empty():
    check_no_empty_paths(["--trainer.logger.name=", "--trainer.fast_dev_run", "--out=x"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["~/r", "$SCRATCH/r"])
def test_a_run_is_one_folder_however_it_is_named_and_a_second_is_refused(
    home, name, capsys, tmp_path
):
    Path("t.yaml").write_text(f"trainer: {{default_root_dir: {name}}}")
    words = [word for word in tiny_run(tmp_path) if "default_root_dir" not in word]
    main(["fit", *words, "--config=t.yaml"])
    root = Path(expanded(name, "out"))
    first = (root / "checkpoints" / "last.ckpt").read_bytes()
    events = [path.parent for path in tmp_path.rglob("events.out.*")]
    assert events == [root]
    assert not list(tmp_path.glob("~")) + list(tmp_path.glob("$*"))
    again = ["fit", *words, "--config=t.yaml", "--model.optimizer.lr=0.5"]
    assert "holds a run already" in fail(capsys, *again)
    assert (root / "checkpoints" / "last.ckpt").read_bytes() == first
    main(
        ["fit", f"--trainer.default_root_dir={name}", "--ckpt_path=last", "--trainer.max_steps=3"]
    )
    assert (root / "checkpoints" / "last.ckpt").read_bytes() != first
