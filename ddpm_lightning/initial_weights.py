"""Starting a run from the weights of another."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.networks.layers import ConditionEmbedding

MOST_ROWS = 40
"""Rows of the table that are shown."""


def initialize(module: DiffusionModule, path: str | Path) -> str:
    """Start a network and its average from the averaged weights of a checkpoint.

    What has the same name and shape is taken. Where only labels differ, the network computes what
    the checkpoint's does without a class, until it is trained.

    Args:
        module: The module, before its training.
        path: The checkpoint.

    Returns:
        A table of what was not taken, and what differs in how the weights are used.

    Raises:
        InputError: The checkpoint cannot be read, or less than half of the parameters fit.
    """
    source, net = Loaded.read(path).module, module.net
    ours, there = net.state_dict(), source.ema.net.state_dict()
    adapted = _without_class(net, there, source.knows_null)
    theirs = there | adapted
    taken = {k: theirs[k] for k, value in ours.items() if k in theirs and _alike(value, theirs[k])}
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    same = taken.keys() - adapted.keys()
    fits, size = sum(n for name, n in sizes.items() if name in same), sum(sizes.values())
    summary = f"{fits:,} of {size:,} parameters start from {path}"
    starts = dict.fromkeys(there, "not needed") | dict.fromkeys(ours, "as initialized")
    starts |= dict.fromkeys(adapted.keys() & taken.keys(), "as without a class")
    others = _table(starts, same, ours, there)
    if 2 * fits < size:
        raise InputError(
            f"only {summary}, less than half; give the network the settings of the checkpoint's, "
            f"{source.net.describe(skip=('data', 'out_channels'))['init_args']}"
        )
    for copy in (net, module.ema.net):
        copy.load_state_dict({**copy.state_dict(), **taken})
    return "\n".join(
        [summary + ("; otherwise:" if others else ""), *others, *_told(module, source)]
    )


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.shape == theirs.shape
    return type(ours) is type(theirs)


def _without_class(net: nn.Module, theirs: dict[str, Any], knows_null: bool) -> dict[str, Tensor]:
    """Let a network of other labels, or of none, start as another one without a class.

    Args:
        net: The network.
        theirs: The state of the other.
        knows_null: Whether the last row of its label table was trained.
    """
    found: dict[str, Tensor] = {}
    for name, part in net.named_modules():
        bias, table = f"{name}.linear2.bias", f"{name}.label.weight"
        if not isinstance(part, ConditionEmbedding) or bias not in theirs:
            continue
        null = torch.zeros_like(theirs[bias])  # which is added to what this bias is in
        if table in theirs:
            null = theirs[table][-1] if knows_null else theirs[table][:-1].mean(0)
        if part.num_classes is None:
            found |= {bias: theirs[bias] + null} if table in theirs else {}
        elif table not in theirs or len(theirs[table]) != part.num_classes + 1:
            found[table] = null.repeat(part.num_classes + 1, 1)
    return found


def _table(
    starts: dict[str, str], same: Set[str], ours: dict[str, Any], theirs: dict[str, Any]
) -> list[str]:
    """Lines that say how each tensor starts that is not the same here and in the checkpoint."""
    rows = [
        (name, _shape(ours.get(name)), _shape(theirs.get(name)), start)
        for name, start in starts.items()
        if name not in same
    ]
    shown = [("", "here", "checkpoint", "starts"), *rows[:MOST_ROWS]] if rows else []
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(["", *cells]).rstrip())
    return lines + ([f"  … and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else [])


def _shape(value: Any) -> str:
    return "–" if not isinstance(value, Tensor) else "×".join(map(str, value.shape))


def _told(module: DiffusionModule, source: DiffusionModule) -> list[str]:
    """Say which parts give the network's input, computation or output another meaning."""
    lines = []
    for name in ("parameterization", "schedule"):
        here, there = (getattr(one, name).describe() for one in (module, source))
        if here != there:
            said = [
                f"{one['class_path'].rpartition('.')[2]} {one['init_args'] or ''}".strip()[:100]
                for one in (here, there)
            ]
            lines.append(f"  {name}: {said[0]} here, {said[1]} there")
    if module.codec.digest() != source.codec.digest():
        here, there = (type(one.codec).__name__ for one in (module, source))
        weights = ", of other weights or settings" if here == there else ""
        lines.append(f"  codec: {here} here, {there} there{weights}")
    return lines + _other_network(module, source)


def _other_network(module: DiffusionModule, source: DiffusionModule) -> list[str]:
    """Say how the networks differ, because weights of one shape can be used in many ways."""
    skip = ("data", "out_channels", "dropout")  # dropout is of training alone
    here, there = (one.net.describe(skip) for one in (module, source))
    lines = []
    if here["class_path"] != there["class_path"]:
        lines.append(f"  net: {here['class_path']} here, {there['class_path']} there")
    ours, theirs = here["init_args"], there["init_args"]
    for name in ours | theirs:
        said = [str(one.get(name, "–"))[:100] for one in (ours, theirs)]
        if ours.get(name, "–") != theirs.get(name, "–"):
            lines.append(f"  net.{name}: {said[0]} here, {said[1]} there")
    return lines
