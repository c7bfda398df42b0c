"""Several processes share a command's work: the files of one process, one line on errors."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.processes import Processes, ended_by_sigterm
from tests.small import tiny_data
from tests.test_cli import fail, shown

FEW = ["--sampler=DDIM", "--sampler.steps=3", "--sampler.eta=0.5", "--device=cpu"]


@pytest.mark.parametrize("n", [1, 7, 24, 31])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shares_are_all_indices_once(n, count):
    shares = [Processes(rank, count).share(n, 8) for rank in range(count)]
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(n))


def test_processes_work_on_the_batches_of_one_process():
    alone = [batch.tolist() for batch in Processes().batches(31, 8)]
    shares = [Processes(rank, 3).share(31, 8).split(8) for rank in range(3)]
    assert sorted(batch.tolist() for share in shares for batch in share) == alone


def test_every_process_gets_samples_where_one_batch_would_hold_them():
    assert [len(Processes(rank, 3).share(64, 256)) for rank in range(3)] == [22, 22, 20]


def test_the_two_dashes_that_end_torchruns_flags_may_stand_first(capsys):
    assert "--devices" in shown(capsys, "--", "sample", "--help")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_ends_at_sigterm_as_children_do(capfd):
    ready, tell = os.pipe()
    with ended_by_sigterm():
        child = os.fork()
        if not child:
            os.write(tell, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)  # because a child that begins forgets the signals it has
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_fewer_than_one_process_is_refused(capsys, tmp_path):
    line = fail(capsys, "sample", "--ckpt=a.ckpt", f"--out={tmp_path}", "--devices=0")
    assert line == "error: --devices 0: give 1 or more"


@pytest.mark.slow
def test_two_processes_that_the_command_starts_draw_the_files_of_one(tiny_checkpoint, tmp_path):
    words = ["sample", f"--ckpt={tiny_checkpoint}", "--n=11", "--batch_size=4", *FEW]
    main([*words, f"--out={tmp_path / 'one'}"])
    main([*words, f"--out={tmp_path / 'two'}", "--devices=2"])
    assert_same_files(tmp_path / "one", tmp_path / "two")


def assert_same_files(one: Path, other: Path) -> None:
    names = [
        sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())
        for root in (one, other)
    ]
    assert names[0] == names[1]
    assert names[0]
    measured = [name for name in names[0] if name.endswith(".json")]
    others = [name for name in names[0] if name not in measured]
    assert not filecmp.cmpfiles(one, other, others, shallow=False)[1]
    for name in measured:  # whose last digits depend on the number of threads
        assert_same_values(*(json.loads((root / name).read_text()) for root in (one, other)))


def assert_same_values(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_values(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same_values(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6, abs=0)
    else:
        assert one == other


# ------------------------------------------------- in processes started like those of a user


def command(*words: str, torchrun: int = 0) -> list[str]:
    program = [sys.executable, "-m"]
    if torchrun:
        program += ["torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}", "-m"]
    return [*program, "ddpm_lightning", *(["--"] if torchrun else []), *words]


def run(*words: str, torchrun: int = 0, code: int = 0) -> tuple[str, str]:
    """Run a command line; return what it printed on standard output and on standard error."""
    done = subprocess.run(
        command(*words, torchrun=torchrun), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout, done.stderr


@pytest.fixture
def own_cache(monkeypatch):
    """Let the next commands compute the features of real images anew, in a folder of their own."""

    def use(folder: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

    return use


@pytest.mark.slow
def test_samples_and_their_way_are_the_same_from_one_two_and_three_processes(
    lively_checkpoint, tmp_path
):
    words = ["sample", f"--ckpt={lively_checkpoint}", "--n", "37", "--batch_size=5", *FEW]
    words += ["--grid.frames=3", "--guidance=1.5"]
    printed = [
        run(*words, f"--out={tmp_path / 'one'}")[0],
        run(*words, f"--out={tmp_path / 'two'}", torchrun=2)[0],
        run(*words, f"--out={tmp_path / 'three'}", "--devices=3")[0],
    ]
    for text, name in zip(printed, ("one", "two", "three"), strict=True):
        assert text.splitlines() == [
            f"37 samples in {tmp_path / name}, all of them in {tmp_path / name}/grid.png, "
            "NFE 6 each"
        ]
        assert_same_files(tmp_path / "one", tmp_path / name)


@pytest.mark.long
def test_one_batch_cut_for_two_processes_changes_the_last_bits_at_most(
    lively_checkpoint, tmp_path, capsys
):
    words = ["sample", f"--ckpt={lively_checkpoint}", "--n=32", *FEW]
    run(*words, f"--out={tmp_path / 'one'}")
    run(*words, f"--out={tmp_path / 'two'}", "--devices=2")
    differences = [
        np.abs(pixels(tmp_path / "one" / name) - pixels(tmp_path / "two" / name)).max()
        for name in sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    ]
    with capsys.disabled():
        print(f"\nlargest difference of {len(differences)} files: {max(differences)} of 255")
    assert max(differences) <= 1


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.long
@pytest.mark.parametrize(
    "edit", [["RePaint", "--edit.jump=2"], ["SDEdit"], ["Interpolate", "--sampler.eta=0"]]
)
def test_edits_are_the_same_from_two_processes(edit, lively_checkpoint, tmp_path):
    images = tiny_data().finished("train", 2).x0
    for name, x in zip(("a.png", "b.png"), images, strict=True):
        write_png(tmp_path / name, to_uint8(x))
    write_png(tmp_path / "mask.png", to_uint8((images[0] > 0) * 2.0 - 1))
    kind, *flags = edit
    files = {"RePaint": ["image=a.png", "mask=mask.png"], "SDEdit": ["image=a.png"]}
    for flag in files.get(kind, ["first=a.png", "second=b.png"]):
        name, _, file = flag.partition("=")
        flags.append(f"--edit.{name}={tmp_path / file}")
    words = ["sample", f"--ckpt={lively_checkpoint}", f"--edit={kind}", "--n=7", "--batch_size=3"]
    main([*words, *FEW, *flags, f"--out={tmp_path / 'one'}"])
    main([*words, *FEW, *flags, f"--out={tmp_path / 'two'}", "--devices=2"])
    assert_same_files(tmp_path / "one", tmp_path / "two")


SCORED = ["--reference.data=Digits", "--metrics=fd,kid,pr,accuracy,bpd", "--batch_size=50"]


@pytest.mark.parametrize(
    "torchrun",
    [pytest.param(0, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.slow)],
)
def test_two_processes_evaluate_as_one(torchrun, lively_checkpoint, tmp_path, own_cache):
    words = ["evaluate", f"--ckpt={lively_checkpoint}", "--n=201", *SCORED, *FEW]
    own_cache(tmp_path / "cache_of_one")
    main([*words, f"--out={tmp_path / 'one'}"])
    own_cache(tmp_path / "cache_of_two")
    devices = [] if torchrun else ["--devices=2"]
    out, _ = run(*words, f"--out={tmp_path / 'two'}", *devices, torchrun=torchrun)
    assert out.count("201 samples against 1350 real images") == 1
    assert_same_files(tmp_path / "one", tmp_path / "two")
    kept = (tmp_path / cache / "ddpm_lightning" for cache in ("cache_of_one", "cache_of_two"))
    assert_same_files(*kept)


@pytest.mark.long
def test_two_processes_sweep_score_and_measure_as_one(
    lively_checkpoint, tmp_path, own_cache, monkeypatch
):
    """sweep, score, floor and analytic_variance."""
    for name, more in (("one", []), ("two", ["--devices=2"])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("model.ckpt").write_bytes(lively_checkpoint.read_bytes())
        own_cache(tmp_path / f"cache_of_{name}")
        more += ["--batch_size=20", "--device=cpu"]
        samplers = ["--evaluations=[2,4]", "--samplers=[DDIM]"]
        sweep = ["sweep", "--ckpt=model.ckpt", "--n=60", *samplers, *SCORED[:1]]
        main([*sweep, "--metrics=fd,bpd", "--out=sweep", *more])
        main(["analytic_variance", "--ckpt=model.ckpt", "--n=3", *more])
        main(["score", "--samples=sweep/DDIM_2/samples", SCORED[0], "--out=score", *more])
        main(["floor", SCORED[0], "--sizes=[300]", "--out=floor", *more])
    assert_same_files(tmp_path / "one", tmp_path / "two")


def children(pid: int) -> list[int]:
    """The processes that share a command's work, by the process that started them."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in listed if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def start_evaluation(ckpt: Path, out: Path) -> tuple[subprocess.Popen, list[int]]:
    """Start a long evaluation by two processes; return when both have drawn some samples."""
    words = ["evaluate", f"--ckpt={ckpt}", f"--out={out}", "--n=400", "--batch_size=10"]
    words += ["--metrics=fd", SCORED[0], "--sampler=DDPM", "--device=cpu", "--devices=2"]
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(list(out.glob("samples/*.png"))) < 40:
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, children(process.pid)


def gone(pid: int) -> bool:
    """Whether a process ends within a minute."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("which", [0, 1])
def test_an_evaluation_goes_on_where_the_end_of_one_process_stopped_it(
    which, lively_checkpoint, tmp_path
):
    process, workers = start_evaluation(lively_checkpoint, tmp_path / "two")
    os.kill(workers[which], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    lines = [x for x in errors.replace("\r", "\n").splitlines() if "error" in x.lower()]
    assert len(lines) == 1, errors[-2000:]
    assert lines[0].startswith(f"error: process {which + 1} of 2 was ended by signal 9")
    assert all(map(gone, workers))
    drawn = len(list((tmp_path / "two" / "samples").glob("*.png")))
    assert 0 < drawn < 400
    words = ["evaluate", f"--ckpt={lively_checkpoint}", "--n=400", "--batch_size=10"]
    words += ["--metrics=fd", SCORED[0], "--sampler=DDPM", "--device=cpu"]
    main([*words, f"--out={tmp_path / 'two'}", "--devices=2"])
    main([*words, f"--out={tmp_path / 'one'}"])
    for part in (tmp_path / "two").rglob("*.part"):  # of the file that was being written
        part.unlink()
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_process_outlives_the_one_that_started_it(sent, code, lively_checkpoint, tmp_path):
    process, workers = start_evaluation(lively_checkpoint, tmp_path / "out")
    process.send_signal(sent)
    assert all(map(gone, workers))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors


@pytest.mark.long
@pytest.mark.parametrize("torchrun", [0, 2])
def test_an_error_of_all_processes_is_one_line(torchrun, tmp_path):
    devices = [] if torchrun else ["--devices=2"]
    words = ["sample", f"--ckpt={tmp_path}/none.ckpt", f"--out={tmp_path}/out", *devices]
    code = 1 if torchrun else 2
    _, errors = run(*words, torchrun=torchrun, code=code)
    assert [x for x in errors.splitlines() if "error: " in x and "ddpm" not in x]
    assert errors.count("error: no checkpoint at") == 1
    assert torchrun or errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("first_image", [0, 5])
def test_an_error_of_one_process_alone_is_one_line_and_ends_all(
    first_image, lively_checkpoint, tmp_path
):
    folder, out = tmp_path / "images", tmp_path / "out"
    for k in range(6):
        write_png(folder / f"{k}.png", torch.full((1, 8, 8), k, dtype=torch.uint8))
    data = bytearray((folder / f"{first_image}.png").read_bytes())
    data[-20:-12] = b"12345678"  # the header stays whole
    (folder / f"{first_image}.png").write_bytes(data)
    words = ["score", f"--samples={folder}", f"--out={out}", SCORED[0], "--metrics=fd"]
    _, errors = run(*words, "--batch_size=3", "--device=cpu", "--devices=2", code=2)
    lines = [x for x in errors.replace("\r", "\n").splitlines() if "error" in x.lower()]
    assert len(lines) == 1, errors[-2000:]
    assert f"{first_image}.png is damaged" in lines[0]
    assert not (out / "results.json").exists()
