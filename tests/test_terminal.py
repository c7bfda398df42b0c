"""What is said to a mistake on the command line, and how its words are completed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ddpm_lightning.callbacks import SampleGrid
from ddpm_lightning.cli import main
from ddpm_lightning.cli.training import DiffusionCLI, SaveRunConfig, sampling_flags
from ddpm_lightning.commands.run import parser_of_command
from ddpm_lightning.commands.words import complete
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion import FixedLarge, Guidance, Schedule, SohlDickstein, samplers
from ddpm_lightning.errors import InputError, nearest
from ddpm_lightning.networks.checks import check_image
from ddpm_lightning.sampling import Request
from ddpm_lightning.terminal.choices import _may_take, classes
from ddpm_lightning.terminal.mistakes import users_mistake
from ddpm_lightning.terminal.parser import Parser, flags_of, parser_of
from tests.slips import SLIPS, Slip, command_line
from tests.small import fail

CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = str(CONFIGS / "digits.yaml")


@pytest.fixture(scope="module")
def run_parser() -> Any:
    """The parser of fit, validate, test and predict, which takes a while to build."""
    found = []

    def stop(cli, parser, args):
        found.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionCLI, "parse_arguments", stop)
        with pytest.raises(SystemExit):
            main(["fit"])
    return found[0]


def refusal(act: Callable[[], Any]) -> str | None:
    """What a user is told about the error of a call."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any)
        act()
    return users_mistake(caught.value)


def parsed(parser: Parser, *words: str) -> Any:
    """Parse words as a command does, without a subcommand."""
    return parser.instantiate_classes(parser.parse_args(complete(list(words), flags_of(parser))))


def parser_with(**hints: Any) -> Parser:
    """A parser with a flag for each type hint."""
    parser = Parser(allow_abbrev=False)
    for name, hint in hints.items():
        parser.add_argument(f"--{name}", type=hint)
    return parser


# ---------------------------------------------------------------------------- the slips


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.words[-40:])
def test_a_slip_is_answered_by_one_line(slip: Slip, run_parser, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = command_line(slip, str(tmp_path), DIGITS)
    try:
        if words[:1] == ["fit"]:  # most are seen by the parser, which takes a while to build
            run_parser.parse_args(["fit", *complete(words[1:], flags_of(run_parser, "fit"))])
        line: str | None = fail(capsys, *words)
    except Exception as error:
        line = users_mistake(error)
    assert line is not None
    assert not [part for part in slip.contains if part not in line], line


def test_no_slip_is_answered_by_what_was_typed_alone():
    for slip in SLIPS:
        assert [part for part in slip.contains if part not in slip.words], slip.words


def test_a_checkpoint_without_its_flag_is_recognized(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("last.ckpt").touch()
    line = fail(capsys, "sample", "last.ckpt", "--out", "o")
    assert line.endswith("unexpected 'last.ckpt'; did you mean --ckpt last.ckpt?")
    line = fail(capsys, "fit", "--config", DIGITS, "last.ckpt")
    assert line.endswith("did you mean --ckpt_path last.ckpt?")


def test_the_hint_at_brackets_is_for_lists_alone(tmp_path, capsys):
    for words in ("--n 1 2", "--labels 1 --n 2 3", "--labels three"):
        assert "brackets" not in fail(
            capsys, "sample", "--ckpt", "x", "--out", "o", *words.split()
        )


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("fit", "fit --config digits "),
        ("fit --model.net UNet", "fit --config digits --model.net UNet "),
        ("fit --config idea.yaml", "fit --config digits --config idea.yaml "),
        ("doctor -c idea.yaml", "doctor --config digits -c idea.yaml "),
    ],
)
def test_a_run_without_data_is_shown_the_config_that_has_them(
    words, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("idea.yaml").write_text("model: {net: UNet}")
    line = fail(capsys, *words.split())
    assert line.startswith("error: missing: --data; ")
    assert f" python -m ddpm_lightning {command}(list_configs lists them)" in line
    assert ("idea.yaml states only parts of a run" in line) == ("idea.yaml" in words)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_is_named_by_the_flag_of_the_command_if_it_has_one(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "--" not in fail(capsys, "check", str(tmp_path / name)).replace(str(tmp_path), "")
    run = ("--data=ImageFolder", f"--trainer.default_root_dir={tmp_path / 'run'}")
    line = fail(capsys, "fit", *run, f"--data.root={tmp_path / name}")
    assert line.endswith("(--data.root)")


def test_sizes_that_do_not_fit_are_told_without_an_argument_that_other_data_lack():
    with pytest.raises(InputError, match="choose images of 24×24 or 32×32") as caught:
        check_image("UNet", (1, 30, 30), 8)
    assert "image_size" not in str(caught.value)


# --------------------------------------------------------------------- mistakes and bugs


class Broken(Configurable):
    """Fails in one of three ways, of its own making."""

    def __init__(self, error: str = "type") -> None:
        if error == "type":
            len(3)  # type: ignore[arg-type]
        elif error == "value":
            raise ValueError("a bug")
        else:
            Broken(nothing=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("error", ["type", "value", "arguments"])
def test_a_bug_in_a_users_class_is_none_of_the_users_mistakes(error):
    parser = parser_with(part=Broken)
    assert refusal(lambda: parsed(parser, f"--part.error={error}")) is None


def raised(error: Exception, cause: Exception | None = None) -> Callable[[], None]:
    def act() -> None:
        raise error from cause

    return act


def test_an_input_error_is_a_mistake_wherever_it_was_raised():
    assert refusal(raised(InputError("no"))) == "no"
    assert refusal(raised(RuntimeError("wrapped"), InputError("no"))) == "no"
    assert refusal(raised(MisconfigurationException("not so"))) == "not so"
    assert refusal(lambda: [][0]) is None


# ------------------------------------------------------------------- names and choices


def test_choices_are_concrete_and_on_show():
    known = classes(Schedule)
    assert {"Cosine", "Linear"} <= known.keys()
    assert "Schedule" not in known
    private = ["_Scaled", "Sampler", "Unconditional", SaveRunConfig.__name__]
    assert not set(private) & classes(Callback | Configurable).keys()
    ours = [one for one in classes(Configurable).values() if "ddpm_lightning." in one.__module__]
    assert len(ours) > 40
    assert not [one for one in ours if one.class_path().startswith(one.__module__)]


def test_the_nearest_name_is_that_of_the_first_unknown_part():
    known = ["trainer.max_steps", "model.net"]
    assert nearest("modle.net.channels", known) == "; did you mean model?"
    assert nearest("xyz", known) == ""


def test_a_name_within_the_other_is_nearer_than_one_spelt_alike():
    known = ["global_batch_size", "resize", "size"]
    assert nearest("image_size", known) == "; did you mean size?"
    assert nearest("batch_size", known) == "; did you mean global_batch_size?"


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ("--schedule.help", "\n  Cosine  "),
        ("--grid.sampler.help", "\n  DDIM  "),
        ("--grid.sampler.spacing.help", "\n  KarrasSpacing  "),
        ("--schedule.help Linear", "--schedule.beta_end BETA_END"),
        ("--grid.sampler.spacing.help=KarrasSpacing", "--grid.sampler.spacing.rho RHO"),
        ("--grid.help", "--grid.guidance GUIDANCE"),
    ],
)
def test_help_for_a_flag_shows_the_choices_or_the_arguments_of_one(words, listed, capsys):
    parser = parser_with(schedule=Schedule, grid=SampleGrid | None)
    with pytest.raises(SystemExit) as caught:
        complete(words.split(), flags_of(parser))
    assert caught.value.code == 0
    assert listed in capsys.readouterr().out


# ------------------------------------------------------------------------- words completed


def drawn(ckpt: str, n: int = 4, **request: Any) -> Request:
    """Ask for samples.

    Args:
        ckpt: The checkpoint.
        n: How many.
    """
    return Request(**request)


@pytest.mark.parametrize(
    ("words", "guidance"),
    [
        ("", Guidance()),
        ("--guidance 2", Guidance(2)),
        ("--guidance -1", Guidance(-1)),
        ("--guidance 2 --guidance.interval [0.2,0.8]", Guidance(2, (0.2, 0.8))),
        ("--guidance.interval [0.2,0.8] --guidance 2", Guidance(2, (0.2, 0.8))),
        ("--guidance.scale=2 --guidance.interval=[0.2,0.8]", Guidance(2, (0.2, 0.8))),
        ("--guidance=2 --guidance.rescale=0.7", Guidance(2, None, 0.7)),
        ("--config FILE", Guidance(3)),
        ("--config FILE --guidance.interval [0.2,0.8]", Guidance(3, (0.2, 0.8))),
        ("--config FILE --guidance.rescale 0.7 --guidance 2", Guidance(2, None, 0.7)),
    ],
)
def test_a_number_for_guidance_is_its_scale_whatever_is_given_besides(words, guidance, tmp_path):
    (tmp_path / "file.yaml").write_text("guidance: 3")
    parser = Parser(allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(drawn)
    words = words.replace("FILE", str(tmp_path / "file.yaml"))
    settings = parsed(parser, "--ckpt=x", *words.split())
    assert drawn(settings.ckpt, guidance=settings.guidance).guidance == guidance


def test_the_fields_of_a_request_are_plain_flags_of_who_passes_them_on():
    parser = Parser()
    parser.add_function_arguments(drawn)
    asked = {"sampler", "guidance", "labels", "variance", "weights", "seed", "batch_size"}
    asked |= {"prompt", "negative_prompt"}
    assert asked | {"ckpt", "n"} == flags_of(parser).keys() - {"help", "h"}
    assert "Averaged" not in parser.format_help()
    assert "ema (averaged) or raw" in " ".join(parser.format_help().split())


def configured(parser: Any, config: str, *flags: str) -> Any:
    """What fit makes of a config and these flags."""
    words = complete([f"--config={CONFIGS / config}.yaml", *flags], flags_of(parser, "fit"))
    return yaml.safe_load(parser.dump(parser.parse_args(["fit", *words])))["fit"]


@pytest.mark.parametrize("flags", [("--model.net=DiT",), ("--model.net", "DiT")])
def test_a_new_class_has_its_own_defaults(flags, run_parser):
    net = configured(run_parser, "cifar10", *flags)["model"]["net"]
    own = {"patch": 2, "width": 384, "depth": 12, "heads": 6, "mlp_ratio": 4}
    own |= {"cross_attention": False, "context_depth": 2, "image_patch": 0}
    own |= {"activation_checkpointing": False}
    assert net["init_args"] == own


def test_a_class_named_in_a_config_file_has_its_own_defaults(run_parser, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {net: {class_path: SmallUNet}, schedule: {class_path: SohlDickstein}, "
        "ema: {class_path: EMA, init_args: {decay: 0.5}}}"
    )
    model = configured(run_parser, "digits", f"--config={file}")["model"]
    assert model["net"]["init_args"]["channels"] == 32  # the config before it has 32, too
    assert model["schedule"]["init_args"] == {"T": 40}
    assert model["ema"]["init_args"] == {"decay": 0.5, "warmup": True, "start": 0}
    again = configured(run_parser, "cifar10", f"--config={file}")["model"]
    assert again["net"]["init_args"]["channels"] == 32  # not the 128 of the config before it


@pytest.mark.parametrize("channels", [48, 128])  # 128 is also the config's
def test_arguments_given_beside_the_class_hold(channels, run_parser):
    flags = ("--model.net=SmallUNet", f"--model.net.channels={channels}")
    net = configured(run_parser, "cifar10", *flags)["model"]["net"]
    assert net["init_args"]["channels"] == channels


def test_the_same_class_named_again_keeps_the_config_s_arguments(run_parser):
    again = ("--model.net=UNet", "--model.schedule=Cosine", "--grid.sampler=DDIM")
    before, after = (configured(run_parser, "digits", *more) for more in ((), again))
    assert after["model"] == before["model"]
    assert after["grid"] == before["grid"]


def test_a_part_of_a_part_has_its_own_defaults_and_keeps_what_both_inherit(run_parser, tmp_path):
    file = tmp_path / "min_snr.yaml"
    file.write_text(
        "model: {objective: {class_path: MSE, init_args: {weighting: "
        "{class_path: MinSNR, init_args: {gamma: 3.0}}}}}"
    )
    more = (f"--config={file}", "--model.objective.weighting=P2")
    objective = configured(run_parser, "digits", *more)["model"]["objective"]
    assert objective["init_args"]["weighting"]["init_args"] == {"k": 1.0, "gamma": 1.0}
    more = (f"--config={file}", "--model.objective=Huber")
    objective = configured(run_parser, "digits", *more)["model"]["objective"]
    assert objective["init_args"]["weighting"]["init_args"] == {"gamma": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("block", ["grid", "metrics"])
@pytest.mark.parametrize("name", ["DDPM", "Heun", "LMS"])
def test_a_block_takes_every_other_sampler(block, name, run_parser):
    own = getattr(samplers, name)().plain_arguments(skip=("steps", "spacing"))
    flags = (f"--{block}.sampler={name}", f"--{block}.sampler.steps=3")
    stated = configured(run_parser, "digits", *flags)[block]["init_args"]["sampler"]
    assert {key: stated["init_args"].get(key) for key in own} == own  # null is not written
    assert stated["init_args"]["steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("words", [("clip", "null"), ("clip=null",), ("init_args.clip=null",)])
def test_an_argument_of_a_part_in_a_block_can_be_null(words, run_parser):
    first, *rest = words
    flags = ("--grid.sampler=DDIM", "--grid.sampler.clip=[0,1]", f"--grid.sampler.{first}", *rest)
    sampler = configured(run_parser, "digits", *flags)["grid"]["init_args"]["sampler"]
    assert "clip" not in sampler["init_args"]  # null is not written


def test_a_class_that_a_config_file_names_as_a_word_has_its_own_defaults(run_parser, tmp_path):
    file = tmp_path / "schedule.yaml"
    file.write_text("model: {schedule: SohlDickstein}")
    schedule = configured(run_parser, "digits", f"--config={file}")["model"]["schedule"]
    assert schedule["init_args"]["T"] == SohlDickstein().T


@pytest.mark.slow
def test_blocks_take_flags_another_class_or_null(run_parser):
    grid = configured(run_parser, "digits", "--grid.n=16", "--grid.sampler.steps=7")["grid"]
    assert (grid["init_args"]["n"], grid["init_args"]["frames"]) == (16, 12)
    assert grid["init_args"]["sampler"]["init_args"]["steps"] == 7
    assert "grid" not in configured(run_parser, "digits", "--grid=null")
    metrics = configured(run_parser, "digits", "--metrics=PointMetrics")["metrics"]
    assert metrics["init_args"]["metrics"] == ["swd", "mmd"]  # not the other class's
    assert metrics["init_args"]["every_n_steps"] == 300  # which both inherit


@pytest.mark.parametrize(
    "request_",
    [
        Request(samplers.DDPM()),
        Request(samplers.DDIM(steps=7, eta=0.5), guidance=1.5),
        Request(samplers.Euler(steps=4, spacing=samplers.KarrasSpacing(rho=3)), weights="raw"),
        Request(samplers.DDPM(9), Guidance(1 / 3, (0.2, 0.8), 0.7), labels=[3], seed=5),
        Request(samplers.DDPM(9), variance=FixedLarge()),
    ],
    ids=["DDPM", "DDIM", "Euler", "guidance", "variance"],
)
def test_the_line_after_a_run_samples_as_its_grid_did(request_):
    flags = sampling_flags(request_)
    parser = parser_of_command("sample")
    settings = parser.parse_args(complete(["--ckpt=a", "--out=b", *flags], flags_of(parser)))
    built = parser.instantiate_classes(settings)
    names = ("guidance", "labels", "weights", "seed")
    drawn = Request(**{name: built[name] for name in (*names, "sampler", "variance")})
    assert all(getattr(drawn, name) == getattr(request_, name) for name in names)
    for part in ("sampler", "variance"):
        ours, theirs = getattr(drawn, part), getattr(request_, part)
        assert ours is theirs is None or ours.describe() == theirs.describe()


def test_no_argument_of_a_class_is_ruled_out_before_its_parser_is_asked():
    own = [one for one in classes(Configurable).values() if one.__module__.startswith("ddpm_")]
    assert len(own) > 50
    for cls in own:
        arguments = set(flags_of(parser_of(cls))) - {"help", "config"}
        direct = [name for name in arguments if "." not in name]
        assert [name for name in direct if not _may_take(cls, name)] == [], cls
