"""One line for a user's typo: what is wrong, where, and the nearest name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate

import torch
from lightning.pytorch import Callback, LightningDataModule

from ddpm_lightning.configurable import Configurable


def explain(message: str, flags: Iterable[str] = (), commands: Iterable[str] = ()) -> str:
    """Turn a message of the argument parser into one line.

    Args:
        message: What the parser said; the kinds of mistakes we know are told apart by its words.
        flags: The names of the command's flags, without dashes, for the nearest one.
        commands: The names of the commands.
    """
    message = " ".join(message.split())
    key = _found(r'Parser key "([^"]+)"', message)
    where = f"{key}: " if key else ""

    if command := _found(r"invalid choice: '([^']*)'", message):
        return f"no command '{command}'{nearest(command, commands)}"
    if 'expected "subcommand"' in message:
        return f"which command? One of {', '.join(commands)}; --help tells more"
    if file := _found(r"File does not exist: '([^']+)'", message):
        path = Path(file)
        siblings = path.parent.glob(f"[!.]*{path.suffix}") if path.parent.is_dir() else []
        return f"no file {file}{nearest(file, map(str, siblings), otherwise='')}"
    if file := _found(r"nrecognized arguments: ([^-\s]\S*\.yaml)", message):
        return f"unexpected '{file}'; did you mean --config {file}?"
    if flag := _found(r"nrecognized arguments: (?:.*? )??--([^\s=]+)", message):
        return f"no flag --{flag}{nearest(flag, flags, '--')}"
    if option := _found(r"does not accept option '([^']+)'", message):
        return f"no setting {option}{nearest(option, flags)}"
    if missing := _found(r"arguments are required: ([\w.-]+(?:, [\w.-]+)*)", message):
        part = f"--{key}." if key else "--"
        names = [part + name.split(".")[-1] for name in missing.split(", ")]
        return f"missing: {', '.join(names)}; --help tells more"
    if key and "Expected an instantiatable class" in message:
        return f"{where}which one? Give --{key} CLASS before its arguments; --help lists them"
    rejected = r"Option '(?P<option>[^']+)' is not accepted"
    if match := (
        re.search(rf"class_path '(?P<path>[^']+)': {rejected}", message)
        or re.search(rf"{rejected}\. Got value: Namespace\(class_path='(?P<path>[^']+)'", message)
    ):
        class_path, option = match["path"], match["option"]
        name = class_path.rpartition(".")[2]
        return f"{where}{name} has no argument '{option}'{nearest(option, _arguments(class_path))}"
    if name := _found(r"Expected a dot import path string: (\S+)", message):
        return f"{where}no class '{name}'{nearest(name, _class_names())}"
    if problem := _found(
        r"(No module named '[^']+'|module '[^']+' has no attribute '[^']+')", message
    ):
        return f"{where}{problem}; name a class of this library, or a full path of your own"
    choice = (
        r"""Parser key "([^"]+)": Expected a typing\.Literal\[(.+?)\]\.? Got value: ([^\s.]+)"""
    )
    if match := re.search(choice, message):
        inner = "" if match[1] == key else f".{match[1]}"
        return f"{key}{inner}: expected one of {match[2]}, got {match[3]}"
    within = ".".join(re.findall(r'Parser key "([^"]+)"', message))  # from the outside inwards
    union = r".*Subtypes: \[(.+?)\] Errors: .*?Given value: (.+?)(?: - Expected a |\. Got value|$)"
    simple = r".*Expected a (<class '[^']+'>)\. Got value: (.+?)(?: - Expected a |\. Got value|$)"
    if match := re.match(simple, message) or re.match(union, message):
        return f"{within}: expected {_type_names(match[1])}, got {match[2]}"
    return message


def _type_names(types: str) -> str:
    """Write the parser's names of types as a person would: int, null."""
    types = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", types).replace("NoneType", "null")
    return re.sub(r"typing\.Literal\[([^\]]*)\]", r"\1", types).replace(", null", " or null")


def _found(pattern: str, message: str) -> str | None:
    match = re.search(pattern, message)
    return match[1] if match else None


def nearest(
    name: str, known: Iterable[str], prefix: str = "", otherwise: str = "; --help lists them"
) -> str:
    """Propose the name that was probably meant, as the end of a message."""
    close = get_close_matches(name, sorted(set(known)), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else otherwise


def _arguments(class_path: str) -> list[str]:
    cls = locate(class_path)
    return list(inspect.signature(cls).parameters) if callable(cls) else []


def _class_names() -> set[str]:
    bases = (Configurable, LightningDataModule, Callback, torch.optim.Optimizer)
    names: set[str] = set()
    remaining: list[type] = list(bases)
    while remaining:
        cls = remaining.pop()
        remaining.extend(cls.__subclasses__())
        if not inspect.isabstract(cls) and cls not in bases:
            names.add(cls.__name__)
    return names
