"""README and guides: links lead somewhere, and commands run as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpm_lightning.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<needs>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
SMALL = [
    "--model.net.channels=8",
    "--model.net.blocks=1",
    "--grid.n=10",
    "--metrics.n=20",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
]
PROGRAMS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}
PROGRAM = "python -m ddpm_lightning "


def commands(page: Path) -> list[str]:
    """The commands of a page that need nothing but the package, a line each."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["language"] == "bash" and not block["needs"]:
            found += block["text"].replace("\\\n", " ").splitlines()
    return [line for line in found if line and not line.startswith(("#", "pip install"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    missing = [
        name
        for name in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / name).exists()
    ]
    assert missing == []


def test_the_site_has_every_guide():
    named = [
        next(iter(entry.values()))
        for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    ]
    assert sorted(named) == [page.name for page in PAGES[1:]]


def shortened(words: list[str]) -> list[str]:
    """The same command with fewer steps and samples."""
    if words[0] == "fit":
        steps = 8 if "--ckpt_path" in words else 4
        return [*words, f"--trainer.max_steps={steps}", *SMALL]
    if words[0] in ("evaluate", "sweep"):
        words[words.index("--n") + 1] = "120"
    if "RePaint" in words:
        return [*words, "--edit.resamplings", "2"]
    return words


def run(words: list[str]) -> None:
    """Run a command; doctor finds fault with a folder that holds a run."""
    code: Any = 0
    try:
        main(words)
    except SystemExit as ended:
        code = ended.code
    assert code in ((0, 1) if words[0] == "doctor" else (0, None)), words


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch):
    """All that need no other data or devices, with the configs and the files that pages show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if name := re.match(r"# (\w+\.py)\n", block["text"]):
                (tmp_path / name[1]).write_text(block["text"])
    pages = dict.fromkeys(PAGES, 0)
    main(shortened(["fit", "--config", "configs/digits.yaml"]))
    for page in sorted(PAGES, key=lambda page: page.name == "runs.md"):  # which trains on
        for line in commands(page):
            words = shlex.split(line, comments=True)
            if line.startswith(PROGRAM):
                run(shortened(words[3:]))
            else:
                subprocess.run([*PROGRAMS[words[0]], *words[1:]], check=True)
            pages[page] += 1
    print({page.name: number for page, number in pages.items()})
    assert sum(pages.values()) > 20
