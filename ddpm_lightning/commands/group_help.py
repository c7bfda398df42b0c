"""The help of fit, validate, test and predict: an overview, and one part's settings at a time."""

from __future__ import annotations

import copy
import re
from typing import Any

from ddpm_lightning.commands.words import read_words

ALL = "all"

TITLES = {
    "trainer": "Lightning's trainer: steps, devices, precision, callbacks, run folder",
    "data": "The data set, and the images of an optimizer step",
}
"""Of parts whose class is Lightning's."""


def group_help(parser: Any, words: list[str]) -> str | None:
    """Return the help that words ask for; None: none, or that of a class.

    Args:
        parser: The parser of the command.
        words: The command line without the command.
    """
    given = dict(read_words(words))
    groups = _groups(parser)
    for name in [name for name in groups if f"{name}.help" in given]:
        shown = copy.copy(parser)
        shown.usage = f"{parser.prog} [--{name}.SETTING VALUE …]"
        shown._action_groups = [groups[name]]
        return str(shown.format_help())
    asked = next((given[flag] for flag in ("help", "h") if flag in given), None)
    if asked is None or asked == ALL:
        return None if asked is None else str(parser.format_help())
    plain = copy.copy(parser)
    plain.usage = f"{parser.prog} --config FILE [--PART.SETTING VALUE …]"
    plain._action_groups = [
        group for group in parser._action_groups if not _parts(group) and not _is_linked(group)
    ]
    parts = _all_parts(parser).items()
    lines = [f"  {f'--{name}.help':18}  {_title(group, name)}" for name, group in parts]
    end = f"\n\na class's own: --model.net.help UNet; every setting: --help {ALL}\n"
    return f"{plain.format_help().rstrip()}\n\nparts:\n" + "\n".join(lines) + end


def _groups(parser: Any) -> dict[str, Any]:
    """The groups whose help is that of settings, by name; a class's own help lists classes."""
    parts = _all_parts(parser)
    classes = {
        option.lstrip("-") for action in parser._actions for option in action.option_strings
    }
    return {name: group for name, group in parts.items() if f"{name}.help" not in classes}


def _all_parts(parser: Any) -> dict[str, Any]:
    return {
        name: group
        for group in parser._action_groups
        if not _is_linked(group)
        for name in sorted(_parts(group))
    }


def _parts(group: Any) -> set[str]:
    """The first names of a group's dotted flags."""
    options = [option for action in group._group_actions for option in action.option_strings]
    return {option.lstrip("-").partition(".")[0] for option in options if "." in option}


def _is_linked(group: Any) -> bool:
    return group.title == "Linked arguments"


def _title(group: Any, name: str) -> str:
    title = group.title or ""
    kinds = re.findall(r"\.(\w+)'>", title)  # of several classes, the parser shows their repr
    return TITLES.get(name, " or ".join(kinds) or title)
