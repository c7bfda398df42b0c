"""One line for a user's mistake: what is wrong, where, and the nearest name."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any, get_args, get_origin, get_type_hints

from ddpm_lightning.terminal.seams import ROOTS, bases_of, classes, kind_of, with_article

LIST = 'a list is one word in brackets, e.g. "[1,2]"'


def explain(
    message: str, hints: Mapping[str, Any] | None = None, commands: Iterable[str] = ()
) -> str:
    """Turn a message of the argument parser into one line.

    Args:
        message: What the parser said; the kinds of mistakes we know are told apart by its words.
        hints: The command's flags, without dashes, and their types.
        commands: The names of the commands.
    """
    hints, text = hints or {}, " ".join(message.split())
    answers = _answers(hints, list(commands))
    inner = innermost(message)
    if not inner.keys:
        for pattern, answer in answers.items():
            if match := re.search(pattern, text):
                return answer(*match.groups())
    return _explain_value(inner, hints) or text


def _answers(hints: Mapping[str, Any], commands: list[str]) -> dict[str, Callable[..., str]]:
    """What to say to mistakes that are not about the value of a setting, by the parser's words."""

    def no_setting(name: str, dashes: str = "") -> str:
        unknown, meant = closest(name, hints)
        found = f"; did you mean {dashes}{meant}?" if meant else "; --help lists them"
        return f"no {'flag' if dashes else 'setting'} {dashes}{unknown}{found}"

    def linked(source: str, target: str) -> str:
        if source.startswith("data"):
            return f"{target} comes from the data; leave it out"
        return f"{target} follows --{source}; give that instead"

    def no_command(name: str) -> str:
        return f"no command '{name}'" + nearest(
            name, commands, otherwise=f"; choose one of {', '.join(commands)}"
        )

    def before_command(*_: str) -> str:
        return f"which command? One of {', '.join(commands)} comes first, its flags after it"

    def no_help(flag: str, name: str) -> str:
        return f"{flag}: {no_class(name, bases_of(hints.get(flag)), flag)}"

    return {
        r"invalid choice: '([^']*)'": no_command,
        r'expected "subcommand"': lambda: (
            f"which command? One of {', '.join(commands)}; --help tells more"
        ),
        r"is not accepted before subcommand": before_command,
        r"nrecognized arguments: ([^-\s]\S*\.ya?ml)": lambda file: (
            f"unexpected '{file}'; did you mean --config {file}?"
        ),
        r"nrecognized arguments: (?:.*? )??--([^\s=]+)": lambda f: no_setting(f, "--"),
        r"nrecognized arguments: (.+)": lambda word: (
            f"unexpected '{word}': a value stands after its --flag, and {LIST}"
        ),
        r"Group '([^']+)' does not accept option '([^']+)'": lambda group, name: no_setting(
            f"{group}.{name}"
        ),
        r"[Oo]ption '([^']+)'": no_setting,
        r"argument \S*?(--\S+): expected one argument": lambda flag: f"{flag} needs a value",
        r"arguments are required: ([\w.-]+(?:, [\w.-]+)*)": lambda names: _missing(
            re.sub(rf"\b(?:{'|'.join(commands)})\.", "", names)
        ),
        r'Linked "([^"]+)" must be given via "([^"]+)"': lambda to, source: linked(source, to),
        r"argument (\S+) --> (\S+): .* is not callable": linked,
        r"compute_fn of link .* failed: (.*)": lambda problem: problem,
        r"--(\S+)\.help: Expected a dot import path string: (\S+)": no_help,
    }


# ---------------------------------------------------------------------- values of settings


@dataclass
class Mistake:
    """The innermost of the parser's nested errors.

    Attributes:
        keys: The settings that lead to it, from the outside inwards.
        holders: Classes named on the way, by the number of keys before them.
        text: What is wrong there.
    """

    keys: list[str] = field(default_factory=list)
    holders: dict[int, str] = field(default_factory=dict)
    text: str = ""

    @property
    def holder(self) -> str | None:
        """The class whose argument the last key is."""
        made = re.search(r"Namespace\(class_path='([^']+)'", self.text)
        return self.holders.get(len(self.keys) - 1) or (made[1] if made else None)


def innermost(message: str) -> Mistake:
    """Follow the parser's message, which is indented, to the first mistake inside."""
    mistake, depth, lines = Mistake(), -1, []
    for line in filter(str.strip, message.splitlines()):
        indent = len(line) - len(line.lstrip())
        if indent <= depth:
            break  # what follows are other ways to read the value
        key = re.search(r'Parser key "([^"]+)"[^:]*:?', line)
        if key:
            mistake.keys.append(key[1])
            depth, lines = indent, [line[key.end() :]]
        else:
            lines.append(line)
        if path := re.search(r"given class_path '([^']+)'", line):
            mistake.holders.setdefault(len(mistake.keys), path[1])
    mistake.text = " ".join(" ".join(lines).split())
    return mistake


def _explain_value(mistake: Mistake, hints: Mapping[str, Any]) -> str | None:
    keys, text = mistake.keys, mistake.text
    hint: Any = hints.get(keys[0]) if keys else None
    where = ".".join(keys)
    if (
        len(keys) > 1
        and 1 in mistake.holders
        and any(get_origin(part) is list for part in get_args(hint))
    ):
        where = ": ".join([keys[0], ".".join([_name(mistake.holders[1]), *keys[1:]])])
    if len(keys) > 1:
        hint = _hint(mistake.holder, keys[-1])
    bases = bases_of(hint)
    inside = mistake.holders.get(len(keys)) or mistake.holder

    if match := re.search(r"Option '([^']+)' is not accepted", text):
        known = _arguments(inside)
        if match[1] in known:
            return f"{where}: {match[1]} of {_name(inside)} is filled in by itself; leave it out"
        meant = nearest(match[1], known, otherwise=f"; it has {', '.join(known)}")
        return f"{where}: {_name(inside)} has no argument '{match[1]}'{meant}"
    if match := re.search(r"arguments are required: (.+?)(?: - |\. Got|$)", text):
        return _missing(match[1], f"{where}." if where else "")
    if "ReduceLROnPlateau" in text and "Multiple subclasses" in text:
        return f"{where}: ReduceLROnPlateau waits for a metric; use a schedule that follows steps"
    if match := re.search(
        r"Multiple subclasses with name (\S+)\. .* ambiguity: (.+?)\.(?: |$)", text
    ):
        return f"{where}: several classes are called {match[1]}; give the path of one: {match[2]}"
    if bases and (name := re.search(r"Expected a dot import path string: (\S+)", text)):
        return f"{where}: {no_class(name[1], bases, keys[0] if len(keys) == 1 else None)}"
    if match := re.search(
        r"No module named '[^']+'|module '[^']+' has no attribute '[^']+'", text
    ):
        return f"{where}: {match[0]}; name a class of this library, or a full path of your own"
    if "Expected an instantiatable class" in text:
        return f"{where}: which one? Give --{where} CLASS before its arguments"
    if match := re.search(r"File does not exist: '([^']+)'", text):
        return _no_file(Path(match[1]))
    if match := re.search(r"Path is not a file: '([^']+)'", text):
        return f"{where}: {match[1]} is not a file"
    if "codec can't decode" in text:
        return f"{where}: that is a file, and not a text of settings"

    value = _value(text)
    wanted = _wanted(bases)
    if re.search(r"does not correspond to a subclass|expects a function or a callable", text):
        return f"{where}: {value} is not {wanted or 'what is needed here'}"
    literal = re.search(r"Expected a typing\.Literal\[(.+?)\]", text)
    if literal and "Subtypes" not in text:
        return f"{where}: expected one of {literal[1]}, got {value}"
    if match := re.search(r"Subtypes: \[(.+?)\] Errors:|Expected a (<class '[^']+'>)", text):
        types = match[1] or match[2]
        how = f"; {LIST}" if re.search("list|tuple|Sequence", types) else ""
        return f"{where}: expected {_type_names(types)}, got {value}{how}"
    return f"{where}: {text}" if where else None


def no_class(name: str, bases: list[type], flag: str | None) -> str:
    """Say that a name is none of the classes for a setting, and which one was probably meant.

    Args:
        name: What was given.
        bases: What the setting takes subclasses of.
        flag: The setting, if it has a flag that lists them.
    """
    known = classes(bases)
    listed = f"; choose one of {', '.join(known)}"
    if len(known) > 20 and flag:
        listed = f"; --{flag}.help lists them"
    meant = nearest(name, known, otherwise=listed)
    if cls := classes(ROOTS).get(name):
        return f"{name} is {kind_of(cls)}, not {_wanted(bases)}{meant}"
    return f"no class '{name}'{meant}"


def _wanted(bases: list[type]) -> str:
    return " or ".join(dict.fromkeys(with_article(base.__name__) for base in bases))


def _value(text: str) -> str:
    match = re.search(
        r"(?:Given value|Got value): (.+?)(?:\. Got value: .*| Subclass types .*)?$", text
    )
    match = match or re.search(r"Import path (\S+)", text)
    value = match[1] if match else "that"
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val=(.+)\)", value)
    return textwrap.shorten(nested[1].strip("'") if nested else value, 60, placeholder=" …")


def _type_names(types: str) -> str:
    """Write the parser's names of types as a person would: int, null."""
    types = re.sub(r"<class '([^']+)'>", r"\1", types).replace("NoneType", "null")
    types = re.sub(r", torch\.Tensor\b", "", types)  # of optimizers, and nothing for a terminal
    types = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", types).replace("Sequence", "list")
    return re.sub(r"Literal\[([^\]]*)\]", r"\1", types).replace(", null", " or null")


def _missing(names: str, within: str = "") -> str:
    flags = [f"--{within}{name.removeprefix(within)}" for name in names.split(", ")]
    return f"missing: {', '.join(flags)}; --help tells more"


def _no_file(path: Path) -> str:
    siblings = path.parent.glob(f"[!.]*{path.suffix}") if path.parent.is_dir() else []
    return f"no file {path}{nearest(str(path), map(str, siblings), otherwise='')}"


def _name(class_path: str | None) -> str:
    return (class_path or "").rpartition(".")[2]


def _arguments(class_path: str | None) -> list[str]:
    cls = locate(class_path or "")
    return list(inspect.signature(cls).parameters) if callable(cls) else []


def _hint(class_path: str | None, argument: str) -> Any:
    cls = locate(class_path or "")
    try:
        return get_type_hints(cls.__init__).get(argument)  # type: ignore[misc]
    except (AttributeError, NameError, TypeError):  # a class whose hints cannot be resolved
        return None


# --------------------------------------------------------------------------------- names


def nearest(
    name: str, known: Iterable[str], prefix: str = "", otherwise: str = "; --help lists them"
) -> str:
    """Propose the name that was probably meant, as the end of a message."""
    close = get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else otherwise


def closest(name: str, known: Iterable[str]) -> tuple[str, str | None]:
    """Find the first part of a dotted name that is unknown, and what it probably should be.

    Args:
        name: E.g. trainer.max_stepz, modle.schedule, or max_steps alone.
        known: All dotted names.

    Returns:
        The name up to that part, and the known one, or None.
    """
    names = [one.split(".") for one in known if not one.endswith((".help", "+"))]
    parts = name.split(".")
    for depth, part in enumerate(parts):
        siblings = {one[depth] for one in names if one[:depth] == parts[:depth] and one[depth:]}
        if part in siblings:
            continue
        unknown = ".".join(parts[: depth + 1])
        if close := get_close_matches(part, sorted(siblings), n=1, cutoff=0.6):
            return unknown, ".".join([*parts[:depth], close[0]])
        ends = {one[-1]: ".".join(one) for one in reversed(names)}
        close = get_close_matches(parts[-1], sorted(ends), n=1, cutoff=0.75)
        return (name, ends[close[0]]) if close and depth == 0 else (unknown, None)
    return name, None
