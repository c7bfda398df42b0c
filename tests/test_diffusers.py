"""Models exchanged with diffusers, against the real library."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_lightning import EMA, DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.checkpoint import FORMAT, KEY, read_checkpoint
from ddpm_lightning.checkpoint_io import WholeCheckpointIO
from ddpm_lightning.cli import main
from ddpm_lightning.data import Digits
from ddpm_lightning.diffusion import (
    X0,
    AnalyticVariance,
    Cosine,
    EDMPreconditioning,
    Eps,
    FixedLarge,
    Hybrid,
    Karras,
    LabelDropout,
    LearnedDiagonal,
    LearnedRange,
    Linear,
    PosteriorMean,
    Quadratic,
    Sigmoid,
    SohlDickstein,
    Straight,
    V,
    VariationalBound,
    Velocity,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.samplers import DDIM, DDPM
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.convert import ToDiffusers, to_diffusers
from ddpm_lightning.interchange.folder import read_weights
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.networks import MLP, DiffusersUNet, DiT
from tests.make_data import write_cifar10
from tests.small import TinyUNet, fail, image_spec, inputs, labels, randomized

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.disable_progress_bar()

Attended = partial(TinyUNet, attention_levels=[0, 1], dropout=0.0)


def drawn_anew(module: DiffusionModule) -> DiffusionModule:
    """Raw and averaged weights differ, and every layer matters."""
    randomized(module.net, seed=1)
    randomized(module.ema.net, seed=2)
    return module.eval()


def save(module: DiffusionModule, path: Path, data=None) -> Path:
    own = {"format": FORMAT, "class_path": module.class_path(), "data": data and data.describe()}
    content = {
        "state_dict": module.state_dict(),
        "global_step": 7,
        "epoch": 0,
        "hyper_parameters": dict(module.hparams),
        KEY: own,
    }
    WholeCheckpointIO().save_checkpoint(content, path)
    return path


def model(channels: int = 1, net=Attended, **parts) -> DiffusionModule:
    facts = {"num_classes": 10} if parts.get("conditional") else {}
    return drawn_anew(DiffusionModule(image_spec(channels, **facts), net, ema=EMA(), **parts))


def export(module: DiffusionModule, tmp_path: Path, *words: str) -> Path:
    checkpoint = save(module, tmp_path / "from.ckpt")
    main(["export", f"--ckpt={checkpoint}", f"--out={tmp_path / 'folder'}", *words])
    return tmp_path / "folder"


def convert(folder: Path, *words: str) -> DiffusionModule:
    out = folder.parent / "back.ckpt"
    main(["convert", f"--from={folder}", f"--out={out}", *words])
    return Loaded.read(out).module


MODELS: dict[str, dict[str, Any]] = {
    "grey, linear": {},
    "RGB, cosine": {"channels": 3, "schedule": Cosine(), "parameterization": V()},
    "grey, cosine, T 100": {"schedule": Cosine(100), "parameterization": V()},
    "RGB, linear, T 200, x0": {
        "channels": 3,
        "schedule": Linear(200),
        "parameterization": X0(),
        "variance": FixedLarge(),
    },
    "RGB, quadratic": {"channels": 3, "schedule": Quadratic()},
    "grey, table of betas": {"schedule": Sigmoid(60), "parameterization": V()},
    "grey, zero terminal SNR": {
        "schedule": ZeroTerminalSNR(Linear(100)),
        "parameterization": V(),
    },
    "scale and shift, heads": {
        "net": partial(Attended, scale_shift=True, attention_levels=[1], heads=2)
    },
}
ALIKE = ("grey, cosine, T 100", "RGB, quadratic", "grey, table of betas")
"""Models that take the same ways as others."""
ALL = pytest.mark.parametrize(
    "parts",
    [
        pytest.param(parts, id=name, marks=[pytest.mark.slow] * (name in ALIKE))
        for name, parts in MODELS.items()
    ],
)
WEIGHTS = pytest.mark.parametrize("weights", ["ema", pytest.param("raw", marks=pytest.mark.slow)])


# ---- There ----------------------------------------------------------------------------------


@ALL
@WEIGHTS
@torch.no_grad()
def test_their_network_computes_what_ours_does(parts, weights, tmp_path):
    module = model(**parts)
    folder = export(module, tmp_path, f"--weights={weights}")
    theirs = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    x, c_noise = inputs(3, *module.data.shape)
    expected = module.denoiser(weights).net(x, c_noise)
    assert expected.std() > 0.1
    torch.testing.assert_close(theirs(x, c_noise).sample, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@ALL
@torch.no_grad()
def test_their_ddim_pipeline_draws_our_images_of_the_same_noise(parts, tmp_path):
    module = model(**parts)
    pipeline = diffusers.DDIMPipeline.from_pretrained(export(module, tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    noise = partial(torch.Generator().manual_seed, 0)
    settings = {"num_inference_steps": 10, "use_clipped_model_output": True, "output_type": "pt"}
    theirs = pipeline(batch_size=3, generator=noise(), **settings).images
    x_T = torch.randn(3, *module.data.shape, generator=noise())
    ours = DDIM(10, clip=(-1, 1))(module.denoiser(), x_T)
    assert ours.std() > 0.3
    torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("variance", [None, FixedLarge(), LearnedRange()])
@torch.no_grad()
def test_their_ddpm_pipeline_draws_our_images_of_the_same_noise(variance, tmp_path):
    parts = {} if variance is None else {"variance": variance}
    parts |= {"objective": Hybrid()} if isinstance(variance, LearnedRange) else {}
    module = model(schedule=Linear(50), **parts)
    pipeline = diffusers.DDPMPipeline.from_pretrained(export(module, tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    noise = partial(torch.Generator().manual_seed, 0)
    settings = {"num_inference_steps": 50, "output_type": "pt"}
    theirs = pipeline(batch_size=2, generator=noise(), **settings).images
    generator = noise()
    x_T = torch.randn(2, 1, 8, 8, generator=generator)

    def drawn(draw, shape):
        return torch.randn(2, *shape, generator=generator)

    ours = DDPM(clip=(-1, 1))(module.denoiser(), x_T, noise=drawn)
    torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_conditional_network_takes_their_class_labels(tmp_path):
    module = model(conditional=True)
    folder = export(module, tmp_path)
    assert not (folder / "model_index.json").exists()  # a pipeline gives no labels
    theirs = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    x, c_noise = inputs(3, 1, 8, 8)
    given = theirs(x, c_noise, class_labels=torch.tensor([3, 10, 9])).sample
    expected = module.ema.net(x, c_noise, labels(3, -1, 9))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("label", [4, -1])
@torch.no_grad()
def test_a_class_can_be_exported_alone_for_a_pipeline(label, tmp_path):
    module = model(conditional=True)
    folder = export(module, tmp_path, f"--label={label}")
    theirs = diffusers.DDPMPipeline.from_pretrained(folder).unet
    x, c_noise = inputs(3, 1, 8, 8)
    expected = module.ema.net(x, c_noise, labels(label, label, label))
    torch.testing.assert_close(theirs(x, c_noise).sample, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_fixed_variance_in_place_of_a_learned_one_drops_its_channels(tmp_path):
    module = model(variance=LearnedDiagonal(), objective=VariationalBound())
    folder = export(module, tmp_path, "--variance=FixedSmall")
    theirs = diffusers.DDIMPipeline.from_pretrained(folder).unet
    x, c_noise = inputs(3, 1, 8, 8)
    expected = module.ema.net(x, c_noise)[:, :1]
    torch.testing.assert_close(theirs(x, c_noise).sample, expected, atol=1e-5, rtol=1e-5)


SmallDiT = partial(DiT, patch=2, width=32, depth=2, heads=2)


def dit(**parts) -> DiffusionModule:
    spec = image_spec(3, num_classes=10)
    return drawn_anew(DiffusionModule(spec, SmallDiT, conditional=True, **parts))


@torch.no_grad()
def test_their_transformer_computes_what_ours_does(tmp_path):
    module = dit(variance=LearnedRange(), objective=Hybrid())
    folder = export(module, tmp_path)
    assert not (folder / "model_index.json").exists()  # DiTPipeline decodes latents
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    x, c_noise = inputs(3, 3, 8, 8)
    c_noise /= 10  # because float32's sines of 999, by theirs, are 3e-5 off the true ones here
    expected = module.ema.net(x, c_noise, labels(3, -1, 9))
    assert expected.std() > 0.1
    given = theirs(x, c_noise, class_labels=torch.tensor([3, 10, 9])).sample
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_their_transformer_without_a_learned_variance_drops_its_channels(tmp_path):
    module = dit(variance=LearnedRange(), objective=Hybrid())
    folder = export(module, tmp_path, "--variance=FixedLarge")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    x, c_noise = inputs(2, 3, 8, 8)
    c_noise /= 10
    given = theirs(x, c_noise, class_labels=torch.tensor([3, 9])).sample
    expected = module.ema.net(x, c_noise, labels(3, 9))[:, :3]
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_a_transformer_makes_the_round_trip(tmp_path):
    module = dit()
    back = convert(export(module, tmp_path))
    expected = module.ema.net.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in back.net.state_dict().items())
    assert (back.data, back.knows_null) == (module.data, True)


def test_a_transformer_whose_blocks_embed_differently_is_refused(tmp_path, capsys):
    folder = export(dit(), tmp_path)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    save_file(tensors, path)
    error = fail(capsys, "convert", f"--from={folder}", f"--out={tmp_path / 'x.ckpt'}")
    assert "linear_1.bias is not that of block 0" in error


UNSAYABLE: dict[str, dict[str, Any]] = {
    "EDMPreconditioning": {"parameterization": EDMPreconditioning()},
    "PosteriorMean": {"parameterization": PosteriorMean()},
    "Velocity": {"parameterization": Velocity()},
    "Karras": {"schedule": Karras(), "parameterization": X0()},
    "Straight": {"schedule": Straight(), "parameterization": V()},
    "LearnedDiagonal": {"variance": LearnedDiagonal(), "objective": VariationalBound()},
    "AnalyticVariance": {"variance": AnalyticVariance([0.0] * 1001)},
    "convnext": {"net": partial(Attended, block="convnext")},
    "linear attention": {
        "net": partial(Attended, attention_levels=[], linear_attention_levels=[1])
    },
    "multipliers[0]": {"net": partial(Attended, multipliers=[2, 2])},
    "heads 2": {"net": partial(Attended, heads=2)},
    "takes labels": {"net": SmallDiT},
    "MLP": {"net": partial(MLP, width=8, depth=1)},
}


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_diffusers_cannot_say_is_named(name):
    parts = UNSAYABLE[name]
    spec = {"data": DataSpec((2,) if name == "MLP" else (1, 8, 8))}
    with pytest.raises(InputError, match=name.replace("[", r"\[").replace("]", r"\]")):
        to_diffusers(DiffusionModule(**{"net": Attended, **spec, **parts}), ToDiffusers())


# ---- And back -------------------------------------------------------------------------------


@pytest.mark.slow
@ALL
def test_a_round_trip_gives_the_same_weights_levels_and_parts(parts, tmp_path):
    module = model(**parts)
    back = convert(export(module, tmp_path))
    expected = module.ema.net.state_dict()
    for net in (back.net, back.ema.net):
        assert all(torch.equal(expected[k], v) for k, v in net.state_dict().items())
    assert type(back.parameterization) is type(module.parameterization)
    assert type(back.variance) is type(module.variance)
    torch.testing.assert_close(back.schedule.alpha, module.schedule.alpha, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.0])
def test_labels_make_the_round_trip(share, tmp_path):
    module = model(conditional=True, label_dropout=LabelDropout(share))
    back = convert(export(module, tmp_path), "--data=Digits")
    assert back.data == module.data
    assert back.knows_null == module.knows_null
    expected = module.ema.net.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in back.net.state_dict().items())


PUBLISHED = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": "0.1.1",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
BEFORE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def published(folder: Path, config=PUBLISHED, scheduler=SCHEDULER, weights=None):
    """The layout of google/ddpm-cifar10-32: flat, a pickle, and attention's former names."""
    theirs = randomized(diffusers.UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"}))
    folder.mkdir()
    for name, content in (
        ("config", config),
        ("scheduler_config", scheduler),
        ("model_index", INDEX),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    state = theirs.state_dict()
    for now, before in BEFORE.items():
        state = {k.replace(f".{now}.", f".{before}."): v for k, v in state.items()}
    torch.save(state if weights is None else weights, folder / "diffusion_pytorch_model.bin")
    return theirs.eval()


@torch.no_grad()
def test_the_published_layout_is_converted(tmp_path):
    theirs = published(tmp_path / "ddpm")
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path / "ddpm")  # they read it, too
    back = convert(tmp_path / "ddpm")
    x, c_noise = inputs(3, 3, 8, 8)
    expected = theirs(x, c_noise).sample
    torch.testing.assert_close(back.ema.net(x, c_noise), expected, atol=1e-5, rtol=1e-5)
    parts = (back.schedule, back.parameterization, back.variance)
    assert [type(part) for part in parts] == [Linear, Eps, FixedLarge]


DEFAULTS = {"sample_size": 8, "block_out_channels": (32, 32, 64)}
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
DEFAULTS |= {
    "down_block_types": BLOCKS,
    "up_block_types": [kind.replace("Down", "Up") for kind in reversed(BLOCKS)],
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"num_class_embeds": 10, "in_channels": 1, "out_channels": 1}, {"add_attention": False}],
    ids=["colours", "grey with labels", "no attention in the middle"],
)
def test_a_network_of_their_defaults_makes_the_round_trip(options, tmp_path):
    theirs = randomized(diffusers.UNet2DModel(**DEFAULTS, **options)).eval()
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path / "theirs")
    ours = convert(tmp_path / "theirs")
    assert isinstance(ours.net, DiffusersUNet)
    x, c_noise = inputs(3, theirs.config.in_channels, 8, 8)
    c_noise /= 10  # because float32's sines of 999, by theirs, are 3e-5 off the true ones here
    given = {"class_labels": torch.tensor([3, 0, 9])} if "num_class_embeds" in options else {}
    expected = theirs(x, c_noise, **given).sample
    condition = labels(3, 0, 9) if given else labels(-1, -1, -1)
    torch.testing.assert_close(ours.net(x, c_noise, condition), expected, atol=1e-5, rtol=1e-5)
    main(["export", f"--ckpt={tmp_path / 'back.ckpt'}", f"--out={tmp_path / 'ours'}"])
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet").state_dict()
    state = theirs.state_dict()
    assert all(torch.equal(back[k][: len(v)], v) for k, v in state.items())


@pytest.mark.slow
def test_sizes_may_be_written_as_floats(tmp_path):
    floats = {"block_out_channels": [32.0, 64.0], "layers_per_block": 2.0, "in_channels": 3.0}
    published(tmp_path / "ddpm")
    (tmp_path / "ddpm" / "config.json").write_text(json.dumps(PUBLISHED | floats))
    assert convert(tmp_path / "ddpm").net.multipliers == [1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_gate": 2}, "unknown key attention_gate"),
        ({"freq_shift": 2}, "freq_shift 2"),
        ({"freq_shift": 0}, "flip_sin_to_cos False"),
        ({"norm_eps": 1e-5}, "norm_eps 1e-05"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"block_out_channels": [32, 48]}, "32, 48"),
        ({"block_out_channels": "wide"}, "block_out_channels"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"layers_per_block": 3}, "lacks the tensor"),
        ({"layers_per_block": 10**9}, "at most 1000"),
        ({"layers_per_block": 1}, "no place for"),
        ({"sample_size": None}, "give --image_size"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_network_that_is_not_understood_is_named(change, said, tmp_path, capsys):
    published(tmp_path / "ddpm")
    (tmp_path / "ddpm" / "config.json").write_text(json.dumps(PUBLISHED | change))
    error = fail(capsys, "convert", f"--from={tmp_path / 'ddpm'}", f"--out={tmp_path / 'x.ckpt'}")
    assert said in error
    assert not (tmp_path / "x.ckpt").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lambda_min": 1}, "unknown key lambda_min"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ({"variance_type": "learned"}, "variance_type 'learned'"),
        ({"variance_type": "learned_range"}, "out_channels 3"),
        ({"beta_schedule": "laplace"}, "laplace"),
        ({"trained_betas": [0.1]}, "trained_betas has 1 numbers"),
        ({"beta_end": 20}, "betas from"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_scheduler_that_is_not_understood_is_named(change, said, tmp_path, capsys):
    published(tmp_path / "ddpm", scheduler=SCHEDULER | change)
    error = fail(capsys, "convert", f"--from={tmp_path / 'ddpm'}", f"--out={tmp_path / 'x.ckpt'}")
    assert said in error


class Trap:
    """Pickled, it creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_weights_of_full_precision_come_before_those_of_half(tmp_path, ending):
    for half in (".fp16.safetensors", ".fp16.bin"):
        _save(tmp_path / f"diffusion_pytorch_model{half}", 16)
    _save(tmp_path / f"diffusion_pytorch_model{ending}", 32)
    assert read_weights(tmp_path)["x"].item() == 32


def _save(path, value):
    tensors = {"x": torch.tensor(float(value))}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def test_a_pickle_of_more_than_tensors_is_refused_and_not_executed(tmp_path, capsys):
    published(tmp_path / "ddpm", weights={"conv_in.weight": Trap(tmp_path / "sprung")})
    error = fail(capsys, "convert", f"--from={tmp_path / 'ddpm'}", f"--out={tmp_path / 'x.ckpt'}")
    assert "holds more than tensors" in error
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # the trap itself works
    assert (tmp_path / "sprung").exists()


def test_a_pipeline_of_latents_is_refused(tmp_path, capsys):
    published(tmp_path / "ldm")
    index = INDEX | {"vqvae": ["diffusers", "VQModel"]}
    (tmp_path / "ldm" / "model_index.json").write_text(json.dumps(index))
    error = fail(capsys, "convert", f"--from={tmp_path / 'ldm'}", f"--out={tmp_path / 'x.ckpt'}")
    assert "vqvae" in error


def test_a_folder_of_diffusers_given_as_a_checkpoint_names_convert(tmp_path, capsys):
    published(tmp_path / "ddpm")
    error = fail(capsys, "sample", f"--ckpt={tmp_path / 'ddpm'}", f"--out={tmp_path / 'out'}")
    assert f"convert --from {tmp_path / 'ddpm'} --out" in error


def test_a_hub_name_without_a_network_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = fail(capsys, "convert", "--from=google/ddpm-none", f"--out={tmp_path / 'x.ckpt'}")
    assert "hf download google/ddpm-none --local-dir DIR" in error


def test_a_command_without_a_source_names_its_flag(tmp_path, capsys):
    error = fail(capsys, "convert", f"--out={tmp_path / 'x.ckpt'}")
    assert "convert what? Give --from FOLDER" in error


@pytest.mark.slow
def test_a_run_cannot_go_on_from_a_converted_model_but_start(tmp_path, capsys):
    convert(export(model(), tmp_path))
    words = [f"--ckpt_path={tmp_path / 'back.ckpt'}", "--data=Digits"]
    error = fail(capsys, "fit", *words, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert f"--init_from {tmp_path / 'back.ckpt'} in place of --ckpt_path" in error


@pytest.mark.slow
def test_a_converted_model_states_its_data_and_samples(tmp_path):
    module = model()
    folder = export(module, tmp_path)
    main(["convert", f"--from={folder}", f"--out={tmp_path / 'x.ckpt'}", "--data=Digits"])
    assert Loaded.read(tmp_path / "x.ckpt").data.spec == Digits().spec
    sampler = ["--sampler=DDIM", "--sampler.steps=2"]
    main(["sample", f"--ckpt={tmp_path / 'x.ckpt'}", f"--out={tmp_path / 'o'}", "--n=2", *sampler])
    assert (tmp_path / "o" / "grid.png").is_file()
    assert read_checkpoint(tmp_path / "x.ckpt")["global_step"] == 0


def test_converted_samples_are_those_of_the_checkpoint(tmp_path):
    module = model(schedule=SohlDickstein())
    back = convert(export(module, tmp_path))
    a, b = (one.sample(2, DDIM(10)) for one in (module, back))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ---- Trained --------------------------------------------------------------------------------


@pytest.fixture(params=["digits, cosine, v", "colours, linear, eps"])
def trained(request, tmp_path):
    """The checkpoint of a run long enough that its average is another network than its last."""
    words = [
        *("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_steps=60"),
        *("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"),
        *("--grid=null", "--metrics=null", "--model.net=UNet", "--model.net.channels=16"),
        *("--model.net.multipliers=[1,2]", "--model.net.blocks=1", "--model.net.groups=4"),
        *("--model.optimizer.lr=0.002", f"--trainer.default_root_dir={tmp_path / 'run'}"),
    ]
    if "digits" in request.param:
        words += ["--data=Digits", "--data.global_batch_size=64", "--model.schedule=Cosine"]
        words += ["--model.parameterization=V"]
    else:
        write_cifar10(tmp_path / "data")
        words += ["--data=CIFAR10", f"--data.root={tmp_path / 'data'}", "--data.held_out=0"]
        words += ["--data.global_batch_size=16"]
    main(["fit", *words])
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["ema", "raw"])
@torch.no_grad()
def test_a_trained_network_makes_the_round_trip_and_draws_the_same_images(
    weights, trained, tmp_path
):
    module = Loaded.read(trained).module
    net, folder = module.denoiser(weights).net, tmp_path / "folder"
    main(["export", f"--ckpt={trained}", f"--out={folder}", f"--weights={weights}"])
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    x, c_noise = inputs(3, *module.data.shape)
    expected = net(x, c_noise)
    torch.testing.assert_close(pipeline.unet(x, c_noise).sample, expected, atol=1e-5, rtol=1e-5)
    generator = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": 50, "use_clipped_model_output": True, "output_type": "pt"}
    theirs = pipeline(batch_size=3, generator=generator, **given).images
    x_T = torch.randn(3, *module.data.shape, generator=generator.manual_seed(0))
    ours = DDIM(50, clip=(-1, 1))(module.denoiser(weights), x_T)
    print(f"DDIM(50), {weights}: {(theirs - (ours / 2 + 0.5)).abs().max():.1e} apart")
    torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    back = convert(folder)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in back.net.state_dict().items())
