"""FSDP2 on two CPU processes trains, logs, draws and saves what one process does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import DiT, UNet
from ddpm_lightning.sharding import blocks_of, check_sharding
from tests.small import TinyUNet, events, fit, image_spec

SHARDS: dict[str, Any] = {
    "data_parallel_size": 2,
    "tensor_parallel_size": 1,
    "save_distributed_checkpoint": False,
}
FSDP_CONFIG = Path(__file__).parents[1] / "configs" / "trainer" / "fsdp.yaml"


def run(folder: Path, kind: str, steps: int, accumulate: int, precision: str, resume: bool):
    """Train on one process or on two, with clipping, validation, grids and metrics."""
    from ddpm_lightning.callbacks import GenerativeMetrics, LossByTimestep, SampleGrid
    from ddpm_lightning.callbacks import TrainingMonitor as Monitor
    from ddpm_lightning.diffusion import Linear
    from ddpm_lightning.diffusion.samplers import DDIM
    from ddpm_lightning.metrics import LeNet

    strategies = {"one": "auto", "ddp": "ddp", "fsdp": ModelParallelStrategy(**SHARDS)}
    few = DDIM(2)
    fit(
        folder,
        steps,
        SampleGrid(every_n_steps=3, n=5, sampler=few, guidance=1.5),
        GenerativeMetrics(
            LeNet(),
            every_n_steps=3,
            n=19,
            sampler=few,
            weights="both",
            batch_size=4,
            cache=str(folder.parent / "cache"),
        ),
        LossByTimestep(),
        Monitor(),
        resume=resume,
        run={
            "devices": 1 if kind == "one" else 2,
            "strategy": strategies[kind],
            "accumulate_grad_batches": accumulate,
            "precision": precision,
            "gradient_clip_val": 0.05,  # below the norms, so that it acts
            "val_check_interval": 3 * accumulate,
            "limit_val_batches": 2,
            "log_every_n_steps": 1,
            "logger": TensorBoardLogger(folder, name="", version=""),
        },
        net=partial(TinyUNet, dropout=0.0),  # whose masks are each process' own
        conditional=True,
        schedule=Linear(25),
    )


def start(
    folder: Path,
    kind: str,
    steps: int = 6,
    accumulate: int = 1,
    precision: str = "32-true",
    resume: bool = False,
) -> Path:
    words = [str(folder), kind, str(steps), str(accumulate), precision, str(int(resume))]
    command = [sys.executable, "-m", "tests.test_fsdp", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, by their path."""
    items = value.items() if isinstance(value, dict) else None
    items = enumerate(value) if isinstance(value, list | tuple) else items
    if items is None:
        yield path, value
        return
    for key, part in items:
        yield from flat(part, f"{path}/{key}")


def logged(folder: Path) -> dict[tuple[str, int], float]:
    """Every logged value by tag and step, but the speed and what a finished part of a run logs."""
    found = events(folder)
    return {
        (tag, event.step): event.value
        for tag in found.Tags()["scalars"]
        for event in found.Scalars(tag)
        if tag != "train/images_per_second" and not tag.startswith("final/")
    }


def tensors(checkpoint: dict[str, Any], part: str) -> dict[str, torch.Tensor]:
    return {name: v for name, v in flat(checkpoint[part]) if isinstance(v, torch.Tensor)}


def assert_alike(one: Path, other: Path, what: str, tolerance: float, capsys) -> None:
    """Equal keys and settings of the checkpoints, tensors and logged values to a tolerance."""
    ours, theirs = saved(one), saved(other)
    assert ours.keys() == theirs.keys()
    lines = []
    for part in ("state_dict", "optimizer_states"):
        assert [k for k, _ in flat(ours[part])] == [k for k, _ in flat(theirs[part])]
        a, b = tensors(ours, part), tensors(theirs, part)
        assert a.keys() == b.keys()
        assert [a[k].dtype for k in a] == [b[k].dtype for k in a]
        errors = {k: float((a[k].double() - b[k].double()).abs().max()) for k in a}
        lines.append(f"{part} {max(errors.values()):.2g}")
        assert max(errors.values()) <= tolerance, max(errors, key=errors.__getitem__)
    settings = [dict(flat([c["optimizer_states"], c["lr_schedulers"]])) for c in (ours, theirs)]
    for a, b in zip(*(s.items() for s in settings), strict=True):
        if a[0].endswith("/fused"):  # which kernel makes the steps: shards have none
            continue
        assert isinstance(a[1], torch.Tensor) or a == b
    mine, others = logged(one), logged(other)
    assert mine.keys() == others.keys()
    assert {"val/loss_ema", "train/grad_norm", "fd"} <= {tag for tag, _ in mine}
    differences = {
        key: abs(value - others[key]) / max(1.0, abs(value)) for key, value in mine.items()
    }
    worst = max(differences, key=differences.__getitem__)
    lines.append(f"{len(differences)} logged values {differences[worst]:.2g} ({worst[0]})")
    with capsys.disabled():
        print(f"\n{what}: largest difference of {', '.join(lines)}")
    assert differences[worst] <= max(tolerance, 1e-5) * 10


@pytest.mark.parametrize(
    "accumulate",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)],
)
def test_two_processes_with_shards_train_and_log_as_one(accumulate, tmp_path, capsys):
    one = start(tmp_path / "one", "one", accumulate=accumulate)
    two = start(tmp_path / "two", "fsdp", accumulate=accumulate)
    what = f"1 process against 2 with shards, accumulation {accumulate}"
    assert_alike(one, two, what, 1e-6, capsys)
    names = [sorted(path.name for path in (root / "samples").iterdir()) for root in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.startswith("ddim"):
            a, b = (np.asarray(Image.open(r / "samples" / name), dtype=int) for r in (one, two))
            assert np.abs(a - b).max() <= 2


@pytest.mark.long
def test_a_run_goes_on_from_ddp_to_shards_to_one_process(tmp_path, capsys):
    undisturbed = start(tmp_path / "one", "one", 9)
    moved = start(tmp_path / "moved", "ddp", 3)
    start(moved, "fsdp", 6, resume=True)
    start(moved, "one", 9, resume=True)
    assert_alike(undisturbed, moved, "DDP → shards → 1 process", 1e-6, capsys)


@pytest.mark.long
def test_a_run_goes_on_from_one_process_to_shards_to_ddp(tmp_path, capsys):
    undisturbed = start(tmp_path / "one", "one", 9)
    moved = start(tmp_path / "moved", "one", 3)
    start(moved, "fsdp", 6, resume=True)
    start(moved, "ddp", 9, resume=True)
    assert_alike(undisturbed, moved, "1 process → shards → DDP", 1e-6, capsys)


@pytest.mark.long
def test_shards_train_and_resume_in_bfloat16(tmp_path, capsys):
    one = start(tmp_path / "one", "one", precision="bf16-mixed")
    two = start(tmp_path / "two", "fsdp", 3, precision="bf16-mixed")
    start(two, "fsdp", precision="bf16-mixed", resume=True)
    assert_alike(one, two, "bf16-mixed, shards with a resume", 2e-2, capsys)
    assert {t.dtype for t in tensors(saved(two), "state_dict").values()} == {torch.float32}


@pytest.mark.long
def test_the_config_trains_validates_resumes_and_samples(tmp_path):
    root = tmp_path / "run"
    words = ["--config=configs/digits.yaml", f"--config={FSDP_CONFIG}"]
    words += [f"--trainer.default_root_dir={root}", "--trainer.accelerator=cpu"]
    words += ["--data.global_batch_size=8", "--data.subset=64", "--trainer.val_check_interval=2"]
    words += ["--model.net.channels=8", "--model.net.blocks=1", "--trainer.limit_val_batches=2"]
    words += ["--metrics=null", "--grid.n=4", "--grid.sampler.steps=2", "--grid.frames=0"]
    cli("fit", *words, "--trainer.max_steps=2")
    cli("fit", *words, "--trainer.max_steps=4", "--ckpt_path=last")
    for command in ("validate", "test"):
        cli(command, *words, "--ckpt_path=last", "--trainer.limit_test_batches=2")
    out = tmp_path / "samples"
    ckpt = root / "checkpoints" / "last.ckpt"
    main(["sample", f"--ckpt={ckpt}", f"--out={out}", "--n=4", "--sampler=DDIM"])
    assert len(list(out.glob("0*.png"))) == 4
    assert saved(root)["global_step"] == 4


def cli(*words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "ddpm_lightning", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr


@pytest.mark.parametrize(
    ("settings", "changes", "compiles", "words"),
    [
        ({"precision": "bf16-true"}, {}, False, "--trainer.precision 32-true or bf16-mixed"),
        ({}, {"save_distributed_checkpoint": True}, False, "save_distributed_checkpoint false"),
        ({"precision": "16-true"}, {}, False, "--trainer.precision 32-true or bf16-mixed"),
        ({}, {"tensor_parallel_size": 2}, False, "tensor_parallel_size 1"),
        ({}, {"tensor_parallel_size": "auto"}, False, "tensor_parallel_size 1"),
        ({}, {}, True, "--model.compile false"),
    ],
)
def test_what_does_not_work_with_shards_is_refused(settings, changes, compiles, words):
    strategy = ModelParallelStrategy(**SHARDS | changes)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, **settings)
    with pytest.raises(InputError, match=words):
        check_sharding(trainer, compiles)


def test_the_blocks_that_repeat_are_sharded_on_their_own():
    data = image_spec(size=16)
    net = UNet(data, 1, channels=8, multipliers=[1, 2], blocks=1, groups=4)
    names = {module: name for name, module in net.named_modules()}
    assert [names[block] for block in blocks_of(net)] == [
        "down.0.blocks.0",
        "down.1.blocks.0",
        "mid.0",
        "mid.1",
        "up.0.blocks.0",
        "up.0.blocks.1",
        "up.1.blocks.0",
        "up.1.blocks.1",
    ]
    assert len(list(blocks_of(DiT(data, 1, depth=3, width=16, heads=2)))) == 3


if __name__ == "__main__":
    place, kind, steps, accumulate, precision, resume = sys.argv[1:]
    run(Path(place), kind, int(steps), int(accumulate), precision, bool(int(resume)))
