"""The parser of every command: jsonargparse's, whose errors name the parser that raised them."""

from __future__ import annotations

from argparse import Action, ArgumentError
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser

PROGRAM = "python -m ddpm_lightning"


class ParseError(ArgumentError):
    """An error of the command's parser, or of that of a class which a setting names."""

    def __init__(self, parser: Parser, message: str) -> None:
        super().__init__(None, message)
        self.parser = parser


class Parser(ArgumentParser):
    """Parser of the arguments of a command, or of a component: a class which a setting names."""

    component: type | None = None
    words: Sequence[str] = ()

    def __init__(self, *args: Any, prog: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, prog=prog or PROGRAM, **kwargs)

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        self.component = self.component if args else theclass  # no key: a component's own parser
        return super().add_class_arguments(theclass, *args, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:  # noqa: D102
        self.words = args or ()
        return super().parse_args(args, *others, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: D102
        raise ParseError(self, message) from ex


@cache
def parser_of(cls: type, hint: Any = None, key: str | None = None) -> Parser:
    """Build the parser of a class's arguments, without those that a factory is called with."""
    passed = len(get_args(hint)[0]) if get_origin(hint) is Callable else 0
    parser = Parser(description=f"The arguments of --{key} {cls.__name__}")
    parser.add_class_arguments(cls, *[key] if key else [], skip={passed} - {0}, fail_untyped=False)
    return parser


def flags_of(parser: Any, subcommand: str | None = None) -> dict[str, Action]:
    """List the flags, without dashes, of a parser or of one of its subcommands."""
    if parser._subcommands_action is not None:
        parser = parser._subcommands_action.choices.get(subcommand, parser)
    options = [(option, action) for action in parser._actions for option in action.option_strings]
    return {n.lstrip("-"): action for n, action in options if not n.endswith(("help", "-h", "+"))}
