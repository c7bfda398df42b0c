"""Completion of the command line in bash, and in zsh by its bashcompinit."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

SCRIPT = Template("""\
_ddpm_lightning() {
    local word=$${COMP_WORDS[COMP_CWORD]} before=$${COMP_WORDS[COMP_CWORD-1]} words=
    if [ "$$COMP_CWORD" = 1 ]; then
        words="$commands"
    else
        case "$${COMP_WORDS[1]//-/_}" in
$flags
        esac
        case "$$before" in
            --config|-c) words="$configs" ;;
$values
        esac
    fi
    COMPREPLY=($$(compgen -W "$$words" -- "$$word"))
    case "$$before" in
        --*|-c) COMPREPLY+=($$(compgen -f -- "$$word")) ;;
    esac
}
complete -o default -F _ddpm_lightning ddpm_lightning
""")


def completion_script(
    flags: Mapping[str, list[str]], values: Mapping[str, list[str]], configs: list[str]
) -> str:
    """Write the script.

    Args:
        flags: The words of each command: its flags, with dashes, or its own commands.
        values: The words that may follow a flag, e.g. class names.
        configs: Names that may follow --config.
    """
    return SCRIPT.substitute(
        commands=" ".join(flags),
        flags=_cases(flags, 12),
        values=_cases(values, 12),
        configs=" ".join(configs),
    )


def _cases(words: Mapping[str, list[str]], indent: int) -> str:
    listed = {name: " ".join(dict.fromkeys(one)) for name, one in words.items() if one}
    return "\n".join(f'{" " * indent}{name}) words="{one}" ;;' for name, one in listed.items())
