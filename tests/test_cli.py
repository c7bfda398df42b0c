"""The command line, called in-process: real configs, runs in folders, and samples."""

from __future__ import annotations

import json
import pickle
import runpy
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion import Guidance
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.images import to_uint8
from ddpm_lightning.networks import Network
from tests.make_data import write_cifar10, write_class_folders, write_mnist
from tests.small import ended, fail, shown

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(
    path
    for path in [*FOLDER.glob("*.yaml"), *FOLDER.glob("tutorials/*.yaml")]
    if not path.stem.endswith(("_autoencoder", "_latent"))  # see test_latent_configs.py
)
DIGITS = str(Path(__file__).parent.parent / "configs" / "digits.yaml")


def named(config: Path) -> str:
    """The name of a config as the command line takes it, e.g. tutorials/mnist."""
    return config.relative_to(FOLDER).with_suffix("").as_posix()


def tiny_run(root: Path, *more: str, max_steps: int = 2) -> list[str]:
    """Flags that shrink configs/digits.yaml to seconds, without its callbacks."""
    return [
        *("--config", DIGITS),
        *("--model.net.channels=8", "--model.net.groups=4", "--model.net.blocks=1"),
        f"--trainer.max_steps={max_steps}",
        f"--trainer.default_root_dir={root}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=1",
        *("--trainer.callbacks=[]", "--grid=null", "--metrics=null"),
        "--model.conditional=false",
        "--data.global_batch_size=8",
        *more,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a two-step run on the digits."""
    root = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_run(root)])
    return root


# -------------------------------------------------------------------------- configs

SHRUNK = {
    "UNet": {"channels": 8, "groups": 4, "blocks": 1},
    "MLP": {"width": 8},
    "PerStepMLP": {"width": 8, "tails": 50},
    "DiT": {"patch": 4, "width": 16, "depth": 1, "heads": 2},
    "DoubleConvUNet": {"channels": 8, "multipliers": [1, 2]},
    "SimpleUNet": {"channels": 8},
    "AnnotatedUNet": {"channels": 8, "multipliers": [1, 2], "heads": 1},
    "AnnotatedUNet2022": {"channels": 8, "multipliers": [1, 2], "heads": 1, "stem_channels": None},
}


@pytest.fixture
def hub(tmp_path, monkeypatch, inception_file) -> None:
    """Torch hub's cache with random Inception weights in the published file's place."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "weights-inception-2015-12-05-6726825d.pth").symlink_to(inception_file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def shrunk(config: Path, root: Path) -> dict:
    """The settings of a config, made to run in seconds in a folder; its data written there."""
    settings = yaml.safe_load(config.read_text())
    data = settings["data"]
    if data["class_path"] in ("Conditioned", "Captioned"):
        data = data["init_args"]["data"]
    kind = data["class_path"]
    if kind in ("MNIST", "FashionMNIST"):
        write_mnist(root / "data", kind)
    elif kind == "CIFAR10":
        write_cifar10(root / "data")
    elif kind == "ImageFolder":
        write_class_folders(root / "data")
        data["init_args"] |= {"cache": str(root / "cache"), "workers": 0, "size": 16}
    settings["trainer"] |= {
        "default_root_dir": str(root / "run"),
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "val_check_interval": 2,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    metrics = settings.get("metrics", {"init_args": {"sampler": {}}})["init_args"]
    grids = [one for one in settings["trainer"]["callbacks"] if one["class_path"] == "SampleGrid"]
    for block in (settings["grid"], metrics, *(grid["init_args"] for grid in grids)):
        steps = block["sampler"].get("init_args", {}) | {"steps": 2}
        block |= {"n": 4, "batch_size": 8, "sampler": block["sampler"] | {"init_args": steps}}
    settings["grid"]["frames"] = 2
    settings["likelihood"] = {"evaluations": 2}
    if config.stem.startswith("cifar10_"):  # Inception's 2,048 dimensions take long
        metrics["extractor"] = {"class_path": "tests.small.Coarse"}
    net = settings["model"]["net"]
    net["init_args"] |= SHRUNK[net["class_path"]]
    settings["model"]["schedule"].setdefault("init_args", {})["T"] = 50
    small = data.setdefault("init_args", {})
    small |= {"predict_n": 2, "global_batch_size": 4}
    small |= {"n": 64} if kind == "Toy2D" else {"root": str(root / "data")}
    if kind not in ("Digits", "Toy2D"):
        small |= {"subset": 16} | ({"held_out": 20} if small.get("held_out") != 0 else {})
    return settings


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(path, id=named(path), marks=[pytest.mark.slow] * (path.stem != "digits"))
        for path in CONFIGS
    ],
)
def test_config_runs_through_fit_test_and_predict(config, tmp_path, hub):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(shrunk(config, tmp_path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "--config", str(path)])
        for command in ("test", "predict"):
            main([command, "--config", str(path), "--ckpt_path", "last"])
    folder = tmp_path / "run"
    assert (folder / "config.yaml").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert list((folder / "samples").glob("*.gif"))
    assert json.loads((folder / "metrics.json").read_text())
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_config_says_where_it_comes_from(config):
    header = "".join(line for line in config.read_text().splitlines() if line.startswith("#"))
    name = config.relative_to(FOLDER).as_posix()
    wanted = f"fit --config configs/{name}", "Source:", "Expected:", "Measured:", "Cost:"
    assert not [entry for entry in wanted if entry not in header]


# ------------------------------------------------------------------------------ help


EVERY = [
    *("fit Train", "predict Sample", "sample Draw samples from a checkpoint", "evaluate Score"),
    *("analytic_variance Estimate", "plot Draw a figure or a strip: loss, schedule"),
]


@pytest.mark.parametrize(
    ("args", "listed"),
    [
        (["--help"], EVERY),
        (["plot", "--help"], ["Draw real data, or a picture, becoming noise"]),
        (["fit", "--model.schedule.help", "Linear"], ["beta_T at 1000 levels"]),
    ],
)
def test_help_lists_commands_and_arguments(args, listed, capsys):
    text = " ".join(shown(capsys, *args).split())
    assert not [line for line in listed if line not in text]


@pytest.mark.parametrize(
    "args",
    [["--help"], ["fit", "--help"], ["sample", "--guidance.help"], ["plot", "--help"]],
)
def test_help_calls_the_program_by_what_is_typed(args, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    assert shown(capsys, *args).startswith("usage: python -m ddpm_lightning ")


def test_printed_config_is_a_config_that_gives_itself(capsys, tmp_path):
    first = shown(capsys, "fit", "--config", DIGITS, "--print_config")
    (tmp_path / "printed.yaml").write_text(first)
    again = shown(capsys, "fit", "--config", str(tmp_path / "printed.yaml"), "--print_config")
    assert yaml.safe_load(again) == yaml.safe_load(first)
    assert "Unable to serialize" not in first


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--trainer.val_check_interval=3000", "--trainer.check_val_every_n_epoch=1"],
            "must be less than or equal to the number of the training batches (168)",
        ),
        (
            [
                "--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: nothere}}",
                "--trainer.val_check_interval=1",
            ],
            "metric `nothere` which is not available",
        ),
        ([f"--trainer.default_root_dir={__file__}"], "is a file; choose another folder"),
        (["--model.net=tests.test_cli.Narrow"], "takes 2 positional arguments but 3"),
        (["--data=MNIST", "--data.root=.", "--data.download=false"], "train-images-idx3-ubyte"),
    ],
)
def test_what_is_refused_after_parsing_is_one_line(more, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in tiny_run(tmp_path / "run") if "--model.net." not in word]
    assert message in fail(capsys, "fit", *words, *more)


class Narrow(Network):
    """Not to be built for a number of output channels."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__()

    def forward(self, x, c_noise, condition=None):
        return x


class Broken(Callback):
    """Has a bug."""

    def __init__(self) -> None:
        len(3)  # type: ignore[arg-type]


def test_a_bug_in_a_users_class_keeps_its_traceback(tmp_path):
    with pytest.raises(TypeError, match="has no len") as caught:
        main(["fit", *tiny_run(tmp_path, "--trainer.callbacks=tests.test_cli.Broken")])
    assert caught.traceback[-1].path == Path(__file__)


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm_lightning.networks.UNet.__init__", stop)
    error = ended(capsys, 130, "fit", *tiny_run(tmp_path)).err
    assert error.strip().splitlines()[-1] == "stopped by Ctrl-C"


def test_ctrl_c_while_the_program_is_imported_is_one_line(capsys, monkeypatch):
    class Interrupted(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "ddpm_lightning.cli", Interrupted("ddpm_lightning.cli"))
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("ddpm_lightning", run_name="__main__")
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


# ------------------------------------------------------------------- the run's folder


@pytest.mark.slow
def test_a_run_is_one_folder_whatever_the_logger(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"
    main(["fit", *tiny_run(tmp_path / "csv", *logger)])
    for folder in (run, tmp_path / "csv"):
        assert {"config.yaml", "checkpoints"} <= {path.name for path in folder.iterdir()}
        files = {path.name for path in (folder / "checkpoints").iterdir()}
        assert files == {"last.ckpt"}
    assert not list(run.glob("version*")) + list(run.glob("lightning_logs"))


@pytest.mark.slow
def test_fit_into_a_used_folder_names_both_ways_on(run, capsys, tmp_path):
    line = fail(capsys, "fit", *tiny_run(run))
    assert "holds a run already: go on with it by --ckpt_path last" in line
    assert "--trainer.default_root_dir" in line
    copy = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path)
    line = fail(capsys, "fit", *tiny_run(run, f"--ckpt_path={copy}", max_steps=4))
    assert "holds a run already" in line


@pytest.mark.slow
def test_a_trial_with_fast_dev_run_leaves_the_run_alone(run):
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    main(["fit", *tiny_run(run, "--trainer.fast_dev_run=true")])
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_a_failed_start_does_not_block_the_folder(tmp_path, capsys):
    fail(capsys, "fit", *tiny_run(tmp_path, "--trainer.accumulate_grad_batches=3"))
    main(["fit", *tiny_run(tmp_path)])


def test_an_error_while_drawing_costs_the_steps_since_the_last_save_alone(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError("no space left")

    monkeypatch.setattr("ddpm_lightning.callbacks.sample_grid.write_png", full_disk)
    grid = ("--grid.n=1", "--grid.sampler=DDIM", "--grid.sampler.steps=2")
    with pytest.raises(OSError, match="no space left"):
        main(["fit", *tiny_run(tmp_path, *grid, "--checkpoint.every_n_steps=1")])
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1


@pytest.mark.slow
def test_a_block_and_a_callback_of_the_list_stand_beside_each_other(tmp_path):
    other = {"class_path": "SampleGrid", "init_args": {"n": 1, "sampler": "DDIM", "name": "b"}}
    grid = ("--grid.n=1", "--grid.sampler=DDIM", "--grid.name=a")
    main(["fit", *tiny_run(tmp_path, *grid, f"--trainer.callbacks=[{json.dumps(other)}]")])
    assert list((tmp_path / "a").glob("*.png"))
    assert list((tmp_path / "b").glob("*.png"))


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("test", [], "Give --ckpt_path"),
        ("fit", ["--ckpt_path=last", "--seed_everything=1"], "resume with --seed_everything 0"),
        ("fit", ["--ckpt_path=last"], "stands at step 2 already; train longer by"),
        (
            "fit",
            ["--ckpt_path=last", "--trainer.max_steps=9", "--model.net.channels=16"],
            "and a run goes on with what it began with",
        ),
        (
            "validate",
            ["--ckpt_path=last", "--data.image_size=16"],
            "trained on data of shape [1, 8, 8], but Digits gives [1, 16, 16]",
        ),
        ("fit", ["--trainer.default_root_dir=new", "--ckpt_path=last"], "no checkpoint at new/"),
    ],
)
def test_a_checkpoint_that_does_not_suit_is_refused(
    command, more, message, run, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert message in fail(capsys, command, *tiny_run(run, *more))


@pytest.mark.slow
def test_a_resume_goes_on_in_the_folder_with_the_command_lines_learning_rate(tmp_path, capsys):
    constant = "--model.warmup_steps=0"
    resume = "--ckpt_path=last", "--model.optimizer.lr=1e-5"
    main(["fit", *tiny_run(tmp_path, constant, max_steps=3)])
    main(["fit", *tiny_run(tmp_path, constant, *resume, max_steps=5)])
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert saved["optimizer_states"][0]["state"][0]["step"] == 5
    (group,) = saved["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(1e-5)
    assert "optimizer lr 1e-05, was 0.002" in capsys.readouterr().out
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["ckpt_path"] is None  # which does not resume by itself


@pytest.mark.slow
def test_a_checkpoint_overrides_the_command_line_loudly_and_only_then(run, tmp_path, capsys):
    main(["validate", *tiny_run(run, "--ckpt_path=last", "--model.ema.decay=0.5")])
    assert "ignored: model.ema.init_args.decay=0.5;" in capsys.readouterr().err
    main(["validate", *tiny_run(run, "--ckpt_path=last")])
    assert "ignored:" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_brings_its_run_s_configuration_which_stays_as_it_is(run):
    before = (run / "config.yaml").read_text()
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    main(["test", checkpoint, "--trainer.limit_test_batches=1", "--likelihood.evaluations=2"])
    assert (run / "config.yaml").read_text() == before


# ---------------------------------------------------------------------------- sample


def sample(ckpt: str | Path, out: Path, *more: str) -> Path:
    main(["sample", "--ckpt", str(ckpt), "--out", str(out), "--sampler=DDIM", *more])
    return out


def test_sample_writes_images_of_native_size_and_a_grid(lively_checkpoint, tmp_path):
    out = sample(lively_checkpoint, tmp_path / "out", "--n=5", "--sampler.steps=3")
    names = [*(f"{k:06d}.png" for k in range(5)), "config.yaml", "grid.png", "samples.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert Image.open(out / "000000.png").size == (8, 8)
    assert Image.open(out / "000000.png").mode == "L"


@pytest.mark.slow
def test_samples_are_those_of_the_module_under_the_same_settings(lively_checkpoint, tmp_path):
    flags = ["--n=8", "--sampler.steps=10", "--seed=5", "--weights=raw", "--labels=[3, 7]"]
    flags += ["--guidance=4", "--guidance.interval=[0.0, 0.8]", "--guidance.rescale=0.7"]
    out = sample(lively_checkpoint, tmp_path / "out", *flags, "--batch_size=3")
    files = [out / f"{k:06d}.png" for k in range(8)]
    found = np.stack([np.array(Image.open(file), dtype=int) for file in files])
    module = DiffusionModule.load_from_checkpoint(lively_checkpoint)
    asked = {"seed": 5, "weights": "raw", "labels": [3, 7]}
    asked |= {"guidance": Guidance(4.0, (0.0, 0.8), 0.7)}

    def distance(settings: dict) -> int:
        return abs(found - to_uint8(module.sample(8, DDIM(10), **settings))[:, 0].numpy()).max()

    assert distance(asked) <= 1
    for left_out in asked:
        assert distance({k: v for k, v in asked.items() if k != left_out}) > 1, left_out


def test_without_labels_a_conditional_model_samples_one_class_after_the_other(
    lively_checkpoint, tmp_path
):
    few = "--n=3", "--sampler.steps=2"
    default = sample(lively_checkpoint, tmp_path / "a", *few)
    three = sample(lively_checkpoint, tmp_path / "b", *few, "--labels=[0,1,2]")
    assert (default / "grid.png").read_bytes() == (three / "grid.png").read_bytes()


def test_trajectory_gif_has_the_asked_frames_and_speed(lively_checkpoint, tmp_path):
    frames = ("--grid.frames=4", "--grid.fps=20")
    out = sample(lively_checkpoint, tmp_path / "out", "--n=2", "--sampler.steps=6", *frames)
    gif = Image.open(out / "trajectory.gif")
    assert gif.n_frames == 4
    assert gif.info["duration"] == 50


def test_sample_takes_everything_from_a_file(tiny_checkpoint, tmp_path):
    settings = {"ckpt": str(tiny_checkpoint), "out": str(tmp_path / "out"), "n": 2}
    settings["sampler"] = {"class_path": "DDIM", "init_args": {"steps": 2}}
    (tmp_path / "sample.yaml").write_text(yaml.safe_dump(settings))
    main(["sample", "--config", str(tmp_path / "sample.yaml")])
    assert (tmp_path / "out" / "000001.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels=3"], "the model has none"),
        (["--guidance.rescale=0.7"], "change nothing at scale 1"),
        (["--n=0"], "at least 1"),
        (["--device=meta"], "device meta cannot be used"),
        (["--grid.frames=2", "--grid.fps=0"], "0.002 to 50"),
    ],
)
def test_settings_that_do_not_fit_the_checkpoint_leave_nothing_behind(
    more, message, tiny_checkpoint, tmp_path, capsys
):
    words = ("--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--sampler=DDIM")
    assert message in fail(capsys, "sample", *words, *more)
    assert not (tmp_path / "out").exists()


def test_sample_refuses_a_place_that_cannot_be_written_before_it_samples(
    tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ddpm_lightning.module.DiffusionModule.generate", None)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/x/y")):
        line = fail(capsys, "sample", "--ckpt", str(tiny_checkpoint), "--out", str(out))
        assert f"nothing can be written into {out}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    line = fail(capsys, "sample", "--ckpt", str(tiny_checkpoint), "--out", str(tmp_path))
    assert "not an empty folder" in line


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


def test_a_file_that_is_no_checkpoint_is_one_clear_error(tiny_checkpoint, tmp_path, capsys):
    whole = tiny_checkpoint.read_bytes()
    contents = {"empty": b"", "text": b"none", "pickle": pickle.dumps(1), "cut": whole[:5000]}
    for name, content in contents.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        line = fail(capsys, "sample", "--ckpt", str(path), "--out", str(tmp_path / "out"))
        assert f"{path} is damaged or not a checkpoint" in line
