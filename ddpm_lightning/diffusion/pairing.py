"""Which noise of a training batch belongs to which of its samples."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.configurable import Configurable


class Pairing(Configurable, ABC):
    """Rule that assigns the noise of a batch to its samples."""

    @abstractmethod
    def __call__(self, x0: Tensor, eps: Tensor, label: Tensor | None) -> Tensor:
        """Reorder the noise.

        Args:
            x0: [B, ...] data or latents of this process's micro-batch.
            eps: [B, ...] independent standard normal noise.
            label: int64 [B] classes that the model is told, −1 for none; None: no labels.

        Returns:
            [B, ...] the same rows of eps in another order.
        """


class Independent(Pairing):
    """Noise independent of the data (DDPM algorithm 1)."""

    @override
    def __call__(self, x0: Tensor, eps: Tensor, label: Tensor | None) -> Tensor:
        return eps


class OptimalTransport(Pairing):
    """The assignment of least total squared distance ‖x_0 − eps‖² within the batch.

    Straighter paths from noise to data (Tong et al. 2024, alg. 3; Pooladian et al. 2023). With
    labels each class is assigned for itself, because noise chosen among other classes would tell
    of the class (Cheng & Schwing 2025). Only this process's micro-batch is paired, so the result
    depends on how a global batch is divided. Noise is then not independent of the data, and what
    is learned is the ODE alone: sample without noise in between (DDIM, Heun, DPMSolverPP, …);
    samplers that add noise, the bound and the score are those of another process.
    """

    @override
    def __call__(self, x0: Tensor, eps: Tensor, label: Tensor | None) -> Tensor:
        from scipy.optimize import linear_sum_assignment

        order = torch.arange(len(x0), device=x0.device)
        groups = torch.zeros_like(order) if label is None else label
        # Of the squared distance only −2·x0·eps depends on the pairs.
        with torch.autocast(x0.device.type, enabled=False):
            cost = -(x0.flatten(1).float() @ eps.flatten(1).float().T)
        if not bool(cost.isfinite().all()):  # the loss will say so
            return eps
        for group in groups.unique():
            rows = (groups == group).nonzero().flatten()
            block = cost[rows][:, rows].cpu().numpy()
            order[rows] = rows[torch.from_numpy(linear_sum_assignment(block)[1]).to(rows.device)]
        return eps[order]
