"""Whether other programs use the cores of this machine."""

from __future__ import annotations

import os

import torch


def busy_machine(device: torch.device) -> str:
    """Say that training on the CPU is slowed down by other programs, and what helps; else empty.

    Threads of one operation wait for each other, so one that is held up holds up all: by five to
    thirty times on two cores with six busy programs.
    """
    cores = os.cpu_count() or 1
    if device.type != "cpu" or torch.get_num_threads() == 1 or not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load < 1.5 * cores:
        return ""
    return (
        f"the load of this machine is {load:.1f} on {cores} cores, and threads that wait for each "
        "other are slow there: OMP_NUM_THREADS=1 before the command may be many times faster"
    )
