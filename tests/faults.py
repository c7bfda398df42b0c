"""Faults of disks, files and settings, injected; prints what the user sees and what is lost.

    python -m tests.faults [NAME …]

Full disks are tmpfs mounts, read-only folders are bind mounts: both need root, or a namespace
(``unshare -m -r python -m tests.faults``); where mounting is refused those faults are skipped,
with the reason. Exit code 1 if a fault shows a traceback, more than one line or exit code 0, or
costs something that it should not.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback

from ddpm_lightning.cli import main
from ddpm_lightning.data import Digits
from ddpm_lightning.images import write_npz, write_png
from ddpm_lightning.run_folder import last_checkpoint
from tests.make_data import write_mnist
from tests.test_cli import tiny_run

FAULTS: dict[str, tuple[str, Callable[[Path], Seen]]] = {}
"""By name: what is injected, and the function that does so in an empty folder."""


class Seen(NamedTuple):
    """What became of a command.

    Attributes:
        code: Its exit code; 1 with a traceback.
        line: The line that it ended with.
        lost: What is lost or left behind; empty: nothing.
    """

    code: int
    line: str
    lost: str = ""


class Skipped(Exception):
    """The fault cannot be injected here."""


class Filler(Callback):
    """Fills the file system of the run after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            fill(Path(trainer.default_root_dir))


def fill(folder: Path) -> None:
    try:
        with (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


def fault(injected: str) -> Callable[[Callable[[Path], Seen]], Callable[[Path], Seen]]:
    """Enter a function into the table, by its name."""

    def enter(function: Callable[[Path], Seen]) -> Callable[[Path], Seen]:
        FAULTS[function.__name__.replace("_", " ")] = injected, function
        return function

    return enter


def run(*words: object) -> Seen:
    """Run a command line in this process."""
    output, errors = io.StringIO(), io.StringIO()
    code, crash = 0, ""
    with redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception as error:  # a traceback
            code, crash = 1, f"TRACEBACK {type(error).__name__}: {error}"
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    return Seen(code, crash or " / ".join(lines))


def trained(root: Path, *more: str, steps: int = 4) -> Seen:
    return run("fit", *tiny_run(root, *more, max_steps=steps))


def checkpoint() -> Path:
    """The checkpoint of a run of four steps, trained once."""
    root = Path(tempfile.gettempdir()) / f"ddpm_lightning_faults_{os.getpid()}"
    if not last_checkpoint(root).exists():
        assert trained(root).code == 0
    return last_checkpoint(root)


def sampled(out: Path, *more: object, n: int = 40) -> Seen:
    few = ("--sampler=DDIM", "--sampler.steps=2", "--batch_size=4", "--device=cpu")
    return run("sample", f"--ckpt={checkpoint()}", f"--out={out}", f"--n={n}", *few, *more)


def scored(out: Path, samples: Path, reference: Path) -> Seen:
    extractor = "--extractor=tests.small.Coarse"
    return run(
        "score",
        *(f"--samples={samples}", f"--reference.folder={reference}", extractor),
        *(f"--out={out}", "--device=cpu"),
    )


def digits(folder: Path, count: int = 20) -> Path:
    for k, image in enumerate(Digits().images("train")[0][:count]):
        write_png(folder / f"{k:06d}.png", image)
    return folder


def saved_step(root: Path) -> str:
    """Whether the last checkpoint is whole, and of which step."""
    try:
        return str(torch.load(last_checkpoint(root), weights_only=True)["global_step"])
    except Exception as error:
        return f"none ({error})"


def half_written(folder: Path) -> str:
    left = [path.name for path in folder.rglob("*.part")]
    return f"left behind: {', '.join(left)}" if left else ""


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """Mount a file system; Skipped where that is refused."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mount is refused: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def small_disk(place: Path, size: str) -> AbstractContextManager[Path]:
    return mounted(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


# ------------------------------------------------------------------------------- full disks


@fault("a tmpfs of 16 MB is filled in step 2, before its grid is drawn and it is saved")
def full_disk_at_a_picture(folder: Path) -> Seen:
    with small_disk(folder / "disk", "16m") as disk:
        seen = trained(
            disk / "run",
            "--trainer.callbacks=[{class_path: tests.faults.Filler, init_args: {step: 2}}]",
            *("--checkpoint.every_n_steps=1", "--grid.every_n_steps=2", "--grid.n=4"),
            *("--grid.sampler=DDIM", "--grid.sampler.steps=2"),
        )
        step = saved_step(disk / "run")  # the one under way is made again
        lost = "" if step == "1" else f"saved step is {step}, not 1"
        return seen._replace(lost=lost or half_written(disk))


@fault("a tmpfs of 16 MB is filled in step 2, before metrics.json is written and it is saved")
def full_disk_at_metrics(folder: Path) -> Seen:
    with small_disk(folder / "disk", "16m") as disk:
        seen = trained(
            disk / "run",
            "--trainer.callbacks=[{class_path: tests.faults.Filler, init_args: {step: 2}}]",
            *("--checkpoint.every_n_steps=1", "--metrics=GenerativeMetrics"),
            *("--metrics.every_n_steps=2", "--metrics.n=20", "--metrics.neighbours=0"),
            *("--metrics.extractor=tests.small.Coarse", "--metrics.sampler=DDIM"),
            *("--metrics.sampler.steps=2", f"--metrics.cache={folder / 'cache'}"),
        )
        step = saved_step(disk / "run")  # the one under way is made again
        lost = "" if step == "1" else f"saved step is {step}, not 1"
        return seen._replace(lost=lost or half_written(disk))


@fault(
    "a tmpfs of 16 MB is filled in step 3; TensorBoard logs every step, every second one is saved"
)
def full_disk_at_events(folder: Path) -> Seen:
    with small_disk(folder / "disk", "16m") as disk:
        seen = trained(
            disk / "run",
            "--trainer.callbacks=[{class_path: tests.faults.Filler, init_args: {step: 3}}]",
            *("--checkpoint.every_n_steps=2", "--trainer.log_every_n_steps=1"),
            steps=5,
        )
        step = saved_step(disk / "run")
        return seen._replace(lost="" if step == "2" else f"saved step is {step}, not 2")


@fault("a tmpfs of 100 KB; then it is made larger and the command is given again")
def full_disk_at_samples(folder: Path) -> Seen:
    with small_disk(folder / "disk", "100k") as disk:
        seen = sampled(disk / "out")
        left = half_written(disk)
        drawn = len(list((disk / "out").glob("*.png")))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        again = sampled(disk / "out")
        sampled(folder / "whole")
        a, b = (
            {p.name: p.read_bytes() for p in at.iterdir()}
            for at in (disk / "out", folder / "whole")
        )
        lost = left or ("" if drawn else "nothing was drawn before it was full")
        lost = lost or (f"the second command: {again}" if again.code else "")
        return seen._replace(lost=lost or ("" if a == b else "another result than undisturbed"))


@fault("a tmpfs of 100 KB for an .npz")
def full_disk_at_an_archive(folder: Path) -> Seen:
    with small_disk(folder / "disk", "100k") as disk:
        seen = sampled(disk / "x.npz")
        return seen._replace(lost=half_written(disk))


@fault("a tmpfs that is full, for the results of score")
def full_disk_at_results(folder: Path) -> Seen:
    a, b = digits(folder / "a"), digits(folder / "b", 40)
    with small_disk(folder / "disk", "64k") as disk:
        fill(disk)
        seen = scored(disk / "out", a, b)
        return seen._replace(lost=half_written(disk))


# ------------------------------------------------------------------------- read-only folders


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    place = folder / "ro"
    place.mkdir()
    with mounted(place, "--bind", str(place)):
        done = subprocess.run(
            ["mount", "-o", "remount,ro,bind", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            raise Skipped(f"mount is refused: {done.stderr.strip()}")
        yield place


@fault("a bind mount that is read-only, as the run folder")
def read_only_run_folder(folder: Path) -> Seen:
    with read_only(folder) as place:
        return trained(place / "run")


@fault("a bind mount that is read-only, as --out of sample")
def read_only_samples(folder: Path) -> Seen:
    with read_only(folder) as place:
        return sampled(place / "out")


@fault("a bind mount that is read-only, as --out of score")
def read_only_results(folder: Path) -> Seen:
    a, b = digits(folder / "a"), digits(folder / "b", 40)
    with read_only(folder) as place:
        return scored(place / "out", a, b)


# ----------------------------------------------------------------- truncated and flipped files


def spoiled(path: Path, flip: bool) -> Path:
    content = bytearray(path.read_bytes())
    if flip:
        content[len(content) // 2] ^= 0x10
    else:
        del content[len(content) * 2 // 3 :]
    path.write_bytes(content)
    return path


def _untouched(out: Path) -> str:
    return f"{out.name} is there" if out.exists() else ""


@fault("one PNG of a folder is cut to two thirds")
def truncated_image(folder: Path) -> Seen:
    a, b = digits(folder / "a"), digits(folder / "b", 40)
    spoiled(a / "000003.png", flip=False)
    return scored(folder / "out", a, b)._replace(lost=_untouched(folder / "out"))


@fault("a bit of one PNG of a folder is flipped")
def flipped_image(folder: Path) -> Seen:
    a, b = digits(folder / "a"), digits(folder / "b", 40)
    spoiled(a / "000003.png", flip=True)
    return scored(folder / "out", a, b)._replace(lost=_untouched(folder / "out"))


@fault("an .npz of samples is cut to two thirds")
def truncated_archive(folder: Path) -> Seen:
    write_npz(folder / "a.npz", Digits().images("train")[0][:20])
    spoiled(folder / "a.npz", flip=False)
    seen = scored(folder / "out", folder / "a.npz", digits(folder / "b", 40))
    return seen._replace(lost=_untouched(folder / "out"))


@fault("a bit of an .npz of samples is flipped")
def flipped_archive(folder: Path) -> Seen:
    write_npz(folder / "a.npz", Digits().images("train")[0][:20])
    spoiled(folder / "a.npz", flip=True)
    seen = scored(folder / "out", folder / "a.npz", digits(folder / "b", 40))
    return seen._replace(lost=_untouched(folder / "out"))


@fault("MNIST's gzipped images are cut to two thirds")
def truncated_data(folder: Path) -> Seen:
    write_mnist(folder / "data", train=200, test=50)
    for path in list((folder / "data").rglob("*ubyte")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    spoiled(folder / "data/MNIST/raw/train-images-idx3-ubyte.gz", flip=False)
    more = ("--data=MNIST", f"--data.root={folder / 'data'}", "--data.held_out=20")
    return trained(folder / "run", *more)


def _resumed_beside(folder: Path, name: str, content: bytes) -> Seen:
    """Resume a run with a damaged file in its folder; the checkpoint must stay as it is."""
    root = folder / "run"
    shutil.copytree(checkpoint().parent.parent, root)
    (root / name).write_bytes(content)
    before = last_checkpoint(root).read_bytes()
    seen = trained(root, "--ckpt_path=last", steps=6)
    same = last_checkpoint(root).read_bytes() == before
    return seen._replace(lost="" if same else "the checkpoint has changed")


@fault("metrics.json of a run is cut short")
def damaged_metrics(folder: Path) -> Seen:
    return _resumed_beside(folder, "metrics.json", b'[{"format": 1, "step')


@fault("samples.json of a folder to go on with is cut short")
def damaged_settings_of_samples(folder: Path) -> Seen:
    sampled(folder / "out", n=8)
    (folder / "out" / "000005.png").unlink()
    spoiled(folder / "out" / "samples.json", flip=False)
    seen = sampled(folder / "out", n=8)
    left = len(list((folder / "out").glob("0*.png")))
    return seen._replace(lost="" if left == 7 else f"{left} samples are left of 7")


@fault("results.json is cut to two thirds")
def damaged_results(folder: Path) -> Seen:
    scored(folder / "out", digits(folder / "a"), digits(folder / "b", 40))
    spoiled(folder / "out" / "results.json", flip=False)
    return run("compare", folder / "out", folder / "out")


# ----------------------------------------------------------------------------- settings


def config(folder: Path, text: str) -> Seen:
    (folder / "c.yaml").write_text(text)
    return run("fit", *tiny_run(folder / "run"), f"--config={folder / 'c.yaml'}")


@fault("a key stands twice in a config file")
def key_twice(folder: Path) -> Seen:
    return config(folder, "trainer:\n  max_steps: 3\n  max_epochs: 1\n  max_steps: 9\n")


@fault("aliases in a config file that multiply to 10^9 values")
def alias_bomb(folder: Path) -> Seen:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]
    return config(folder, "\n".join(lines))


@fault("--ckpt_path= (an empty variable of the shell)")
def empty_checkpoint(folder: Path) -> Seen:
    return trained(folder / "run", "--ckpt_path=")


@fault("--trainer.default_root_dir= (an empty variable of the shell)")
def empty_run_folder(folder: Path) -> Seen:
    return trained(folder / "run", "--trainer.default_root_dir=")


@fault("$VARIABLE that is not set in default_root_dir")
def unset_variable(folder: Path) -> Seen:
    return trained(folder / "run", "--trainer.default_root_dir=$NOT_SET_ANYWHERE/run")


@fault("a path of 300 characters")
def long_run_folder(folder: Path) -> Seen:
    return trained(folder / ("a" * 300))


@fault("a path of 300 characters")
def long_out(folder: Path) -> Seen:
    return sampled(folder / ("a" * 300))


@fault("a path of 300 characters")
def long_checkpoint(folder: Path) -> Seen:
    return run("sample", f"--ckpt={'a' * 300}", f"--out={folder / 'out'}")


@fault("s3://bucket/run as the run folder")
def address_as_run_folder(folder: Path) -> Seen:
    return trained(folder / "run", "--trainer.default_root_dir=s3://bucket/run")


@fault("check_val_every_n_epoch 0")
def no_validation_interval(folder: Path) -> Seen:
    return trained(folder / "run", "--trainer.check_val_every_n_epoch=0")


@fault("groups 2147483648")
def impossible_groups(folder: Path) -> Seen:
    return trained(folder / "run", "--model.net.groups=2147483648")


@fault("T 10^12")
def impossible_levels(folder: Path) -> Seen:
    return trained(folder / "run", "--model.schedule.T=1000000000000")


@fault("60,000 channels, 9 blocks a level: terabytes of weights")
def impossible_network(folder: Path) -> Seen:
    return trained(folder / "run", "--model.net.channels=60000", "--model.net.blocks=9")


@fault("an image_size of 1,000,000")
def impossible_image_size(folder: Path) -> Seen:
    return trained(folder / "run", "--data.image_size=1000000")


@fault("SampleGrid named ../other")
def name_that_leaves_the_run(folder: Path) -> Seen:
    seen = trained(folder / "run", "--grid.n=4", "--grid.name=../other")
    return seen._replace(lost=_untouched(folder / "other"))


@fault("the logger's package is not installed (WandbLogger)")
def tracker_without_its_package(folder: Path) -> Seen:
    if shutil.which("wandb"):
        raise Skipped("wandb is installed")
    return trained(folder / "run", "--trainer.logger=WandbLogger")


@fault("OneCycleLR of 2 steps in a run of 4")
def schedule_that_ends_early(folder: Path) -> Seen:
    lr = ("--model.lr_schedule=OneCycleLR", "--model.lr_schedule.max_lr=0.01")
    more = (*lr, "--model.lr_schedule.total_steps=2", "--model.warmup_steps=0")
    return trained(folder / "run", *more)


def report(names: list[str]) -> int:
    """Inject faults, all if none are named, and print the table; the number that went wrong."""
    wrong = skipped = 0
    chosen = [name for name in FAULTS if not names or name in names]
    for name in chosen:
        injected, function = FAULTS[name]
        with tempfile.TemporaryDirectory() as folder:
            before = os.getcwd()
            os.chdir(folder)
            try:
                seen = function(Path(folder))
            except Skipped as reason:
                skipped += 1
                print(f"{name}\n    injected  {injected}\n    skipped   {reason}", flush=True)
                continue
            finally:
                os.chdir(before)
            lines = seen.line.replace(folder, "…")
        good = seen.code in (1, 2) and lines.startswith("error: ") and " / " not in lines
        good = good and not seen.lost
        wrong += not good
        print(f"{name}{'' if good else '    <-- WRONG'}\n    injected  {injected}")
        print(f"    sees      exit {seen.code}, {lines[:400]}")
        print(f"    lost      {seen.lost or 'nothing'}", flush=True)
    print(f"\n{len(chosen)} faults, {skipped} skipped, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    # The callback and the extractor are found by the name of this module.
    from tests.faults import report as imported

    sys.exit(bool(imported(sys.argv[1:])))
