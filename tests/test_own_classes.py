"""What is said of a user's own class that cannot be used: which one, where, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from ddpm_lightning.commands.edits import Edit
from ddpm_lightning.commands.words import complete
from ddpm_lightning.configurable import configurable_class
from ddpm_lightning.data.crops import Crop
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.diffusion import Linear
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.editing import repaint
from ddpm_lightning.diffusion.losses import Objective
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.parameterizations import Eps, Parameterization
from ddpm_lightning.diffusion.prediction import Variance
from ddpm_lightning.diffusion.samplers import DDIM, Sampler, SingleStep, Spacing, State
from ddpm_lightning.diffusion.timesteps import Timesteps
from ddpm_lightning.diffusion.weightings import Weighting
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import FeatureExtractor
from ddpm_lightning.metrics.metric import Metric, as_metrics
from ddpm_lightning.networks.network import Network
from ddpm_lightning.sampling import levels_from_noise
from ddpm_lightning.terminal.parser import Parser, flags_of
from tests.small import fail
from tests.test_trust import set_at
from tests.test_whole_checkpoints import altered

HERE = __name__

# ---------------------------------------------------------------- a module that fails on import

BROKEN = {
    "wrong_name": (
        "import sys\nfrom ddpm_lightning.diffusion.samplers import Samplers\n",
        "line 2, fails when it is imported: ImportError: cannot import name 'Samplers'",
    ),
    "no_syntax": ("x = 1\ndef f(:\n", "line 2, fails when it is imported: SyntaxError: "),
    "raises": (
        "import json\n\njson.loads('{')\n",
        "line 3, fails when it is imported: JSONDecodeError: ",
    ),
    "lacks_a_package": (
        "import nobody_has_this\n",
        "line 1, fails when it is imported: ModuleNotFoundError: No module named 'nobody_has_",
    ),
}


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path, monkeypatch):
    """A module that fails on import: its name, and what has to be said of it."""
    text, said = BROKEN[request.param]
    name = f"broken_{request.param}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield name, f"{tmp_path / name}.py, {said}"
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sampler", "sample --ckpt x --out o --sampler NAME.Foo"),
        ("sampler", "sample --ckpt x --out o --sampler NAME.foo"),
        ("sampler.spacing", "evaluate --ckpt x --out o --sampler DDIM --sampler.spacing NAME.Foo"),
        ("sampler", "sample --ckpt x --out o --sampler.help NAME.Foo"),
        ("sampler", "sample --ckpt x --out o --config words.yaml"),
        ("sampler", "sample --ckpt x --out o --config dictionary.yaml"),
    ],
)
def test_a_module_that_fails_is_named_with_the_setting_the_line_and_the_cause(
    setting, words, broken, tmp_path, capsys
):
    name, said = broken
    (tmp_path / "words.yaml").write_text(f"sampler: {name}.Foo")
    (tmp_path / "dictionary.yaml").write_text(f"sampler: {{class_path: {name}.Foo}}")
    line = fail(capsys, *words.replace("NAME", name).split())
    assert line.startswith(f"error: {setting}: {said}")


@pytest.mark.parametrize(
    "words",
    ["--grid.sampler=NAME.Foo", "--model.net=NAME.Foo", "--trainer.callbacks+=NAME.Foo"],
)
def test_so_it_is_for_the_flags_of_fit(words, broken, capsys):
    name, said = broken
    line = fail(capsys, "fit", "--config", "digits", words.replace("NAME", name))
    assert line.startswith(f"error: {words[2:].split('=')[0].rstrip('+')}: {said}")


def test_so_it_is_for_a_list_of_metrics(broken):
    name, said = broken
    with pytest.raises(InputError) as caught:
        as_metrics(["fd", f"{name}.Foo"])
    assert str(caught.value).startswith(f"metrics: cannot import {name}.Foo: {said}")


def test_so_it_is_for_a_checkpoint(broken, tiny_checkpoint, tmp_path, capsys):
    name, said = broken

    def edit(content):
        set_at(content, "hyper_parameters/schedule/class_path", f"{name}.Foo")

    path = altered(tiny_checkpoint, tmp_path, edit)
    line = fail(capsys, "sample", f"--ckpt={path}", f"--out={tmp_path / 'out'}", f"--trust={name}")
    assert str(path) in line
    assert f"cannot import {name}.Foo: {said}" in line


def test_a_module_of_a_package_is_named_not_the_package_that_imports_it(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "outer_idea"
    folder.mkdir()
    (folder / "__init__.py").write_text("import outer_idea.inner\n")
    (folder / "inner.py").write_text("def f():\n    return {}['key']\n\n\nf()\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = fail(capsys, "sample", "--ckpt=x", "--out=o", "--sampler=outer_idea.Foo")
    assert f"{folder / 'inner.py'}, line 2, fails when it is imported: KeyError: 'key'" in line


def test_a_misspelt_class_of_a_checkpoint_has_a_suggestion():
    own = lacking(Crop)
    with pytest.raises(InputError, match=rf"did you mean {own}\?"):
        configurable_class(f"{own}p")


# ---------------------------------------------------------------------------- abstract classes


def lacking(base: type) -> str:
    """Define a class that defines nothing of what its base class demands; name it."""
    name = f"Lacking{base.__name__}"
    setattr(sys.modules[HERE], name, type(name, (base,), {"__module__": HERE}))
    return f"{HERE}.{name}"


BASES = [Sampler, SingleStep, Spacing, Parameterization, Variance, Objective, Weighting]
BASES += [Timesteps, DiffusionData, Crop, Edit, FeatureExtractor]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
@pytest.mark.parametrize("factory", [False, True])
def test_an_abstract_class_is_told_what_it_lacks(base, factory):
    parser = Parser()
    parser.add_argument("--part", type=Callable[[int], base] if factory else base)
    name = lacking(base)
    lacks = ", ".join(f"{one}()" for one in sorted(base.__abstractmethods__))
    with pytest.raises(InputError) as caught:
        complete([f"--part={name}"], flags_of(parser))
    assert str(caught.value) == f"part: {name} is abstract: it lacks {lacks}"


def test_so_it_is_for_a_network_on_the_command_line(capsys):
    line = fail(capsys, "fit", "--config", "digits", f"--model.net={lacking(Network)}")
    assert line.endswith("LackingNetwork is abstract: it lacks forward()")


def test_so_it_is_for_a_metric():
    with pytest.raises(InputError, match=r"LackingMetric is abstract: it lacks __call__\(\)"):
        as_metrics([lacking(Metric)])


# ---------------------------------------------------------------------------- broken samplers


class _NoStep(SingleStep):
    """Returns nothing."""

    def step(self, prediction, s, noise):
        """Forget the return."""


class _Flat(SingleStep):
    """Returns a tensor of another shape."""

    def step(self, prediction, s, noise):
        """Flatten it."""
        return prediction.x0.flatten()


class _TwoArguments(SingleStep):
    """Has another signature."""

    def step(self, prediction, s):  # type: ignore[override]
        """Take no noise."""
        return prediction.x0


class _NoSteps(Sampler):
    """Yields nothing."""

    def path(self, predict, schedule, x, draw):
        """Return at once."""
        return x


class _Pairs(Sampler):
    """Yields other things than States."""

    def path(self, predict, schedule, x, draw):
        """Yield a pair."""
        yield schedule.T, x
        return x


class _NoResult(Sampler):
    """Returns nothing in the end."""

    def path(self, predict, schedule, x, draw):
        """Forget the return."""
        yield State(schedule.T, x, predict(x, schedule.T).x0)


class _AsksForNothing(Sampler):
    """Asks for a prediction from nothing."""

    def path(self, predict, schedule, x, draw):
        """Ask with None."""
        yield State(schedule.T, x, predict(None, schedule.T).x0)
        return x


BROKEN_SAMPLERS = [
    (_NoStep, r"_NoStep.step returns nothing \(None\), not a tensor of shape \[3, 2\]"),
    (_Flat, r"_Flat.step returns a tensor of shape \[6\], not a tensor of shape \[3, 2\]"),
    (
        _TwoArguments,
        r"_TwoArguments.step takes \(prediction, s\); it must take \(prediction, s, noise\)",
    ),
    (_NoSteps, r"_NoSteps.path returns a tensor of shape \[3, 2\]; it must yield State"),
    (_Pairs, r"_Pairs.path yields a tuple, not State"),
    (_NoResult, r"_NoResult.path returns nothing \(None\), not a tensor"),
    (_AsksForNothing, r"_AsksForNothing.path asks for a prediction from nothing \(None\)"),
]


@pytest.mark.parametrize(("sampler", "said"), BROKEN_SAMPLERS, ids=lambda one: str(one)[:20])
def test_a_sampler_that_returns_something_else_is_named(sampler, said):
    oracle = Gaussian(Linear(), torch.zeros(2), torch.eye(2))
    with pytest.raises(InputError, match=said):
        sampler(steps=3)(oracle, torch.zeros(3, 2))


@pytest.mark.parametrize(("sampler", "said"), BROKEN_SAMPLERS[:3], ids=lambda one: str(one)[:20])
def test_so_it_is_in_edits(sampler, said):
    oracle = Gaussian(Linear(), torch.zeros(2), torch.eye(2))
    painted = torch.tensor([True, False])
    with pytest.raises(InputError, match=said):
        list(repaint(oracle, torch.zeros(3, 2), painted, sampler=sampler(steps=20)))


def test_a_type_error_within_a_step_is_the_classes_own():
    class _Fails(SingleStep):
        def step(self, prediction, s, noise):
            return len(3)

    oracle = Gaussian(Linear(), torch.zeros(2), torch.eye(2))
    with pytest.raises(TypeError, match="has no len") as caught:
        _Fails(steps=3)(oracle, torch.zeros(3, 2))
    assert str(caught.traceback[-1].path) == __file__


def test_levels_that_are_no_list_are_refused_by_the_name_of_their_class():
    class NoLevels(Spacing):
        def __call__(self, schedule, steps):
            pass

    oracle = Gaussian(Linear(), torch.zeros(2), torch.eye(2))
    with pytest.raises(InputError, match="NoLevels gives the levels None"):
        levels_from_noise(DDIM(spacing=NoLevels()), oracle)


def test_a_network_that_returns_nothing_is_named():
    class Forgets(Network):
        def forward(self, x, c_noise, condition=None):
            pass

    denoiser = Denoiser(Forgets(), Linear(), Eps())
    with pytest.raises(InputError, match=r"Forgets returns nothing \(None\), not a tensor"):
        denoiser(torch.zeros(3, 2), 5)
