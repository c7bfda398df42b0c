"""FSDP2: network, average and optimizer states in shards over processes (ModelParallelStrategy).

Every process keeps a part of each parameter (a DTensor), and a block's parameters are put together
while it computes. What trains is the same, and a checkpoint is the one file of any other run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ddpm_lightning.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed")


def check_sharding(trainer: Trainer, compiles: bool) -> None:
    """Raise InputError for what does not work with shards."""
    strategy: Any = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if strategy._save_distributed_checkpoint:
        raise InputError(
            "ModelParallelStrategy would save a folder that nothing else reads; give "
            "--trainer.strategy.init_args.save_distributed_checkpoint false, as "
            "configs/trainer/fsdp.yaml"
        )
    if strategy._tensor_parallel_size != 1:
        raise InputError(
            "ModelParallelStrategy: only data are shared, so give --trainer.strategy.init_args."
            "tensor_parallel_size 1 and data_parallel_size, the number of processes "
            f"({trainer.world_size}), as configs/trainer/fsdp.yaml"
        )
    if str(trainer.precision) not in PRECISIONS:
        raise InputError(
            f"precision {trainer.precision} with ModelParallelStrategy: give --trainer.precision "
            f"{' or '.join(PRECISIONS)}"
        )
    if compiles:
        raise InputError("compile: true with ModelParallelStrategy: give --model.compile false")


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's parameters in place: each block's on their own, then all others'.

    The values are those of the first process. Does nothing to a network in shards.

    Args:
        net: The network.
        mesh: The processes, in one dimension.
    """
    if isinstance(net, FSDPModule):
        return
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            first = tensor.to(mesh.device_type)  # because NCCL takes tensors on GPUs alone
            dist.broadcast(first, 0)
            tensor.copy_(first)
    # Put together for one block at a time, after a forward pass of the whole network, too: while
    # they are whole, net.parameters() are copies, which EMA and optimizer would change in vain.
    for block in blocks_of(net):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def own_part(tensor: Tensor) -> Tensor:
    """This process's shard of a parameter, sharing its memory; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Put the shards of all processes, which all call this, together; a whole tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blocks_of(net: nn.Module) -> Iterator[nn.Module]:
    """The innermost modules in lists, which are the repeated parts of a network.

    Not the levels around them, because FSDP2 passes copies of lists of tensors to a module, and
    the way up of a U-Net takes its skips out of one list.
    """
    for module in net.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                inner = any(isinstance(part, nn.ModuleList) for part in block.modules())
                if not inner and any(True for _ in block.parameters()):
                    yield block
