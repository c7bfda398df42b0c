"""The help texts of the program and of the plain commands, stored as files.

A parser's help needs the classes that its flags accept, hence torch and Lightning: seconds. A
stored text needs neither. ``python -m ddpm_lightning.cli.help_texts`` writes them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).with_name("help")


def file_of(words: Sequence[str]) -> Path:
    """The file of a command's help: ddpm_lightning.plot.loss.txt of plot loss.

    Words with dots are no commands, so no two commands share a file.
    """
    return FOLDER / f"{'.'.join((FOLDER.parent.name, *words))}.txt"


def stored_help(words: Sequence[str]) -> str | None:
    """Return the text if a command line asks for nothing but help, and it is stored.

    Args:
        words: The command line after the program's name.
    """
    *command, last = words or [""]
    named = [word.replace("-", "_") for word in command]
    if last not in ("-h", "--help") or not all(word.isidentifier() for word in named):
        return None
    path = file_of(named)
    return path.read_text("utf-8") if path.is_file() else None
