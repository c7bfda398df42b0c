"""The command line, called in-process: real configs, runs in folders, and mistakes."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import signal
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.networks import Network
from tests.make_data import write_cifar10, write_mnist

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
DIGITS = str(Path(__file__).parent.parent / "configs" / "digits.yaml")

SMALL_NET = [
    "--model.net.channels=8",
    "--model.net.groups=4",
    "--model.net.blocks=1",
]


def tiny_run(root: Path, *more: str, max_steps: int = 2) -> list[str]:
    """Flags that shrink configs/digits.yaml to seconds, without its callbacks."""
    return [
        "--config",
        DIGITS,
        *SMALL_NET,
        f"--trainer.max_steps={max_steps}",
        f"--trainer.default_root_dir={root}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks=[]",
        "--model.conditional=false",
        "--trainer.limit_val_batches=1",
        "--data.global_batch_size=8",
        *more,
    ]


SHRUNK = {
    "UNet": {"channels": 8, "groups": 4, "blocks": 1},
    "MLP": {"width": 8},
    "DiT": {"patch": 4, "width": 16, "depth": 1, "heads": 2},
}


def fail(capsys, *args: str) -> str:
    """Run, expect exit code 2, and return the one line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    return errors[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a two-step run on the digits."""
    root = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_run(root)])
    return root


@pytest.fixture(scope="module")
def conditional_checkpoint(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("conditional")
    main(["fit", *tiny_run(root, "--model.conditional=true")])
    return str(randomised(root / "checkpoints" / "last.ckpt"))


def randomised(path: Path) -> Path:
    """Give a checkpoint random weights: two steps from a last layer of zeros say nothing."""
    checkpoint = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    for value in checkpoint["state_dict"].values():
        value.normal_(std=0.2)
    torch.save(checkpoint, path)
    return path


# -------------------------------------------------------------------------- configs


@pytest.fixture
def hub(tmp_path, monkeypatch, inception_file) -> None:
    """Torch hub's cache with random Inception weights in the published file's place."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "weights-inception-2015-12-05-6726825d.pth").symlink_to(inception_file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_runs_through_fit_validate_test_and_predict(config, tmp_path, hub):
    settings = yaml.safe_load(config.read_text())
    data = settings["data"]
    if data["class_path"] == "Conditioned":
        data = data["init_args"]["data"]
    kind = data["class_path"]
    if kind in ("MNIST", "FashionMNIST"):
        write_mnist(tmp_path / "data", kind)
    elif kind == "CIFAR10":
        write_cifar10(tmp_path / "data")
    settings["trainer"] |= {
        "default_root_dir": str(tmp_path / "run"),
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "val_check_interval": 2,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    for callback in settings["trainer"]["callbacks"]:
        init_args = callback.setdefault("init_args", {})
        if callback["class_path"] == "SampleGrid":
            init_args |= {"n": 4, "frames": 2, "sampler": few_steps(init_args["sampler"])}
        if callback["class_path"] == "GenerativeMetrics":
            init_args |= {"n": 4, "sampler": few_steps(init_args["sampler"]), "batch_size": 8}
        if callback["class_path"] == "PointMetrics":
            init_args |= {"n": 4, "sampler": few_steps(init_args["sampler"])}
    toy = kind == "Toy2D"
    net = settings["model"]["net"]
    net["init_args"] |= SHRUNK[net["class_path"]]
    settings["model"]["schedule"].setdefault("init_args", {})["T"] = 50
    data.setdefault("init_args", {})
    data["init_args"] |= {"predict_n": 2, "global_batch_size": 4}
    data["init_args"] |= {"n": 64} if toy else {"root": str(tmp_path / "data")}
    if kind not in ("Digits", "Toy2D"):
        data["init_args"] |= {"subset": 16}
        if data["init_args"].get("held_out") != 0:
            data["init_args"]["held_out"] = 20
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "--config", str(path)])
        for command in ("validate", "test", "predict"):
            main([command, "--config", str(path), "--ckpt_path", "last"])
    folder = tmp_path / "run"
    assert (folder / "config.yaml").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert list((folder / "samples").glob("*.gif"))
    assert json.loads((folder / "metrics.json").read_text())
    assert list(folder.glob("events.out.tfevents.*"))


def few_steps(sampler: dict) -> dict:
    return sampler | {"init_args": sampler.get("init_args", {}) | {"steps": 2}}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_says_where_it_comes_from(config):
    header = [line for line in config.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"fit --config configs/{config.name}" in text
    for entry in ("Source:", "Expected:", "Measured:", "Cost:"):
        assert entry in text


# ------------------------------------------------------------------------------ help


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    listed = shown[shown.index("Available subcommands") :]
    for line in (
        "fit  ",
        "predict  ",
        "sample              Draw samples from a checkpoint",
        "evaluate            Score",
        "analytic_variance   Estimate",
        "plot                Draw a figure or a strip: schedule, forward",
    ):
        assert f"\n    {line}" in listed


def test_help_of_a_class_shows_its_arguments(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--model.schedule.help", "Linear"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--model.schedule.beta_end" in shown
    assert "beta_T at 1000 levels" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["fit", "--model.schedule.help"], "model.schedule"),
        (
            ["fit", "--config", DIGITS, "--model.schedule.help", "--data", "Digits"],
            "model.schedule",
        ),
        (["plot", "forward", "--schedule.help"], "schedule"),
    ],
)
def test_help_without_a_class_lists_the_classes(args, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "  Cosine           alpha_bar follows a squared cosine" in shown
    assert "Schedule " not in shown
    assert f"--{flag}.help Cosine" in shown


@pytest.mark.parametrize(
    "args", [["--help"], ["fit", "--help"], ["fit", "--model.schedule.help", "Linear"], ["plot"]]
)
def test_help_calls_the_program_by_what_is_typed(args, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    with pytest.raises(SystemExit):
        main([*args, "--help"] if args == ["plot"] else args)
    assert capsys.readouterr().out.startswith("usage: python -m ddpm_lightning ")


def test_printed_config_is_a_config_that_gives_itself(capsys, tmp_path):
    def printed(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["fit", *args, "--print_config"])
        assert caught.value.code == 0
        return capsys.readouterr().out

    first = printed("--config", DIGITS)
    (tmp_path / "printed.yaml").write_text(first)
    assert yaml.safe_load(printed("--config", str(tmp_path / "printed.yaml"))) == yaml.safe_load(
        first
    )
    assert "Unable to serialize" not in first


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fti"], "no command 'fti'; did you mean fit?"),
        (["sampel"], "no command 'sampel'; did you mean sample?"),
        ([], "which command? One of fit, validate, test, predict, sample"),
        (["fit"], "missing: --data"),
        (["fit", "--config", DIGITS.replace("digits", "digit")], "did you mean"),
        (["--trainer.max_stepz", "3"], "--trainer.max_stepz; did you mean --trainer.max_steps?"),
        (["--model.schdule", "Cosine"], "no flag --model.schdule; did you mean --model.schedule?"),
        (["--model.net.chanels", "3"], "model.net: UNet has no argument 'chanels'; did you mean"),
        (["--model.schedule", "Cosin"], "model.schedule: no class 'Cosin'; did you mean Cosine?"),
        (["--model.schedule.TT", "3"], "Cosine has no argument 'TT'; did you mean T?"),
        (["--data", "Digit"], "data: no class 'Digit'; did you mean Digits?"),
        (["--model.optimizer", "Adm"], "model.optimizer: no class 'Adm'; did you mean Adam?"),
        (["--model.optimizer.lrr", "1"], "Adam has no argument 'lrr'; did you mean lr?"),
        (["--model.ema_decay", "abc"], "model.ema_decay: expected float, got abc"),
        (["--model.net.channels", "3.5"], "model.net.channels: expected int, got 3.5"),
        (["--trainer.precision", "17"], "'32', '16', 'bf16' or null, got 17"),
        (
            ["--model.schedule", "DDIM"],
            "model.schedule: DDIM is a Sampler, not a Schedule; choose",
        ),
        (["--model.schedule.help", "DDIM"], "DDIM is a Sampler, not a Schedule"),
        (["--model.objective.weighting", "DDIM"], "not a Weighting; choose one of EDM, EpsMSE,"),
        (
            ["--model.objective.weighting", "MinSMR"],
            "model.objective.weighting: no class 'MinSMR'",
        ),
        (["--model.optimizer.lr", "high"], "model.optimizer.lr: expected float, got high"),
        (["--model.lr_schedule", "CosineAnealingLR"], "did you mean CosineAnnealingLR?"),
        (["--model.lr_schedule", "ReduceLROnPlateau"], "ReduceLROnPlateau waits for a metric"),
        (["--model.schedule", "math.floor"], "model.schedule: math.floor is not a Schedule"),
        (["--model.net", "math.floor"], "model.net: math.floor is not a Network"),
        (["--model.num_classes", "3"], "model.num_classes comes from the data; leave it out"),
        (["--model.shape", "[1,2,3]"], "model.shape comes from the data; leave it out"),
        (["--model.seed", "3"], "model.seed follows --seed_everything; give that instead"),
        (["--seed_everything", "-1"], "error: seed_everything -1: give a number from 0"),
        (["--model.net.multipliers", "1,2"], "expected list, got 1,2; a list is one word in"),
        (["--max_steps", "3"], "no flag --max_steps; did you mean --trainer.max_steps?"),
        (["--foo", "3"], "no flag --foo; --help lists them"),
        (["--trainer.max_steps"], "--trainer.max_steps needs a value"),
        (["--trainer.max_steps", "3", "foo"], "unexpected 'foo': a value stands after its --flag"),
        (
            ["-c", DIGITS, "fit"],
            "the command comes first: python -m ddpm_lightning fit",
        ),
        (["fit", "--config", "."], "is not a file"),
        (
            ["sample", "--ckpt", "x", "--out", "o", "--sampler", "Linear"],
            "a Schedule, not a Sampler",
        ),
        (["sample", "--ckpt", "x", "--out", "o", "--labels", "1,2"], 'e.g. "[1,2]"'),
        (["sample", "--ckpt", "x", "--out", "o", "--labels", "1", "2"], 'e.g. "[1,2]"'),
        (
            ["evaluate", "--sweep.guidanc", "[1]"],
            "Sweep has no argument 'guidanc'; did you mean guidance?",
        ),
        (["--model.net", "my.module.Net"], "No module named 'my'"),
        (["--model.schedule", "Linear", "--model.schedule.T", "3"], "Linear(T=3)"),
        (["--model.net.channels", "30"], "groups"),
        (["--model.net.block", "convnet"], "model.net.block: expected one of 'residual', 'con"),
        (["--data.resize", "crop"], "data.resize: expected one of 'pad', 'bilinear', got crop"),
        (["--model.optimizer.lr", "-1"], "the optimizer cannot be made: Invalid learning rate"),
        (["--trainer.accelerator", "gpuu"], "Available names are"),
        (["--data.global_batch_size", "0"], "use 1 or more"),
        (["--seed_everything", "true"], "seed_everything True: give a number"),
        (["fit", "configs/digits.yaml"], "did you mean --config configs/digits.yaml?"),
        (["sample", "--ckpt", "x", "--out", "o", "--samplr", "DDIM"], "did you mean --sampler?"),
        (["sample", "--ckpt", "x", "--out", "o", "--sampler", "DDIN"], "did you mean DDIM?"),
        (["sample", "--ckpt", "x", "--out", "o", "--n", "many"], "n: expected int, got many"),
        (
            ["sample", "--ckpt", "x", "--out", "o", "--sampler", "DDIM", "--sampler.steps", "few"],
            "sampler.steps: expected int or null, got few",
        ),
        (["sample", "--ckpt", "nowhere.ckpt", "--out", "o"], "no checkpoint at nowhere.ckpt"),
        (["sample", "--ckpt", ".", "--out", "o"], ". is a folder, not a checkpoint"),
        (["sample"], "missing: --ckpt, --out"),
        (["--trainer.max_step", "3"], "no flag --trainer.max_step; did you mean --trainer.max_st"),
        (["sample", "--ck", "x", "--out", "o"], "no flag --ck; did you mean --ckpt?"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_the_fix(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if args and args[0].startswith("--"):
        args = ["fit", *tiny_run(tmp_path / "run"), *args]
    assert message in fail(capsys, *args)


def test_a_mistake_in_a_config_file_names_the_nearest_setting(capsys, tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text(Path(DIGITS).read_text().replace("max_steps:", "max_step:"))
    assert "did you mean trainer.max_steps?" in fail(capsys, "fit", "--config", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "settings.yaml is empty"),
        (b"just words", "settings.yaml holds no settings (name: value)"),
        (b"\x89PNG", "settings.yaml is not a text file of settings"),
        (b"trainer:\n\tmax_steps: 3\n", "settings.yaml, line 2: found character"),
        (b"modle: {schedule: Cosine}", "no setting modle; did you mean model?"),
        (b"model: {optimiser: Adam}", "no setting model.optimiser; did you mean model.optimizer?"),
    ],
)
@pytest.mark.parametrize("form", ["--config {}", "--config={}", "-c {}"])
def test_a_bad_file_of_settings_is_named(form, content, message, capsys, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert message in fail(capsys, "fit", *form.format(path).split())


@pytest.mark.parametrize("more", [["--trainer.callbacks=[]"], []])
@pytest.mark.parametrize("add", ["--trainer.callbacks", "--trainer.callbacks+"])
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "metrics",
            "[fid]",
            "GenerativeMetrics.metrics: expected one of 'fd', 'fd_inf', 'kid', 'is', 'pr', "
            "'accuracy'",
        ),
        (
            "reference",
            "tst",
            "GenerativeMetrics.reference: expected one of 'train', 'val', 'test'",
        ),
        ("guidance", "strong", "GenerativeMetrics.guidance: expected float, got strong"),
        ("guidanc", "3", "GenerativeMetrics has no argument 'guidanc'; did you mean guidance?"),
        ("sampler", "DIM", "GenerativeMetrics.sampler: no class 'DIM'; did you mean DDIM?"),
    ],
)
def test_a_mistake_in_a_callback_names_callback_and_argument(
    setting, value, message, add, more, capsys, tmp_path
):
    callback = [f"{add}=GenerativeMetrics", f"--trainer.callbacks.{setting}={value}"]
    root = f"--trainer.default_root_dir={tmp_path}"
    line = fail(capsys, "fit", "--config", DIGITS, root, *more, *callback)
    assert line.startswith("error: trainer.callbacks: ")
    assert line.partition(", got")[0].endswith(message.partition(", got")[0])


def test_a_mistake_in_a_callback_of_a_file_is_one_short_line(capsys, tmp_path):
    path = tmp_path / "strong.yaml"
    path.write_text(Path(DIGITS).read_text().replace("guidance: 1.5", "guidance: strong"))
    line = fail(capsys, "fit", "--config", str(path))
    assert line == "error: trainer.callbacks: SampleGrid.guidance: expected float, got strong"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches 0: give 1"),
        (["--trainer.val_check_interval=0"], "val_check_interval 0: give a number of batches"),
        (
            ["--trainer.val_check_interval=3000", "--trainer.check_val_every_n_epoch=1"],
            "trainer.val_check_interval 3000 is more than the 168 batches of an epoch",
        ),
        (["--trainer.default_root_dir=/proc/x"], "nothing can be written into /proc/x"),
        ([f"--trainer.default_root_dir={__file__}"], "test_cli.py is a file; choose another"),
        (
            [
                "--trainer.callbacks=EarlyStopping",
                "--trainer.callbacks.monitor=nothere",
                "--trainer.val_check_interval=1",
            ],
            "EarlyStopping monitors nothere, which is not logged; these are: `train/loss`",
        ),
    ],
)
def test_what_the_trainer_would_stumble_over_is_one_line(more, message, capsys, tmp_path):
    assert message in fail(capsys, "fit", *tiny_run(tmp_path, *more))


class Broken(Callback):
    def __init__(self, error: str = "type") -> None:
        if error == "type":
            len(3)
        elif error == "value":
            raise ValueError("a bug")
        else:
            Broken(nothing=3)


@pytest.mark.parametrize("error", ["type", "value", "arguments"])
def test_a_bug_in_a_users_class_keeps_its_traceback(error, tmp_path):
    broken = {"class_path": "tests.test_cli.Broken", "init_args": {"error": error}}
    with pytest.raises((TypeError, ValueError)) as caught:
        main(["fit", *tiny_run(tmp_path, f"--trainer.callbacks=[{json.dumps(broken)}]")])
    assert caught.traceback[-1].path == Path(__file__)


def test_a_network_that_is_no_factory_of_three_numbers_is_one_line(capsys, tmp_path):
    class Narrow(Network):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x, t, y=None):
            return x

    with pytest.MonkeyPatch.context() as patch:
        Narrow.__qualname__ = "Narrow"
        patch.setattr("tests.test_cli.Narrow", Narrow, raising=False)
        line = fail(capsys, "fit", *tiny_run(tmp_path, "--model.net=tests.test_cli.Narrow"))
    assert "Narrow" in line


@pytest.mark.parametrize("command", ["fit", "sample"])
def test_ctrl_c_before_training_or_in_sampling_is_one_line(
    command, tmp_path, capsys, monkeypatch, checkpoint
):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm_lightning.networks.UNet.check_shape", stop)
    words = {
        "fit": tiny_run(tmp_path / "run"),
        "sample": ["--ckpt", str(checkpoint), "--out", str(tmp_path / "out")],
    }
    with pytest.raises(SystemExit) as caught:
        main([command, *words[command]])
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "stopped by Ctrl-C"


def test_ctrl_c_while_the_program_is_imported_is_one_line(capsys, monkeypatch):
    class Interrupted(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "ddpm_lightning.cli", Interrupted("ddpm_lightning.cli"))
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("ddpm_lightning", run_name="__main__")
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


def test_missing_data_without_network_names_the_folder_and_the_files(capsys, tmp_path):
    line = fail(
        capsys,
        "fit",
        *tiny_run(tmp_path / "run"),
        "--data=MNIST",
        "--data.image_size=32",
        f"--data.root={tmp_path}",
        "--data.download=false",
    )
    assert str(tmp_path / "MNIST" / "raw") in line
    assert "train-images-idx3-ubyte" in line


# ------------------------------------------------------------------- the run's folder


def test_a_run_is_one_folder(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "checkpoints"} <= names
    assert not any(name.startswith(("version", "lightning_logs")) for name in names)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "last.txt"}


def test_fit_into_a_used_folder_names_both_ways_on(run, capsys):
    line = fail(capsys, "fit", *tiny_run(run))
    assert "--ckpt_path last" in line
    assert "--trainer.default_root_dir" in line


def test_fit_from_another_checkpoint_does_not_overwrite_a_run(run, capsys, tmp_path):
    main(["fit", *tiny_run(tmp_path / "other")])
    other = tmp_path / "other" / "checkpoints" / "last.ckpt"
    assert "holds a run" in fail(
        capsys, "fit", *tiny_run(run, f"--ckpt_path={other}", max_steps=4)
    )


def test_a_trial_with_fast_dev_run_leaves_the_run_alone(run):
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    main(["fit", *tiny_run(run, "--trainer.fast_dev_run=true")])
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_failed_start_does_not_block_the_folder(tmp_path, capsys):
    fail(capsys, "fit", *tiny_run(tmp_path, "--trainer.accumulate_grad_batches=3"))
    main(["fit", *tiny_run(tmp_path)])


def test_scoring_random_weights_is_refused(run, capsys):
    assert "Give --ckpt_path" in fail(capsys, "test", *tiny_run(run))


def test_resume_with_another_seed_is_refused(run, capsys):
    line = fail(capsys, "fit", *tiny_run(run, "--ckpt_path=last", "--seed_everything=1"))
    assert "resume with --seed_everything 0" in line


def test_the_configuration_of_a_resumed_run_does_not_resume_by_itself(tmp_path):
    main(["fit", *tiny_run(tmp_path)])
    main(["fit", *tiny_run(tmp_path, "--ckpt_path=last", max_steps=3)])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["ckpt_path"] is None


def test_an_error_while_drawing_does_not_cost_the_steps_before_it(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError("no space left")

    monkeypatch.setattr("ddpm_lightning.callbacks.sample_grid.write_png", full_disk)
    grid = '[{"class_path": "SampleGrid", "init_args": {"n": 1, "sampler": "DDIM"}}]'
    with pytest.raises(OSError, match="no space left"):
        main(["fit", *tiny_run(tmp_path, f"--trainer.callbacks={grid}")])
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_what_is_saved_and_is_no_success(
    sent, code, tmp_path, monkeypatch, capsys
):
    class Stop(Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 5:
                os.kill(os.getpid(), sent)

    previous = signal.getsignal(signal.SIGINT)  # Lightning switches it off
    monkeypatch.setattr("tests.test_cli.Stop", Stop, raising=False)
    stop = '--trainer.callbacks=[{"class_path": "tests.test_cli.Stop"}]'
    try:
        with pytest.raises(SystemExit) as caught:
            main(["fit", *tiny_run(tmp_path, stop, "--checkpoint.every_n_steps=5", max_steps=9)])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert caught.value.code == code
    assert "step 5 is saved: go on by --ckpt_path last" in capsys.readouterr().out


def test_resuming_a_finished_run_without_more_steps_is_an_error(run, capsys):
    message = fail(capsys, "fit", *tiny_run(run, "--ckpt_path=last", max_steps=2))
    assert "stands at step 2 already; train longer by --trainer.max_steps" in message


def test_last_without_a_checkpoint_is_an_error(tmp_path, capsys):
    line = fail(capsys, "fit", *tiny_run(tmp_path / "new", "--ckpt_path=last"))
    assert "no checkpoint at" in line


def test_resume_goes_on_with_step_optimizer_ema_and_logger(tmp_path):
    main(["fit", *tiny_run(tmp_path / "parts", max_steps=3)])
    main(["fit", *tiny_run(tmp_path / "parts", "--ckpt_path=last", max_steps=5)])
    main(["fit", *tiny_run(tmp_path / "whole", max_steps=5)])
    parts, whole = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("parts", "whole")
    )
    assert parts["global_step"] == 5
    for name, value in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][name], value), name
    moments = [c["optimizer_states"][0]["state"][0]["exp_avg"] for c in (parts, whole)]
    assert torch.equal(*moments)
    assert len(list((tmp_path / "parts").glob("events.out.tfevents.*"))) == 2


def test_a_checkpoint_overrides_the_command_line_loudly(run, tmp_path, capsys):
    main(
        [
            "validate",
            *tiny_run(tmp_path / "else", "--model.ema_decay=0.5"),
            f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}",
        ]
    )
    assert "ignored: model.ema_decay=0.5;" in capsys.readouterr().err


def test_an_unchanged_command_line_is_not_warned_about(run, capsys):
    main(["validate", *tiny_run(run, "--ckpt_path=last")])
    assert "ignored:" not in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_model(run, capsys):
    more = ["--ckpt_path=last", "--trainer.max_steps=9", "--model.net.init_args.channels=16"]
    line = fail(capsys, "fit", *tiny_run(run, *more))
    assert "model.net.init_args.channels is 8 in" in line
    assert "start a new run" in line


def test_data_of_another_shape_than_the_checkpoint_is_refused(run, capsys, tmp_path):
    line = fail(capsys, "validate", *tiny_run(run, "--ckpt_path=last", "--data.image_size=16"))
    assert "trained on data of shape [1, 8, 8]" in line


def test_testing_a_run_leaves_its_configuration_alone(run):
    before = (run / "config.yaml").read_text()
    main(["test", *tiny_run(run, "--ckpt_path=last", "--trainer.limit_test_batches=1")])
    assert (run / "config.yaml").read_text() == before


# ---------------------------------------------------------------------------- sample


def sample(ckpt: str | Path, out: Path, *more: str) -> Path:
    main(["sample", "--ckpt", str(ckpt), "--out", str(out), "--sampler=DDIM", *more])
    return out


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    path.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    return randomised(path)


def test_sample_writes_images_of_native_size_and_a_grid(checkpoint, tmp_path):
    out = sample(checkpoint, tmp_path / "out", "--n=5", "--sampler.steps=3")
    assert sorted(p.name for p in out.iterdir()) == [
        *(f"{k:06d}.png" for k in range(5)),
        "grid.png",
    ]
    assert Image.open(out / "000000.png").size == (8, 8)
    assert Image.open(out / "000000.png").mode == "L"


def test_images_do_not_depend_on_count_or_batch_size(checkpoint, tmp_path):
    eta = ("--sampler.steps=3", "--sampler.eta=1.0")
    a = sample(checkpoint, tmp_path / "a", "--n=5", "--batch_size=5", *eta)
    b = sample(checkpoint, tmp_path / "b", "--n=3", "--batch_size=2", *eta)
    for k in range(3):
        assert (a / f"{k:06d}.png").read_bytes() == (b / f"{k:06d}.png").read_bytes()


def test_seed_weights_and_steps_change_the_images(checkpoint, tmp_path):
    variants = ([], ["--seed=1"], ["--weights=raw"], ["--sampler.steps=2"])
    images = {
        (
            sample(checkpoint, tmp_path / str(i), "--n=1", "--sampler.steps=3", *more) / "grid.png"
        ).read_bytes()
        for i, more in enumerate(variants)
    }
    assert len(images) == len(variants)


def test_trajectory_gif_has_the_asked_frames_and_speed(checkpoint, tmp_path):
    out = sample(
        checkpoint, tmp_path / "out", "--n=2", "--sampler.steps=6", "--frames=4", "--fps=20"
    )
    gif = Image.open(out / "trajectory.gif")
    assert gif.n_frames == 4
    assert gif.info["duration"] == 50


def test_sample_takes_everything_from_a_file(checkpoint, tmp_path):
    path = tmp_path / "sample.yaml"
    settings = {
        "ckpt": str(checkpoint),
        "out": str(tmp_path / "out"),
        "n": 2,
        "sampler": {"class_path": "DDIM", "init_args": {"steps": 2}},
    }
    path.write_text(yaml.safe_dump(settings))
    main(["sample", "--config", str(path)])
    assert (tmp_path / "out" / "000001.png").exists()


def test_labels_and_guidance_change_the_image(conditional_checkpoint, tmp_path):
    guided = ["--labels=3", "--guidance=4.0"]
    variants = (
        ["--labels=3"],
        ["--labels=5"],
        guided,
        ["--guidance_interval=[0.5, 1.0]", *guided],
        [*guided, "--guidance_rescale=0.7"],
    )
    images = {
        (
            sample(conditional_checkpoint, tmp_path / str(i), "--n=1", *more) / "grid.png"
        ).read_bytes()
        for i, more in enumerate(variants)
    }
    assert len(images) == 5


def test_without_labels_a_conditional_model_samples_one_class_after_the_other(
    conditional_checkpoint, tmp_path
):
    default = sample(conditional_checkpoint, tmp_path / "a", "--n=3")
    stated = sample(conditional_checkpoint, tmp_path / "b", "--n=3", "--labels=[0,1,2]")
    assert (default / "grid.png").read_bytes() == (stated / "grid.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels=3"], "the model has none"),
        (["--guidance=2.0"], "guidance 2 needs a model with labels"),
        (["--guidance=strong"], "guidance: expected float, got strong"),
        (["--guidance=nan"], "guidance: expected float, got nan"),
        (["--guidance=2", "--guidance_interval=[0.8, 0.2]"], "0 ≤ low < high ≤ 1"),
        (["--guidance=2", "--guidance_interval=[0.8]"], "guidance_interval"),
        (["--guidance_rescale=0.7"], "change nothing at strength 1"),
        (["--n=0"], "at least 1"),
        (["--seed=-1"], "not negative"),
        ([f"--seed={2**64}"], "below 2**64"),
        (["--device=meta"], "device meta cannot be used"),
        (["--frames=3", "--fps=0.001"], "fps=0.001: a GIF shows 0.002 to 50 frames a second"),
        (["--frames=-1"], "2 or more"),
        (["--labels=[]"], "the model has none"),
        (["--device=gpu"], "device gpu cannot be used"),
        (["--frames=2", "--fps=0"], "0.002 to 50"),
        (["--frames=1"], "2 or more"),
        (["--sampler.steps=5000"], "takes 1 to 1000"),
        (["--sampler.eta=2.0"], "eta lies between 0"),
    ],
)
def test_settings_that_do_not_fit_the_checkpoint_leave_nothing_behind(
    more, message, checkpoint, tmp_path, capsys
):
    out = tmp_path / "out"
    line = fail(
        capsys, "sample", "--ckpt", str(checkpoint), "--out", str(out), "--sampler=DDIM", *more
    )
    assert message in line
    assert not out.exists()


def test_sample_refuses_a_folder_with_images(checkpoint, tmp_path, capsys):
    (tmp_path / "000064.png").write_bytes(b"")
    line = fail(capsys, "sample", "--ckpt", str(checkpoint), "--out", str(tmp_path))
    assert "not an empty folder" in line


def test_sample_refuses_a_place_that_cannot_be_written_before_it_samples(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ddpm_lightning.module.DiffusionModule.generate", None)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/x/y")):
        line = fail(capsys, "sample", "--ckpt", str(checkpoint), "--out", str(out))
        assert f"nothing can be written into {out}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_checkpoint_with_a_pickled_object_is_refused_and_not_executed(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Evil()}, "evil.ckpt")
    line = fail(capsys, "sample", "--ckpt", "evil.ckpt", "--out", "out")
    assert "nothing else is loaded" in line
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1})])
def test_a_damaged_checkpoint_is_one_clear_error(content, tmp_path, capsys):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    assert str(path) in fail(capsys, "sample", "--ckpt", str(path), "--out", str(tmp_path / "o"))


def test_a_truncated_checkpoint_is_one_clear_error(checkpoint, tmp_path, capsys):
    path = tmp_path / "cut.ckpt"
    path.write_bytes(checkpoint.read_bytes()[:5000])
    assert "damaged" in fail(capsys, "sample", "--ckpt", str(path), "--out", str(tmp_path / "o"))


def test_a_foreign_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, path)
    line = fail(capsys, "sample", "--ckpt", str(path), "--out", str(tmp_path / "o"))
    assert "not written by ddpm_lightning" in line
