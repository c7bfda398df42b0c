"""Config files that state only parts of a run, and the config before them that states the rest."""

from __future__ import annotations

import shlex

NO_DATA = "missing: --data"
"""What is said to a run whose config files and flags state no data."""


def with_base(program: str, words: list[str]) -> str:
    """Return the message for a run without data, with the command that has them from a config.

    Args:
        program: How the command was called, e.g. python -m ddpm_lightning fit.
        words: The words after it.
    """
    pairs = zip(words, [*words[1:], ""], strict=False)
    split = [(*word.partition("="), following) for word, following in pairs]
    files = [value or after for flag, _, value, after in split if flag in ("--config", "-c")]
    parts = f"{' and '.join(files)} state{'s' * (len(files) == 1)} only parts of a run; "
    return (
        f"{NO_DATA}; {parts if files else ''}put a config that states all first, e.g. {program} "
        f"{shlex.join(['--config', 'digits', *words])} (list_configs lists them)"
    )
