"""Break the code once in each of these ways, and see that a test notices.

    python -m tests.mutations [NUMBER ...]

Works on a clone of the last commit; prints a line a mutation, and exits with 1 if one survives.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

# What is broken, the file, the line as it is and as it is broken, and the tests that must fail.
MUTATIONS = [
    (
        "eta instead of eta² in DDIM",
        "ddpm_lightning/diffusion/samplers/ddim.py",
        "variance = eta**2 * posterior",
        "variance = eta * posterior",
        "samplers",
    ),
    (
        "s and t swapped in the posterior",
        "ddpm_lightning/diffusion/posterior.py",
        "x_t=t.alpha / s.alpha * (s.sigma / t.sigma) ** 2",
        "x_t=s.alpha / t.alpha * (t.sigma / s.sigma) ** 2",
        "posterior",
    ),
    (
        "the sampler does not clip",
        "ddpm_lightning/diffusion/samplers/sampler.py",
        ".clip(self.clip, self.threshold)",
        "",
        "samplers",
    ),
    (
        "grids are drawn without autocast",
        "ddpm_lightning/callbacks/sample_grid.py",
        "with trainer.precision_plugin.forward_context():",
        "if True:",
        "callbacks module",
    ),
    (
        "metrics sample without autocast",
        "ddpm_lightning/callbacks/generative_metrics.py",
        "with trainer.precision_plugin.forward_context():",
        "if True:",
        "metric_callbacks module",
    ),
    (
        "points are sampled without autocast",
        "ddpm_lightning/callbacks/point_metrics.py",
        "with trainer.precision_plugin.forward_context():",
        "if True:",
        "metric_callbacks toys module",
    ),
    (
        "another learning rate in the CIFAR recipe",
        "configs/cifar10.yaml",
        "lr: 0.0002",
        "lr: 0.0003",
        "recipes",
    ),
    (
        "another EMA in the CIFAR recipe",
        "configs/cifar10.yaml",
        "warmup: false",
        "warmup: true",
        "recipes",
    ),
    (
        "guidance of 1 + w",
        "ddpm_lightning/diffusion/guidance.py",
        "null + self.scale * (conditional - null)",
        "null + (1 + self.scale) * (conditional - null)",
        "guidance",
    ),
    (
        "the null label's row is the last class",
        "ddpm_lightning/batch.py",
        "self.label.masked_fill(rows, NULL_LABEL)",
        "self.label.masked_fill(rows, 0)",
        "batch module",
    ),
    (
        "labels are dropped in validation",
        "ddpm_lightning/module.py",
        "noised = self._noised(batch, t, noise, self.known(batch))",
        "noised = self._noised(batch, t, noise, self.known(batch).null())",
        "module museum",
    ),
    (
        "label dropout shares the timesteps' draw",
        "ddpm_lightning/randomness.py",
        "LABEL_DROPOUT = 2**32",
        "LABEL_DROPOUT = 2",
        "randomness",
    ),
    ("the EMA leaves buffers alone", "ddpm_lightning/ema.py", "own.copy_(buffer)", "pass", "ema"),
    (
        "training noise belongs to the sample, not to the row",
        "ddpm_lightning/module.py",
        "BatchNoise(self.seed, step, batch.row, size",
        "BatchNoise(self.seed, step, batch.index, size",
        "module",
    ),
    (
        "flips follow the row, not the position",
        "ddpm_lightning/data/stream.py",
        "coin_flips(self.seed, first, len(row))",
        "coin_flips(self.seed, int(row[0]), len(row))",
        "data",
    ),
    (
        "the U-Net ignores mid_attention",
        "ddpm_lightning/networks/unet.py",
        "if mid_attention",
        "if True",
        "unet",
    ),
    (
        "min-SNR is a max",
        "ddpm_lightning/diffusion/weightings.py",
        ".clamp(max=self.gamma)",
        ".clamp(min=self.gamma)",
        "weightings objectives losses",
    ),
    (
        "the EMA is not in the checkpoint's format",
        "ddpm_lightning/checkpoint.py",
        'f"ema_{name}"',
        'f"ema_{name[0]}"',
        "checkpoint",
    ),
]


def caught(number: int, checkout: Path) -> bool:
    """Whether a test fails under a mutation."""
    _, name, line, broken, tests = MUTATIONS[number]
    path = checkout / name
    text = path.read_text(encoding="utf-8")
    if line not in text:
        raise SystemExit(f"{name} has no line {line!r} any more; update tests/mutations.py")
    path.write_text(text.replace(line, broken), encoding="utf-8")
    files = [f"tests/test_{test}.py" for test in tests.split()]
    found = [file for file in files if (checkout / file).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *found]
    try:
        return subprocess.run(command, cwd=checkout, capture_output=True).returncode == 1
    finally:
        path.write_text(text, encoding="utf-8")


def main(numbers: list[int]) -> int:
    """Try mutations, all by default; give the number of survivors."""
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
        for number in numbers or range(len(MUTATIONS)):
            verdict = "caught" if caught(number, checkout) else "SURVIVED"
            survivors += verdict != "caught"
            print(f"{number:3} {verdict:9} {MUTATIONS[number][0]}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]]) > 0)
