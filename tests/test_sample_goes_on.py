"""A stopped sample command goes on, and gives what it would have given; .npz in and out."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import DiffusionModule
from ddpm_lightning.cli import main
from ddpm_lightning.commands.edits import Edit
from ddpm_lightning.commands.sample_folder import digest_of
from ddpm_lightning.data import Digits, Toy2D
from ddpm_lightning.images import write_npz, write_png
from ddpm_lightning.networks import MLP
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import fit, trainer
from tests.test_cli import fail


def words(checkpoint: Path, out: Path, *more: str) -> list[str]:
    few = ("--n=6", "--batch_size=2", "--sampler=DDIM", "--sampler.steps=3", "--device=cpu")
    return ["sample", f"--ckpt={checkpoint}", f"--out={out}", *few, *more]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--grid.frames=3",),
        ("--edit=SDEdit", "--edit.image=a.png"),
        ("--edit=Interpolate", "--edit.first=a.png", "--edit.second=b.png"),
    ],
    ids=["plain", "frames", "SDEdit", "Interpolate"],
)
@pytest.mark.parametrize("lost", [("000003.png", "grid.png"), ("grid.png",)])
def test_what_is_missing_in_a_folder_is_made_up_for(
    more, lost, lively_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, image in zip("ab", Digits().images("train")[0], strict=False):
        write_png(Path(f"{name}.png"), image)
    main(words(lively_checkpoint, tmp_path / "out", *more))
    whole = files(tmp_path / "out")
    for name in lost:
        (tmp_path / "out" / name).unlink()
    main(words(lively_checkpoint, tmp_path / "out", *more))
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--seed=1",), "seed"),
        (("--n=5",), "n"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (("--sampler.steps=2",), "sampler, steps"),
                (("--grid.columns=3",), "grid"),
                (("--weights=raw",), "network, weights"),
                (("--edit=SDEdit", "--edit.image=a.png"), "edit, images"),
            )
        ),
    ],
)
def test_another_command_into_the_folder_is_refused(
    more, named, lively_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_png(Path("a.png"), Digits().images("train")[0][0])
    main(words(lively_checkpoint, tmp_path / "out"))
    before = files(tmp_path / "out")
    line = fail(capsys, *words(lively_checkpoint, tmp_path / "out", *more))
    assert f"were drawn with another {named}" in line
    assert files(tmp_path / "out") == before


def test_edits_are_not_evaluated_as_samples_of_the_model(
    lively_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_png(Path("a.png"), Digits().images("train")[0][0])
    same = words(lively_checkpoint, Path("e"), "--seed=1", "--labels=3")
    main([*same, "--out=e/samples", "--edit=SDEdit", "--edit.image=a.png"])
    line = fail(capsys, "evaluate", *same[1:], "--extractor=tests.small.Coarse")
    assert "drawn with another n, edit, images" in line


def test_another_image_of_the_same_name_is_another_command(
    lively_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    edit = ("--edit=SDEdit", "--edit.image=a.png")
    write_png(Path("a.png"), Digits().images("train")[0][0])
    main(words(lively_checkpoint, tmp_path / "out", *edit))
    write_png(Path("a.png"), Digits().images("train")[0][1])
    assert "another images" in fail(capsys, *words(lively_checkpoint, tmp_path / "out", *edit))


class Mixed(Edit):
    """An edit of another package: several files, and a text that is none."""

    def __init__(self, images: list[Path], mask: Path | None = None, mode: str = "soft") -> None:
        pass

    def procedure(self, job):
        raise NotImplementedError


def test_the_files_of_an_edit_are_those_of_its_paths_and_of_its_lists(tmp_path):
    edit = Mixed([tmp_path / "a.png", tmp_path / "b.png"], mask=str(tmp_path / "c.png"))
    assert [file.name for file in edit.files] == ["a.png", "b.png", "c.png"]
    for name in "abc":
        (tmp_path / f"{name}.png").write_text(name)
    before = digest_of(edit, None)
    (tmp_path / "b.png").write_text("other")
    assert digest_of(edit, None) != before


def test_clutter_of_file_managers_does_not_fill_a_folder(lively_checkpoint, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "out" / name).touch()
    main(words(lively_checkpoint, tmp_path / "out"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    assert "not an empty folder" in fail(capsys, *words(lively_checkpoint, tmp_path / "other"))


def test_an_archive_holds_the_images_of_the_folder_and_their_labels(lively_checkpoint, tmp_path):
    main(words(lively_checkpoint, tmp_path / "out", "--labels=[3,5]"))
    main(words(lively_checkpoint, tmp_path / "x.npz", "--labels=[3,5]"))
    images = [np.array(Image.open(tmp_path / "out" / f"{k:06d}.png")) for k in range(6)]
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"][..., 0], images)
        assert archive["arr_1"].tolist() == [3, 5, 3, 5, 3, 5]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "x.npz", "x.npz.yaml"}


def test_an_archive_is_not_written_over_and_has_no_frames(lively_checkpoint, tmp_path, capsys):
    (tmp_path / "x.npz").write_bytes(b"mine")
    assert "exists already" in fail(capsys, *words(lively_checkpoint, tmp_path / "x.npz"))
    line = fail(capsys, *words(lively_checkpoint, tmp_path / "y.npz", "--grid.frames=2"))
    assert "leave out --grid.frames" in line
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz"}


def test_points_in_an_archive_are_refused_before_they_are_drawn(tmp_path, capsys):
    data = Toy2D("moons", n=64, global_batch_size=8)
    module = DiffusionModule(data.spec, net=partial(MLP, width=8, depth=1))
    trainer(tmp_path / "run", 1).fit(module, data)
    checkpoint = last_checkpoint(tmp_path / "run")
    line = fail(capsys, *words(checkpoint, tmp_path / "x.npz"))
    assert f"name a folder, which gets them as samples.npy: --out {tmp_path / 'x'}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_archive_scores_like_the_folder_of_its_images(tmp_path):
    images = Digits().images("train")[0]
    for name, part in (("a", images[:40]), ("b", images[100:200])):
        for k, image in enumerate(part):
            write_png(tmp_path / name / f"{k:06d}.png", image)
        write_npz(tmp_path / f"{name}.npz", part)
    found = []
    for suffix in ("", ".npz"):
        samples, reference = (f"{tmp_path / name}{suffix}" for name in "ab")
        out = tmp_path / f"out{suffix}"
        extractor = "--extractor=tests.small.Coarse"
        main(
            [
                "score",
                *(f"--samples={samples}", f"--reference.folder={reference}"),
                *(extractor, f"--out={out}", "--device=cpu"),
            ]
        )
        pictures = [(out / name).read_bytes() for name in ("grid.png", "neighbours.png")]
        lines = (out / "results.json").read_text().splitlines()
        found.append((pictures, [line for line in lines if '"folder"' not in line]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "sent", "code"),
    [
        pytest.param("out", signal.SIGKILL, -9, marks=pytest.mark.slow),
        pytest.param("out", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("x.npz", signal.SIGKILL, -9, marks=pytest.mark.long),
    ],
)
def test_a_stopped_command_goes_on(name, sent, code, tmp_path):
    torch.manual_seed(0)
    fit(tmp_path / "run", 1)
    checkpoint = last_checkpoint(tmp_path / "run")
    long = ("--sampler.steps=100", "--n=40")
    command = words(checkpoint, tmp_path / name, *long)
    call = [sys.executable, "-m", "ddpm_lightning", *command]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / (f"{name}.samples" if name.endswith("npz") else name)
    end = time.monotonic() + 120
    while len(list(folder.glob("*.png"))) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(sent)
    errors = process.communicate()[1]
    assert process.returncode == code
    if sent == signal.SIGTERM:
        assert errors.endswith("\nstopped by SIGTERM\n")
        assert not list(folder.glob("*.part"))
    drawn = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert 6 <= len(drawn) < 40
    main(command)
    main(words(checkpoint, tmp_path / f"whole-{name}", *long))
    if name == "out":
        kept = {path: (folder / path).stat().st_mtime_ns for path in drawn}
        assert sum(kept[path] != drawn[path] for path in drawn) <= 2  # the batch it was in
        assert files(tmp_path / name) == files(tmp_path / f"whole-{name}")
    else:
        with np.load(tmp_path / name) as a, np.load(tmp_path / f"whole-{name}") as b:
            assert np.array_equal(a["arr_0"], b["arr_0"])
