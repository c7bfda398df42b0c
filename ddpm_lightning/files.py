"""Plain data as files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PARTIAL = ".part"
"""Ending of a file that is being written; a killed process may leave it behind."""


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON; a stopped write leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
