"""Checkpoints are whole or refused, fit what resumes them, and import only what is trusted."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.checkpoint import DIGESTS, FORMAT, KEY, read_checkpoint
from ddpm_lightning.checkpoint_io import PREVIOUS
from ddpm_lightning.cli import main
from ddpm_lightning.configurable import check_arguments
from ddpm_lightning.errors import InputError
from ddpm_lightning.integrity import bytes_of, digests_of
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import fit

FORMAT1 = Path(__file__).parent / "golden" / "format1.ckpt"


def altered(sound: Path, folder: Path, edit, signed: bool = True) -> Path:
    """A copy of a checkpoint, edited, with digests of what it now holds unless told otherwise."""
    checkpoint = torch.load(sound, weights_only=True)
    edit(checkpoint)
    if signed:
        del checkpoint[KEY][DIGESTS]
        checkpoint[KEY][DIGESTS] = digests_of(checkpoint)
    path = folder / "altered.ckpt"
    torch.save(checkpoint, path)
    return path


def overwritten(sound: Path, folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of a file in which some bytes, which it holds once, are others."""
    content = sound.read_bytes()
    assert content.count(old) == 1
    path = folder / "damaged.ckpt"
    path.write_bytes(content.replace(old, new))
    return path


def values(path: Path, name: str) -> bytes:
    return bytes_of(torch.load(path, weights_only=True)["state_dict"][name]).tobytes()


# ------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "name", ["net.mid.0.residual.conv1.weight", "net.mid.0.residual.norm1.bias"]
)
def test_a_flipped_bit_in_a_weight_is_refused_and_the_weight_named(
    tmp_path, tiny_checkpoint, name
):
    right = values(tiny_checkpoint, name)
    wrong = right[:-2] + bytes([right[-2] ^ 1]) + right[-1:]
    path = overwritten(tiny_checkpoint, tmp_path, right, wrong)
    with pytest.raises(InputError, match=re.escape(f"['state_dict']['{name}'] is not what was")):
        DiffusionModule.load_from_checkpoint(path)


def test_swapped_weights_are_refused(tmp_path, tiny_checkpoint):
    first, second = (values(tiny_checkpoint, f"net.mid.0.residual.conv{k}.weight") for k in (1, 2))
    path = overwritten(tiny_checkpoint, tmp_path, first, second)
    with pytest.raises(InputError, match=r"conv1\.weight'\] is not what was saved"):
        DiffusionModule.load_from_checkpoint(path)


def test_damage_to_the_optimizers_state_is_refused_on_resume(tmp_path, tiny_checkpoint):
    state = torch.load(tiny_checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    right = bytes_of(state[20]["exp_avg"]).tobytes()
    path = overwritten(tiny_checkpoint, tmp_path, right, right[::-1])
    with pytest.raises(InputError, match=r"\[20\]\['exp_avg'\] is not what was saved"):
        fit(tmp_path / "run", 4, resume=path)


def test_who_reads_the_description_alone_checks_that_alone(tmp_path, tiny_checkpoint):
    right = values(tiny_checkpoint, "net.mid.0.residual.conv1.weight")
    path = overwritten(tiny_checkpoint, tmp_path, right, right[::-1])
    assert read_checkpoint(path)["global_step"] == 3


def test_another_description_than_the_saved_one_is_refused(tmp_path, tiny_checkpoint):
    def edit(checkpoint):
        checkpoint["hyper_parameters"]["ema"]["init_args"]["decay"] = 0.8

    path = altered(tiny_checkpoint, tmp_path, edit, signed=False)
    with pytest.raises(InputError, match="its description is not what was saved"):
        read_checkpoint(path)


def test_a_file_of_format_1_has_its_checksums_compared(tmp_path):
    right = values(FORMAT1, "net.mid.0.residual.conv1.weight")
    path = overwritten(FORMAT1, tmp_path, right, right[::-1])
    with pytest.raises(InputError, match=r"the checksum of its part \S+/data/\d+ is another"):
        DiffusionModule.load_from_checkpoint(path)


def test_a_file_of_format_2_is_read(tmp_path, tiny_checkpoint):
    def edit(checkpoint):
        del checkpoint[KEY][DIGESTS]
        checkpoint[KEY]["format"] = 2

    path = altered(tiny_checkpoint, tmp_path, edit, signed=False)
    assert read_checkpoint(path, weights=True)[KEY]["format"] == FORMAT
    assert fit(tmp_path / "run", 4, resume=path).trainer.global_step == 4


# ------------------------------------------------------------------------------- saving


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory):
    """A run saved at steps 3 and 6, every save kept."""
    from ddpm_lightning.callbacks import RunCheckpoint

    folder = tmp_path_factory.mktemp("twice")
    fit(folder, 6, run={"callbacks": [RunCheckpoint(3, keep_all=True)]})
    return folder / "checkpoints"


def copied(folder: Path, to: Path) -> Path:
    for path in folder.glob("*.ckpt"):
        (to / path.name).write_bytes(path.read_bytes())
    return to / "last.ckpt"


def test_the_save_before_the_last_is_kept(twice_saved):
    assert read_checkpoint(twice_saved / PREVIOUS, weights=True)["global_step"] == 3


def test_the_newest_sound_save_is_named_where_the_last_is_damaged(tmp_path, twice_saved):
    last = copied(twice_saved, tmp_path)
    last.write_bytes(last.read_bytes()[:-1000])
    (tmp_path / "step_00000006.ckpt").write_bytes(last.read_bytes())  # newer, but damaged, too
    with pytest.raises(InputError, match=r"(previous|step_00000003)\.ckpt is sound, step 3"):
        read_checkpoint(last)


def test_it_is_said_where_no_save_is_sound(tmp_path, twice_saved):
    last = copied(twice_saved, tmp_path)
    for path in tmp_path.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="holds no sound one"):
        read_checkpoint(last)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_error_and_costs_nothing_saved(tmp_path):
    fit(tmp_path, 3)
    last = last_checkpoint(tmp_path)
    before = last.read_bytes()
    partial = last.with_name("last.ckpt.part")
    partial.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"step 6 .* No space left .* step 3 is saved still"):
        fit(tmp_path, 6, resume=True)
    assert last.read_bytes() == before
    assert not partial.is_symlink()


def test_what_no_checkpoint_can_hold_is_refused_when_it_is_saved(tmp_path):
    from lightning.pytorch import Callback

    class Keeper(Callback):
        def state_dict(self):
            return {"kept": Path("x")}

    with pytest.raises(InputError, match=r"\['kept'\] is a pathlib\.PosixPath, which only a"):
        fit(tmp_path, 3, Keeper())
    assert list((tmp_path / "checkpoints").glob("*.ckpt*")) == []


# ---------------------------------------------------------------------------- structure


def emptied(checkpoint):
    checkpoint["optimizer_states"][0]["state"] = {}


def no_states(checkpoint):
    checkpoint["optimizer_states"] = []


def one_moment_less(checkpoint):
    del checkpoint["optimizer_states"][0]["state"][4]["exp_avg"]


def one_parameter_less(checkpoint):
    del checkpoint["optimizer_states"][0]["state"][4]


def another_shape(checkpoint):
    state = checkpoint["optimizer_states"][0]["state"][5]
    state["exp_avg_sq"] = state["exp_avg_sq"][:1].clone()


def no_betas(checkpoint):
    del checkpoint["optimizer_states"][0]["param_groups"][0]["betas"]


def no_counter(checkpoint):
    del checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]


def half_a_batch(checkpoint):
    checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] = 2.5


def another_step(checkpoint):
    checkpoint["global_step"] = 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (emptied, "the state of net.embed.linear1.weight in the .* optimizer is missing"),
        (no_states, "0 states of optimizers, not 1"),
        (one_moment_less, "lacks exp_avg"),
        (one_parameter_less, "optimizer is missing"),
        (another_shape, "exp_avg_sq is no tensor of the shape"),
        (no_betas, "optimizer lacks betas"),
        (no_counter, "lacks ready"),
        (half_a_batch, "2.5, not a number of batches"),
        (another_step, "made 3 steps, but it is one of step 2"),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
def test_a_training_state_that_does_not_fit_is_refused(tmp_path, tiny_checkpoint, edit, message):
    path = altered(tiny_checkpoint, tmp_path, edit)
    with pytest.raises(InputError, match=message):
        fit(tmp_path / "run", 4, resume=path)


def endless():
    found = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("part", "argument", "value", "message"),
    [
        ("schedule", "T", 10**12, "no table has so many entries"),
        ("net", "groups", 2147483648, "net.groups is 2147483648, but it has"),
        ("net", "channels", 10**9, "net.channels is 1000000000, but it has"),
        ("net", "channels", 80, "do not fit the network"),
        ("net", "blocks", 300, "many more layers than it has weights for"),
        ("net", "multipliers", endless(), "nested or repeated without end"),
        ("net", "channels", True, "channels is True, not a whole number"),
        ("net", "dropout", "0.1", "dropout is '0.1', not a number"),
        ("ema", "warmup", 1, "warmup is 1, not true or false"),
        ("net", "unknown", 1, "does not fit its description"),
        ("objective", "weighting", "my.Weighting", "names my.Weighting"),
        ("data", "words", 5, "'words'. is 5, not a list"),
        ("data", "caption_length", -1, "'caption_length'. is -1"),
    ],
)
def test_a_description_that_cannot_be_is_refused(
    tmp_path, tiny_checkpoint, part, argument, value, message
):
    def edit(checkpoint):
        stated = checkpoint["hyper_parameters"][part]
        stated.get("init_args", stated)[argument] = value

    path = altered(tiny_checkpoint, tmp_path, edit, signed=argument != "multipliers")
    with pytest.raises(InputError, match=message):
        DiffusionModule.load_from_checkpoint(path)


def test_a_tensor_that_promises_more_values_than_it_holds_is_refused(tmp_path, tiny_checkpoint):
    def edit(checkpoint):
        checkpoint["state_dict"]["net.out.bias"] = torch.zeros(1).expand(10**12)

    path = altered(tiny_checkpoint, tmp_path, edit, signed=False)
    with pytest.raises(InputError):
        DiffusionModule.load_from_checkpoint(path)


def test_arguments_are_checked_against_signatures_without_being_converted():
    from ddpm_lightning.networks import UNet

    with pytest.raises(InputError, match=r"UNet\.multipliers\[1\] is '2', not a whole number"):
        check_arguments(UNet, {"multipliers": [1, "2"]})


# -------------------------------------------------------------------------------- trust


@pytest.fixture
def stranger(tmp_path, monkeypatch, tiny_checkpoint):
    """A checkpoint of two packages that nobody has imported, and what they leave on import."""
    trace = tmp_path / "imported"
    for package, base, name in (
        ("far_net", "ddpm_lightning.networks.UNet", "Net"),
        ("far_loss", "ddpm_lightning.diffusion.MSE", "Loss"),
    ):
        module, _, of = base.rpartition(".")
        (tmp_path / f"{package}.py").write_text(
            f"from {module} import {of}\nopen({str(trace)!r}, 'a').write('{package} ')\n"
            f"class {name}({of}):\n    pass\n"
        )
    monkeypatch.syspath_prepend(tmp_path)

    def edit(checkpoint):
        checkpoint["hyper_parameters"]["net"]["class_path"] = "far_net.Net"
        checkpoint["hyper_parameters"]["objective"]["class_path"] = "far_loss.Loss"

    yield altered(tiny_checkpoint, tmp_path, edit), trace
    for package in ("far_net", "far_loss"):
        sys.modules.pop(package, None)
    gc.collect()  # because the classes of a module that is gone would be offered still


def test_nothing_is_imported_that_nobody_has_allowed(stranger):
    path, trace = stranger
    with pytest.raises(InputError, match=r"trust=\['far_loss', 'far_net'\]"):
        DiffusionModule.load_from_checkpoint(path)
    with pytest.raises(InputError, match="far_net"):
        Loaded.read(path, trust=["far_loss"])
    assert not trace.exists()


def test_a_package_is_allowed_by_name_and_by_being_imported(stranger):
    path, trace = stranger
    module = DiffusionModule.load_from_checkpoint(path, trust=["far_net", "far_loss"])
    assert type(module.net).__module__ == "far_net"
    assert trace.read_text().split() == ["far_net", "far_loss"]
    assert Loaded.read(path).step == 3


def test_the_refusal_is_a_command_that_works(stranger, tmp_path, capsys):
    path, trace = stranger
    words = ["sample", "--ckpt", str(path), "--out", str(tmp_path / "a b"), "--n", "1"]
    words += ["--sampler", "DDIM", "--sampler.steps", "2", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(words)
    told = capsys.readouterr().err
    assert told.endswith(" --device cpu --trust far_loss --trust far_net\n")
    assert f"'{tmp_path}/a b'" in told
    assert not trace.exists()
    main([*words, "--trust", "far_loss,far_net"])
    assert (tmp_path / "a b" / "000000.png").exists()


def test_training_goes_on_with_trusted_packages_alone(stranger, tmp_path, capsys):
    path, trace = stranger
    words = f"validate --data Digits --data.subset 64 --ckpt_path {path} --trainer.logger false"
    words += " --trainer.limit_val_batches 1 --trainer.accelerator cpu"
    words += f" --trainer.enable_progress_bar false --trainer.default_root_dir {tmp_path}/r"
    with pytest.raises(SystemExit):
        main(words.split())
    assert "--trust far_loss --trust far_net" in capsys.readouterr().err
    assert not trace.exists()


def test_a_configuration_found_beside_a_checkpoint_is_not_trusted_either(
    tmp_path, tiny_checkpoint, capsys
):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(tiny_checkpoint.read_bytes())
    (tmp_path / "run" / "config.yaml").write_text(
        "trainer: {callbacks: [{class_path: far_callback.Runs}]}\n"
    )
    with pytest.raises(SystemExit):
        main(["validate", "--ckpt_path", str(folder / "last.ckpt")])
    assert "--trust far_callback" in capsys.readouterr().err


@pytest.mark.slow
def test_the_data_of_a_checkpoint_are_not_downloaded_unasked(tmp_path, tiny_checkpoint):
    root = tmp_path / "data"

    def edit(checkpoint):
        checkpoint[KEY]["data"] = {
            "class_path": "ddpm_lightning.data.MNIST",
            "init_args": {"root": str(root), "download": True, "image_size": None},
        }
        checkpoint["hyper_parameters"]["data"]["shape"] = [1, 28, 28]

    loaded = Loaded.read(altered(tiny_checkpoint, tmp_path, edit))
    with pytest.raises(InputError, match=r"allow the download \(--data.download true\)"):
        loaded.data.finished("test", 1)
    assert not root.exists()
    asked = Loaded.read(loaded.path, DataPlace(download=True))
    assert asked.data.download
