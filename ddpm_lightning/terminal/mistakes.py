"""User mistakes as one-line messages; any other error is a bug and keeps its traceback."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import walk_tb

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ddpm_lightning.errors import InputError, nearest
from ddpm_lightning.imports import failed_import, import_advice
from ddpm_lightning.terminal.choices import bases_of, hint_of, no_class
from ddpm_lightning.terminal.parser import ParseError, flags_of
from ddpm_lightning.typed import spelled

CALLERS = ("ddpm_lightning.cli.", "ddpm_lightning.commands.run")
LIBRARIES = {"jsonargparse", "lightning", "torch", "contextlib", "functools", "inspect"}
LIST = 'a list is one word in brackets, e.g. "[1,2]"'
FLAG = re.compile("--[^=]*$")
KEY = re.compile(r'Parser key "([^"]+)"')
VALUE = re.compile(r"(?:value:|string:|Import path) (?:NestedArg.*val=)?'?(.+?)'?\)?(?: does.*)?$")


def causes_of(error: BaseException) -> list[BaseException]:
    """Follow the chain of an error of jsonargparse to its innermost cause, the last."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    if "jsonargparse." not in frame.f_globals["__name__"] and not isinstance(error, ParseError):
        return [error]
    # It chains a union's first error only, but its frame holds all: the furthest one was meant.
    alternatives = frame.f_locals.get("exceptions") or [error.__cause__]
    chains = [causes_of(one) for one in alternatives if one is not None]
    chains.sort(key=lambda chain: (len(chain), len([*walk_tb(chain[-1].__traceback__)])))
    return [error, *(chains[-1] if chains else [])]


def users_mistake(error: Exception) -> str | None:
    """Return the message for a mistake that the user can correct; None: it is a bug."""
    cause = (causes := causes_of(error))[-1]
    for one in (cause, cause.__cause__):
        if isinstance(one, InputError | MisconfigurationException):
            return str(one)
    if any(isinstance(one, ParseError) for one in causes):
        return _explain(causes)
    # An error with nothing but libraries on the stack is a refused setting, too.
    modules = [frame.f_globals["__name__"] for frame, _ in walk_tb(cause.__traceback__)]
    settings = all(name.startswith(CALLERS) or name.split(".")[0] in LIBRARIES for name in modules)
    settings |= modules[-1].startswith("jsonargparse.")  # which passes them to a class
    refused = isinstance(cause, ImportError | RuntimeError | TypeError | ValueError)
    return str(cause) if refused and settings else None


def _explain(causes: list[BaseException]) -> str:
    """Name the setting that the parser refuses, the reason, and the nearest valid one."""
    parser = [one.parser for one in causes if isinstance(one, ParseError)][-1]
    matches = [KEY.match(str(one)) for one in causes if not isinstance(one, ParseError)]
    keys = [match[1] for match in matches if match][0 if parser.component else -1 :]
    cause, where, text = causes[-1], ".".join(keys), " ".join(str(causes[-1]).split())
    owner = parser.component.__name__ if parser.component else ""
    flags = flags_of(getattr(cause, "subcommand_parser", parser))
    if isinstance(cause, KeyError):  # quotes the group or subcommand, and the setting
        *group, name = text.split("'")[1::2]
        if owner:
            known = nearest(name, flags, otherwise=f"; it has {', '.join(sorted(flags))}")
            return f"{where}: {owner} has no argument '{name}'{known}"
        path = name if hasattr(cause, "subcommand_parser") else ".".join([*group, name])
        return f"no setting {path}{nearest(path, flags, otherwise='; --help lists them')}"
    if missing := text.partition("arguments are required: ")[2]:
        options = flags_of(parser, missing.partition(".")[0])
        names = [name.rpartition(".")[2] for name in missing.split(", ")]
        flag = f"--{where}." if owner else "--"
        return f"missing: {', '.join(flag * (name in options) + name for name in names)}"
    if word := text.partition("recognized arguments: ")[2].partition(" ")[0].partition("=")[0]:
        if word.startswith("-"):
            return f"no flag {word}{nearest(word.lstrip('-'), flags, '--', '; --help lists them')}"
        return f"unexpected '{word}'; {_meant(word, parser.words, flags)}"
    where += f" of {owner}" if len(keys) > 1 else ""
    hint = hint_of(keys[-1], flags) if keys else None
    value = VALUE.search(text.partition(" Subclass types ")[0])
    if hint is None or value is None:
        reason = failed_import(cause) or f"{text}{import_advice(cause)}"
        return f"{where}: {reason}" if keys else reason
    if bases_of(hint) and "float" not in spelled(hint):
        return f"{where}: {no_class(value[1], hint)}"
    listed = "list" in spelled(hint) and re.search("[, ]", value[1])
    about = "" if listed else getattr(flags.get(keys[-1]), "help", "") or ""
    more = LIST if listed else re.split(r"(?<!et al)[.;]( |$)", " ".join(about.split()))[0]
    return f"{where}: expected {spelled(hint)}, got {value[1]:.60}{more and f'; {more}'}"


def _meant(word: str, words: Sequence[str], flags: Mapping[str, Action]) -> str:
    """Suggest the flag of a word that stands alone, or say what the flag before it takes."""
    flag = "config" if word.endswith(".yaml") else "ckpt" if "ckpt" in flags else "ckpt_path"
    if flag == "config" or (flag in flags and word.endswith(".ckpt") and Path(word).is_file()):
        return f"did you mean --{flag} {word}?"
    alone = [k for k, one in enumerate(words) if one == word and not FLAG.match(words[k - 1])]
    before = [one for one in words[: [*alone, 0][0]] if one.startswith("--")]
    flag = before[-1].partition("=")[0] if before else "--FLAG"
    return LIST if "list" in spelled(hint_of(flag[2:], flags)) else f"{flag} takes one word"
