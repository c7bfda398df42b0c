"""Write the stored help texts: python -m ddpm_lightning.cli.help_texts (--check: compare them)."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from io import StringIO

from ddpm_lightning.cli.command_line import main
from ddpm_lightning.commands.run import COMMANDS
from ddpm_lightning.stored_help import FOLDER, file_of

WIDTH = "80"
"""Columns of the stored texts; a terminal is seldom narrower."""

VERSIONS = (
    f"Python {sys.version_info[0]}.{sys.version_info[1]}, jsonargparse {version('jsonargparse')}"
)
"""What formats the texts: others break lines and name types in other ways."""


def help_texts() -> dict[str, str]:
    """Let the parsers format the help of the program and of each plain command, by file name."""
    commands = [[], ["completion"], *([name] for name in COMMANDS)]
    commands += [
        [name, sub] for name, of in COMMANDS.items() if isinstance(of, dict) for sub in of
    ]
    return {file_of(words).name: _help(words) for words in commands}


def _help(words: list[str]) -> str:
    shown, os.environ["COLUMNS"] = StringIO(), WIDTH
    with redirect_stdout(shown), suppress(SystemExit):
        main([*words, "--help"])
    return shown.getvalue()


def _stale(texts: dict[str, str]) -> list[str]:
    """List the files that do not hold these texts, or none of them, as others format them."""
    stored = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}
    if stored["versions"] != texts["versions"]:
        print(f"not compared: the texts are of {stored['versions']}, this is {texts['versions']}")
        return []
    return sorted(n for n in texts.keys() | stored.keys() if texts.get(n) != stored.get(n))


def _write(texts: dict[str, str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    found = help_texts() | {"versions": VERSIONS}
    if sys.argv[1:] == ["--check"]:
        if stale := _stale(found):
            sys.exit(f"stale: {', '.join(stale)}; python -m ddpm_lightning.cli.help_texts")
    else:
        _write(found)
