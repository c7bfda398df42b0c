"""Objects that state how they were made, as plain data, and are rebuilt from it."""

import copy
import enum
import inspect
import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning.configurable import Configurable, build
from ddpm_lightning.diffusion.losses import MSE
from ddpm_lightning.diffusion.parameterizations import Eps
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, Levels, QuadraticSpacing, UniformSpacing
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.diffusion.weightings import MinSNR
from ddpm_lightning.errors import InputError


class Named(Configurable):
    """Every kind of argument."""

    def __init__(self, a: int, b: str = "b", *, c: float = 0.5, **rest: Any) -> None:
        self.got = (a, b, c, rest)


@dataclass(frozen=True)
class Frozen(Configurable):
    """A frozen value."""

    x: int
    inner: Configurable = Named(1)  # noqa: RUF009


class Layer(Configurable, nn.Module):
    """A module with weights."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Bare(Configurable):
    """No arguments at all."""


class Picky(Configurable):
    """Refuses its argument."""

    def __init__(self, n: int) -> None:
        raise InputError(f"n={n} is no good")


class Stranger:
    """Not configurable."""

    made = 0

    def __init__(self) -> None:
        Stranger.made += 1


class Colour(enum.IntEnum):
    RED = 3


HERE = "tests.test_configurable"


def arguments(value):
    return value.describe()["init_args"]


# Describing


def test_a_description_names_the_class_and_its_arguments():
    assert Linear(300, beta_end=0.03).describe() == {
        "class_path": "ddpm_lightning.diffusion.Linear",
        "init_args": {"T": 300, "beta_start": 1e-4, "beta_end": 0.03, "rescale": True},
    }


def test_positional_keyword_and_extra_arguments_are_all_stated():
    stated = {"a": 1, "b": "x", "c": 2.0, "d": [1, 2], "e": None}
    assert arguments(Named(1, "x", c=2.0, d=[1, 2], e=None)) == stated


def test_defaults_are_stated_so_that_a_new_default_does_not_change_an_old_checkpoint():
    assert arguments(MinSNR()) == {"gamma": 5.0}
    assert arguments(Named(1)) == {"a": 1, "b": "b", "c": 0.5}


def test_objects_inside_arguments_are_described_too():
    bare = {"class_path": f"{HERE}.Bare", "init_args": {}}
    nested = arguments(Named([Bare(), {"key": (Bare(), 1)}], Bare()))
    assert (nested["a"], nested["b"]) == ([bare, {"key": [bare, 1]}], bare)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(torch.ones(2), "Tensor"), (Stranger, "type")],
)
def test_an_argument_that_is_not_plain_data_is_an_error_that_names_it(value, kind):
    with pytest.raises(InputError, match=rf"{HERE}\.Named\(a=\.\.\.\) is a ({kind}),"):
        Named(value).describe()


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.float64(0.25), 0.25), (Colour.RED, 3), (True, True), (None, None), ("x", "x")],
)
def test_a_description_survives_a_checkpoint_that_admits_nothing_but_plain_data(value, plain):
    described = arguments(Named(value))
    assert type(described["a"]) is type(plain)
    file = io.BytesIO()
    torch.save(described, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["a"] == plain


# Building


@pytest.mark.parametrize(
    "value",
    [
        Named(1, "x", c=2.0, d=[1, 2]),
        Frozen(3, Named(2)),
        Frozen(4),
        Bare(),
        Layer(5),
        Cosine(T=50, offset=0.01),
        MSE(),
        MSE(MinSNR(3.0)),
        DDPM(10, QuadraticSpacing(), clip=(-1.0, 1.0)),
        DDIM(None, spacing=Levels([9, 3, 0])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_built_from_a_description_describes_itself_the_same(value):
    again = build(value.describe())
    assert type(again) is type(value)
    assert again.describe() == value.describe()


def test_built_objects_have_their_arguments_inside_and_plain_values_pass_through():
    built = build(Frozen(3, Named(2, c=7.0)).describe())
    assert built.x == 3
    assert built.inner.got == (2, "b", 7.0, {})
    for value in (None, 3, 0.5, "text", [1, [2]], {"key": 1}):
        assert build(value) == value


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        (f"{HERE}.Stranger", {}, "refusing to run it"),
        (f"{HERE}.HERE", {}, "refusing to run it"),
        ("subprocess.Popen", {"args": ["touch", "started"]}, "refusing to run it"),
        ("no_such_module.Class", {}, "cannot import .* install its package"),
        (f"{HERE}.NoSuchClass", {}, "cannot import .* install its package"),
        ("Class", {}, "cannot import .* install its package"),
        ("", {}, "cannot import .* install its package"),
        (f"{HERE}.Layer", {"bogus": 1}, "Layer does not fit its description: .*'bogus'"),
        (f"{HERE}.Picky", {"n": 7}, "n=7 is no good"),
    ],
)
def test_a_description_that_cannot_be_built_is_refused_and_nothing_is_run(
    path, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        build({"class_path": path, "init_args": arguments})
    assert Stranger.made == 0
    assert not list(tmp_path.iterdir())


# Copies with changed arguments


def test_a_class_path_names_the_outermost_package_that_shows_the_class():
    assert DDIM.class_path() == "ddpm_lightning.diffusion.samplers.DDIM"
    assert Cosine.class_path() == "ddpm_lightning.diffusion.Cosine"
    assert Bare.class_path() == f"{HERE}.Bare"


def test_replace_builds_the_object_anew_with_changed_arguments():
    value = Named(1, "x", c=2.0, d=[1])
    again = value.replace(b="y", d=3)
    assert again.got == (1, "y", 2.0, {"d": 3})
    assert value.got == (1, "x", 2.0, {"d": [1]})
    assert arguments(DDIM(7, eta=0.5).replace(steps=3)) == arguments(DDIM(3, eta=0.5))
    with pytest.raises(InputError, match=r"Linear takes no argument 'bogus'"):
        Linear().replace(bogus=1)
    with pytest.raises(InputError, match="eta lies between 0"):
        DDIM().replace(eta=2.0)


def test_changed_gives_the_arguments_that_differ_from_the_defaults():
    assert Linear().changed() == {}
    assert Linear(T=1000, beta_end=0.03).changed() == {"beta_end": 0.03}
    assert Named(1, c=0.5, d=4).changed() == {"a": 1, "d": 4}  # a has no default
    assert DDIM(spacing=UniformSpacing(), clip=(-1, 1)).changed() == {"clip": (-1, 1)}


# Python's own view of a configurable class


@pytest.mark.parametrize("cls", [Linear, DDIM, Named, Layer, Frozen])
def test_the_signature_is_that_of_init(cls):
    expected = list(inspect.signature(cls.__init__).parameters.values())[1:]
    assert list(inspect.signature(cls).parameters.values()) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Eps(gamma=5.0), r"Eps\(\) takes no arguments"),
        (lambda: Bare(1), r"Bare\(\) takes no arguments"),
        (lambda: Named(), r"Named.__init__\(\) missing 1 required positional"),
        (lambda: Cosine(t=5), r"Cosine.__init__\(\) got an unexpected keyword.*'t'"),
    ],
)
def test_wrong_arguments_give_the_type_error_of_init(call, message):
    assert str(inspect.signature(Bare)) == "()"
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize(
    "value",
    [Named(1, d=2), Frozen(3, Named(2)), Layer(5), Cosine(50), Bare(), DDIM(3, eta=0.5)],
    ids=lambda value: type(value).__name__,
)
def test_copies_and_pickles_keep_their_arguments(value, duplicate):
    assert duplicate(value).describe() == value.describe()


def test_a_deep_copy_has_arguments_of_its_own():
    value = Named([1, 2])
    duplicate = copy.deepcopy(value)
    value._arguments["a"].append(3)
    assert arguments(duplicate)["a"] == [1, 2]


def test_weights_of_a_copied_module_are_kept():
    layer = Layer(3)
    layer.weight.data.fill_(7)
    assert copy.deepcopy(layer).weight.tolist() == [7, 7, 7]


def test_frozen_dataclasses_stay_frozen_and_equal():
    inner = Named(2)
    assert Frozen(3, inner) == Frozen(3, inner)
    assert Frozen(3, inner) != Frozen(4, inner)
    with pytest.raises(AttributeError, match="cannot assign"):
        Frozen(3).x = 4
