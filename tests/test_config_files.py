"""Config files: UTF-8 whatever the locale, no key twice, no aliases that multiply."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Action
from pathlib import Path

import pytest
import yaml

from ddpm_lightning.commands.config_file import load_yaml, read_config
from ddpm_lightning.commands.words import complete
from ddpm_lightning.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a stands on line 1 already"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "line 4: b stands on line 2 already"),
        ("a: [{b: 1, b: 2}]", "line 1: b stands on line 1 already"),
        ("- a: 1\n-\n  c: 1\n  c: 1\n", "line 4: c stands on line 3 already"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text, message):
    with pytest.raises(InputError, match=message):
        load_yaml(text, "c.yaml")


def test_a_merged_key_may_be_replaced_and_sisters_may_have_the_same():
    text = "base: &base {a: 1, b: 2}\nmine: {<<: *base, a: 3}\nother: {a: 1}\n"
    assert load_yaml(text, "c.yaml")["mine"] == {"a": 3, "b": 2}


def test_aliases_that_multiply_are_refused_before_they_do():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 30)]
    with pytest.raises(InputError, match=r"line 5: more than 100000 values"):
        load_yaml("\n".join(lines), "c.yaml")


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 5000])
def test_circles_and_depth_are_refused(text):
    with pytest.raises(InputError, match=r"c\.yaml"):
        load_yaml(text, "c.yaml")


@pytest.mark.parametrize(
    "text", ["a: 2001-13-99", f"a: {'9' * 5000}", "a: \x01", "a: !!python/name:os"]
)
def test_values_that_yaml_cannot_make_are_one_line(text):
    with pytest.raises(InputError, match=r"c\.yaml") as caught:
        load_yaml(text, "c.yaml")
    assert "\n" not in str(caught.value)


def test_every_shipped_config_has_each_key_once_and_is_passed_on_as_it_is():
    for path in CONFIGS.glob("*.yaml"):
        text, settings = read_config(str(path))
        assert load_yaml(text, "text") == settings == yaml.safe_load(path.read_text("utf-8"))


def test_a_config_is_found_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("a: σ", encoding="utf-8")
    text, settings = read_config("~/c.yaml")
    assert settings == load_yaml(text, "text") == {"a": "σ"}
    assert text.isascii()


@pytest.mark.parametrize("text", ["[WIP] first", "{lr}_run", "{a", "[b]: c: d"])
def test_a_text_that_is_no_yaml_is_left_to_the_parser(text):
    flags = {"out": Action([], "out", type=str)}
    assert complete([f"--out={text}"], flags) == [f"--out={text}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{a: 1, a: 2}", "--out, line 1: a stands on line 1 already"), ("[" * 5000, "--out is nest")],
)
def test_a_flag_with_a_key_twice_or_without_end_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        complete([f"--out={text}"], {"out": Action([], "out", type=str)})


# ------------------------------------------------------------------------------ the locale


@pytest.fixture(scope="module")
def gbk(tmp_path_factory) -> dict[str, str]:
    """The environment of a Chinese locale that is not UTF-8."""
    folder = tmp_path_factory.mktemp("locale")
    try:
        subprocess.run(
            ["localedef", "-i", "zh_CN", "-f", "GBK", str(folder / "zh_CN.GBK")],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no localedef: {error}")
    changes = {"LOCPATH": str(folder), "LC_ALL": "zh_CN.GBK", "PYTHONUTF8": "0"}
    return {**os.environ, **changes}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit --config {} --print_config", "sample --help"])
def test_a_locale_without_the_signs_of_configs_and_help_does_not_matter(gbk, command):
    words = command.format(CONFIGS / "toy2d.yaml").split()
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_lightning", *words], env=gbk, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


@pytest.mark.slow
def test_output_that_an_encoding_lacks_is_replaced(tmp_path):
    code = (
        "import sys; from ddpm_lightning.cli import main\n"
        "try: main(['sample', '--ckpt=\\u2212.ckpt', '--out=o'])\n"
        "finally: print('± −')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = str(CONFIGS.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert b"no checkpoint at ?.ckpt" in done.stderr
    assert "± ?".encode("cp1252") in done.stdout


def test_all_text_is_read_and_written_as_utf_8():
    import ast

    import ddpm_lightning

    found = []
    for path in Path(ddpm_lightning.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            count = {"read_text": 1, "write_text": 2}.get(node.func.attr)
            if count is not None and not named and len(node.args) < count:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
