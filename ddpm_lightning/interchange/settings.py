"""Configurations of diffusers, every key of which must be understood."""

from __future__ import annotations

from typing import Any

from ddpm_lightning.errors import InputError
from ddpm_lightning.typed import check_typed


def understood(
    config: dict[str, Any],
    hint: Any,
    defaults: dict[str, Any],
    only: dict[str, tuple[Any, ...]],
    where: str,
) -> dict[str, Any]:
    """Complete a configuration by the defaults of diffusers, once every key of it is understood.

    Args:
        config: The configuration; keys that begin with _ are notes of diffusers to itself.
        hint: A TypedDict of all keys that are known, with their types.
        defaults: What diffusers takes where a key is missing.
        only: The values, by key, that correspond to something here.
        where: The file, for messages.

    Raises:
        InputError: A key is not known, or a value is of another type or has no counterpart here.
    """
    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(stated.keys() - hint.__annotations__.keys()):
        raise InputError(
            f"{where} has the unknown key{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            "what is not understood could change what the network computes"
        )
    settings = {**defaults, **stated}
    check_typed(settings, hint, where)
    settings = _whole(settings)
    for key, values in only.items():
        if settings[key] not in values:
            known = " or ".join(repr(value) for value in values)
            raise InputError(
                f"{where}: {key} {settings[key]!r} has no counterpart here, {known} has"
            )
    return settings


def _whole(value: Any) -> Any:
    """Make whole numbers of those that JSON writes as 8.0, because they may be sizes."""
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
