"""Checks of a training run before it begins: the doctor command."""

from ddpm_lightning.doctor.examination import CHECKS, examine
from ddpm_lightning.doctor.finding import Finding, Run, State

__all__ = ["CHECKS", "Finding", "Run", "State", "examine"]
