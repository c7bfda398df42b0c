"""The exception for mistakes that a user can correct."""


class InputError(ValueError):
    """Bad input: a file, a flag, a checkpoint or a shape.

    The message names the mistake, its place and the fix. The command line prints it on one line,
    without a traceback.
    """


def at_least(least: float, owner: object = None, /, **values: float | None) -> None:
    """Raise InputError, naming the owner's class, unless every value given is ≥ ``least``."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{_named(owner, name, value)}: give {least:g} or more")


def above(bound: float, owner: object = None, /, **values: float | None) -> None:
    """Raise InputError, naming the owner's class, unless every value given is > ``bound``."""
    for name, value in values.items():
        if value is not None and not value > bound:
            raise InputError(f"{_named(owner, name, value)}: give a number above {bound:g}")


def _named(owner: object, name: str, value: float) -> str:
    return f"{name}={value}" if owner is None else f"{type(owner).__name__}({name}={value})"
