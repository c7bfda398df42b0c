"""Commands whose output nobody reads any more."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout

import pytest

from ddpm_lightning.__main__ import run
from ddpm_lightning.cli import main
from ddpm_lightning.closed_pipe import ended_by_closed_pipe


@pytest.fixture(params=["buffered", "unbuffered"])
def unread(request):
    """A pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    is_unbuffered = request.param == "unbuffered"
    file = os.fdopen(write, "wb", buffering=0 if is_unbuffered else -1)
    stream = io.TextIOWrapper(file, write_through=is_unbuffered)
    yield stream
    stream.close()  # which fails where something is left in it


@pytest.mark.parametrize("words", [["list_configs"], ["completion"], ["fit", "--help"]])
def test_a_command_ends_quietly_as_by_sigpipe(words, unread, capsys):
    with pytest.raises(SystemExit) as end, redirect_stdout(unread):
        main(words)
    assert end.value.code == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["--help"], ["evaluate", "--help"], ["plot", "loss", "-h"]])
def test_stored_help_ends_quietly_too(words, unread, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ddpm_lightning", *words])
    with pytest.raises(SystemExit) as end, redirect_stdout(unread):
        run()
    assert end.value.code == 141
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("unread", ["unbuffered"], indirect=True)
def test_training_says_how_to_go_on(unread, tmp_path, capsys):
    run = ["max_steps=4", "limit_val_batches=0", "enable_model_summary=false"]
    flags = [f"--trainer.{one}" for one in (f"default_root_dir={tmp_path}", *run)]
    less = ["--grid=null", "--metrics=null"]
    with pytest.raises(SystemExit) as end, redirect_stdout(unread):
        main(["fit", "--config=toy2d", "--data.n=64", *flags, *less])
    assert end.value.code == 141
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the same command with --ckpt_path auto" in last


def test_another_broken_pipe_keeps_its_traceback():
    with pytest.raises(BrokenPipeError), ended_by_closed_pipe():
        raise BrokenPipeError
