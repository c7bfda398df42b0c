"""Runs that start from the weights of a checkpoint."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.cli import main
from ddpm_lightning.codecs import Haar
from ddpm_lightning.diffusion import LabelDropout, Linear, V
from ddpm_lightning.errors import InputError
from ddpm_lightning.initial_weights import initialize
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.networks import DiffusersUNet, DiT, UNet
from tests.small import TinyUNet, fail, image_spec, inputs, labels, tiny_module
from tests.test_diffusers import drawn_anew, save


@pytest.fixture
def unlabelled(tmp_path):
    return save(drawn_anew(tiny_module()), tmp_path / "unlabelled.ckpt")


@pytest.fixture
def labelled(tmp_path):
    return save(drawn_anew(tiny_module(conditional=True)), tmp_path / "labelled.ckpt")


def averaged(path):
    return Loaded.read(path).module.ema.net


def test_the_same_network_takes_all_averaged_weights(unlabelled):
    module = tiny_module()
    told = initialize(module, unlabelled)
    expected = averaged(unlabelled).state_dict()
    for net in (module.net, module.ema.net):
        assert all(torch.equal(expected[k], v) for k, v in net.state_dict().items())
    size = sum(p.numel() for p in module.net.parameters())
    assert told == f"{size:,} of {size:,} parameters start from {unlabelled}"


@torch.no_grad()
def test_new_labels_start_as_the_unlabelled_network(unlabelled):
    module = tiny_module(conditional=True)
    told = initialize(module, unlabelled)
    x, c_noise = inputs(3, 1, 8, 8)
    expected = averaged(unlabelled)(x, c_noise)
    module.eval()
    torch.testing.assert_close(module.net(x, c_noise, labels(3, -1, 9)), expected)
    (row,) = [line.split("  ") for line in told.splitlines() if "embed.label" in line]
    assert [cell.strip() for cell in row if cell] == [
        "embed.label.weight",
        "11×32",
        "–",
        "as without a class",
    ]


@torch.no_grad()
@pytest.mark.parametrize("classes", [4, None])
def test_other_labels_start_as_the_network_without_a_class(classes, labelled):
    data = image_spec(num_classes=classes)
    module = tiny_module(data=data, conditional=classes is not None).eval()
    initialize(module, labelled)
    x, c_noise = inputs(3, 1, 8, 8)
    expected = averaged(labelled)(x, c_noise, labels(-1, -1, -1))
    torch.testing.assert_close(module.net(x, c_noise, labels(0, 3, 2)), expected)


@torch.no_grad()
def test_the_mean_class_stands_in_for_a_null_label_that_was_never_trained(tmp_path):
    source = drawn_anew(tiny_module(conditional=True, label_dropout=LabelDropout(0.0)))
    path = save(source, tmp_path / "x.ckpt")
    module = tiny_module(data=image_spec(num_classes=3), conditional=True)
    initialize(module, path)
    expected = source.ema.net.embed.label.weight[:10].mean(0)
    torch.testing.assert_close(module.net.embed.label.weight, expected.expand(4, -1))


def test_other_channels_take_all_but_the_first_and_the_last_layer(unlabelled):
    module = tiny_module(data=image_spec(3, num_classes=10))
    first = module.net.stem.weight.clone()
    told = initialize(module, unlabelled)
    kept = {line.split()[0] for line in told.splitlines() if "as initialized" in line}
    assert kept == {"stem.weight", "out.weight", "out.bias"}
    assert torch.equal(module.net.stem.weight, first)
    expected = averaged(unlabelled).down[0].blocks[0].residual.conv1.weight
    assert torch.equal(module.net.down[0].blocks[0].residual.conv1.weight, expected)


def test_other_sizes_and_levels_take_all_and_name_the_levels(unlabelled):
    module = tiny_module(data=image_spec(size=16), schedule=Linear(200), parameterization=V())
    told = initialize(module, unlabelled)
    expected = averaged(unlabelled).state_dict()
    assert all(torch.equal(expected[k], v) for k, v in module.net.state_dict().items())
    assert "schedule: Linear {'T': 200" in told
    assert "parameterization: V here, Eps there" in told


def told_of_networks(here, there, tmp_path):
    path = save(drawn_anew(tiny_module(net=there)), tmp_path / "x.ckpt")
    return initialize(tiny_module(net=here), path).splitlines()[1:]


def test_a_network_that_uses_the_same_weights_otherwise_is_told(tmp_path):
    here, there = partial(TinyUNet, heads=1, groups=8), partial(TinyUNet, heads=4, dropout=0.3)
    told = told_of_networks(here, there, tmp_path)
    assert told == ["  net.heads: 1 here, 4 there", "  net.groups: 8 here, 4 there"]


def test_a_network_of_another_class_with_the_same_weights_is_told(tmp_path):
    widths = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    here, there = (partial(kind, **widths, attention_levels=[1]) for kind in (UNet, DiffusersUNet))
    told = told_of_networks(here, there, tmp_path)
    assert told[0] == (
        "  net: ddpm_lightning.networks.UNet here, ddpm_lightning.networks.DiffusersUNet there"
    )
    assert "  net.head_width: – here, 8 there" in told


@pytest.mark.parametrize(
    "net", [partial(TinyUNet, channels=16), partial(DiT, width=8, depth=1, heads=1)]
)
def test_less_than_half_is_refused_and_changes_nothing(net, unlabelled):
    module = DiffusionModule(image_spec(), net)
    before = {k: v.clone() for k, v in module.net.state_dict().items()}
    with pytest.raises(InputError, match=r"less than half.*'channels': 8"):
        initialize(module, unlabelled)
    assert all(torch.equal(before[k], v) for k, v in module.net.state_dict().items())


TINY = [
    "--data=Digits",
    "--data.global_batch_size=8",
    "--model.net=UNet",
    "--model.net.channels=8",
    "--model.net.multipliers=[1,2]",
    "--model.net.blocks=1",
    "--model.net.groups=4",
    "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=0",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--grid=null",
    "--metrics=null",
]


def fit(root, steps, *words):
    main(
        [
            "fit",
            *TINY,
            f"--trainer.default_root_dir={root}",
            f"--trainer.max_steps={steps}",
            *words,
        ]
    )


@pytest.mark.slow
def test_a_run_starts_from_weights_and_a_resumed_one_does_not_again(unlabelled, tmp_path, capsys):
    run = tmp_path / "run"
    words = [f"--init_from={unlabelled}", "--ckpt_path=auto", "--model.conditional=true"]
    fit(run, 1, *words, "--model.optimizer.lr=1e-9")
    assert "parameters start from" in capsys.readouterr().out
    net = Loaded.read(run / "checkpoints" / "last.ckpt").module.net
    weight = averaged(unlabelled).mid[0].residual.conv1.weight
    torch.testing.assert_close(net.mid[0].residual.conv1.weight, weight, rtol=0, atol=1e-6)
    unlabelled.unlink()
    fit(run, 2, *words, "--model.optimizer.lr=1e-9")
    main(["fit", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.max_steps=3"])
    assert "parameters start from" not in capsys.readouterr().out
    assert Loaded.read(run / "checkpoints" / "last.ckpt").step == 3


def test_a_start_from_weights_and_a_run_to_go_on_with_are_one_line(unlabelled, capsys):
    error = fail(capsys, "fit", *TINY, f"--init_from={unlabelled}", "--ckpt_path=last")
    assert "--init_from starts a run, and --ckpt_path goes on with one" in error


def test_a_missing_checkpoint_to_start_from_is_one_line(tmp_path, capsys):
    words = [f"--init_from={tmp_path / 'no.ckpt'}", f"--trainer.default_root_dir={tmp_path / 'r'}"]
    assert "no checkpoint at" in fail(capsys, "fit", *TINY, *words)


def test_other_codecs_are_told(tmp_path):
    spec = image_spec(channels=4)
    path = save(drawn_anew(tiny_module(data=spec)), tmp_path / "pixels.ckpt")
    told = initialize(tiny_module(codec=Haar(), net=TinyUNet), path)
    assert told.splitlines()[-1] == "  codec: Haar here, Identity there"
