"""Checkpoints as safetensors files, read by the same path as any other."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_lightning import DiffusionModule
from ddpm_lightning.checkpoint import KEY, read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.safetensors import write_safetensors
from ddpm_lightning.loaded import Loaded
from tests.small import assert_same_weights, fail, tiny_module


def exported(ckpt, tmp_path, *words):
    out = tmp_path / "model.safetensors"
    main(["export", f"--ckpt={ckpt}", "--format=safetensors", f"--out={out}", *words])
    return out


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewrite(path, **changes):
    """Change the description, and nothing else."""
    described = json.loads(metadata(path)[KEY])
    tensors = load_file(path)
    path.unlink()
    save_file(tensors, path, metadata={KEY: json.dumps({**described, **changes})})


def test_a_file_holds_both_weights_and_all_that_describes_them(lively_checkpoint, tmp_path):
    before = Loaded.read(lively_checkpoint)
    after = Loaded.read(exported(lively_checkpoint, tmp_path))
    assert_same_weights(after.module, before.module)
    assert after.module.hparams == before.module.hparams
    assert (after.step, after.description) == (before.step, before.description)
    draws = [one.module.sample(3, DDIM(4), [1, 2], 2.0) for one in (before, after)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_weights_of_one_kind_are_stored_once_and_read_as_both(weights, tiny_checkpoint, tmp_path):
    path = exported(tiny_checkpoint, tmp_path, f"--weights={weights}")
    before, after = (Loaded.read(one).module for one in (tiny_checkpoint, path))
    for net in (after.net, after.ema.net):
        assert_same_weights(net, before.denoiser(weights).net)
    assert {name.partition(".")[0] for name in load_file(path)} == {"net"}


def test_float16_halves_the_file_and_reads_as_the_rounded_weights(tiny_checkpoint, tmp_path):
    path = tmp_path / "half.safetensors"
    words = [f"--ckpt={tiny_checkpoint}", "--format=safetensors-float16", "--weights=ema"]
    main(["export", *words, f"--out={path}"])
    before, after = (Loaded.read(one).module for one in (tiny_checkpoint, path))
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    for name, value in before.ema.net.state_dict().items():
        read = after.net.state_dict()[name]
        assert read.dtype == torch.float32
        assert torch.equal(read, value.half().float()), name


def test_weights_too_large_for_float16_are_refused(tiny_checkpoint, tmp_path):
    checkpoint = read_checkpoint(tiny_checkpoint)
    name = next(name for name in checkpoint["state_dict"] if name.startswith("net."))
    checkpoint["state_dict"][name] = torch.full_like(checkpoint["state_dict"][name], 1e6)
    with pytest.raises(InputError, match=f"{re.escape(name)} holds numbers too large"):
        write_safetensors(checkpoint, tmp_path / "half.safetensors", None, half=True)


def test_sample_reads_the_file(tiny_checkpoint, tmp_path):
    path = exported(tiny_checkpoint, tmp_path)
    words = ["--n=2", "--sampler=DDIM", "--sampler.steps=2"]
    main(["sample", f"--ckpt={path}", f"--out={tmp_path / 'out'}", *words])
    assert (tmp_path / "out" / "grid.png").is_file()


def test_python_reads_the_file(tiny_checkpoint, tmp_path):
    module = DiffusionModule.load_from_checkpoint(exported(tiny_checkpoint, tmp_path))
    assert module.data == tiny_module().data


def test_a_changed_description_is_refused(tiny_checkpoint, tmp_path):
    path = exported(tiny_checkpoint, tmp_path)
    rewrite(path, global_step=99)
    with pytest.raises(InputError, match="its description is not what was saved"):
        Loaded.read(path)


def test_a_changed_tensor_is_refused(tiny_checkpoint, tmp_path):
    path = exported(tiny_checkpoint, tmp_path)
    tensors, described = load_file(path), metadata(path)
    tensors["net.stem.bias"][0] += 1
    save_file(tensors, path, metadata=described)
    with pytest.raises(InputError, match=r"net\.stem\.bias.* is not what was saved"):
        Loaded.read(path)


def test_a_description_without_digests_is_refused(tiny_checkpoint, tmp_path):
    path = exported(tiny_checkpoint, tmp_path)
    own = json.loads(metadata(path)[KEY])[KEY]
    rewrite(path, **{KEY: {k: v for k, v in own.items() if k != "digests"}})
    with pytest.raises(InputError, match="it holds no digests"):
        Loaded.read(path)


def test_a_file_of_another_program_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="was not written by ddpm_lightning"):
        Loaded.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"\x05\0\0\0\0\0\0\0{}{}["])
def test_bytes_that_are_no_file_of_tensors_are_named(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        Loaded.read(tmp_path / "x.safetensors")


def test_a_class_of_another_package_is_not_imported_unasked(tiny_checkpoint, tmp_path, capsys):
    from ddpm_lightning.checkpoint import read_checkpoint
    from ddpm_lightning.interchange.safetensors import write_safetensors

    content = read_checkpoint(tiny_checkpoint)
    content["hyper_parameters"]["net"]["class_path"] = "antigravity.Network"
    write_safetensors(content, tmp_path / "x.safetensors", None)
    error = fail(capsys, "sample", f"--ckpt={tmp_path / 'x.safetensors'}", f"--out={tmp_path}/o")
    assert "antigravity.Network" in error
    assert "--trust antigravity" in error
