"""Reading config files: UTF-8, no key twice, no aliases that multiply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ddpm_lightning.commands.list_configs import find_config, shipped_configs
from ddpm_lightning.commands.paths import expanded
from ddpm_lightning.errors import InputError, nearest

MERGE = "tag:yaml.org,2002:merge"
"""YAML's ``<<``, which may stand beside the keys that it brings."""

MOST_VALUES = 100_000
"""Values of a config file, those behind aliases counted each time: ours have about 200."""


def read_config(file: str) -> tuple[str, dict[str, Any]]:
    """Read a config file.

    Args:
        file: Its path, in which ~ and $VAR are expanded, or the name of a shipped config.

    Returns:
        Its text in ASCII, for the parser, which would decode a file by the locale; its settings.

    Raises:
        InputError: It is missing or is not a mapping of settings; names the file and the line.
    """
    path = find_config(Path(expanded(file, "--config")))
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"no config file {file}: {error.strerror}{_nearest(path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file of settings") from error
    settings = load_yaml(text, file)
    if not isinstance(settings, dict):
        raise InputError(f"{file} holds no settings (name: value)")
    # In ASCII, because the parser first asks the file system for a file of that name.
    return yaml.emit(yaml.parse(text, yaml.SafeLoader), allow_unicode=False), settings


def load_yaml(text: str, where: str) -> Any:
    """Load YAML as plain data; errors name where it stands, and the line."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None:
            _count(root, where, {})
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: {error.problem}") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply, or its aliases form a circle") from error
    except (yaml.YAMLError, ValueError) as error:  # control characters; dates such as 2001-13-99
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {str(error).splitlines()[0]}") from error


def check_keys(text: str, where: str) -> None:
    """Raise InputError if a flag's value has a key twice, or aliases that multiply.

    A text that is no YAML, such as "[WIP] first", is left to the parser, which knows the type.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply") from error
    if root is not None:
        _count(root, where, {})


def _count(node: yaml.Node, where: str, known: dict[int, int]) -> int:
    """Count the values below a node, with what its aliases repeat; refuse keys that do, too."""
    if id(node) in known:
        return known[id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            children.append(value)
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise InputError(
                    f"{where}, line {line}: {key.value} stands on line {seen[key.value]} already; "
                    "leave one of them out"
                )
            seen[key.value] = line
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count(child, where, known) for child in children)
    if total > MOST_VALUES:
        line = node.start_mark.line + 1
        raise InputError(
            f"{where}, line {line}: more than {MOST_VALUES} values, those behind aliases counted "
            "each time; write out what is meant"
        )
    known[id(node)] = total
    return total


def _nearest(path: Path) -> str:
    shipped = shipped_configs()
    if path.stem in shipped:
        return f"; --config {path.stem} takes the one that comes with the package"
    try:
        beside = [other.stem for other in path.parent.glob("*.yaml")]
    except OSError:
        beside = []
    return nearest(
        path.stem, [*shipped, *beside], otherwise="; list_configs lists those there are"
    )
