"""DiT and diffusers' DiTTransformer2DModel.

Theirs embeds noise level and label anew in every block; the authors' code, and ours, do once. So
exported blocks hold copies, and blocks with different embeddings have no counterpart here. Their
cosines come before the sines.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from typing_extensions import TypedDict, override

from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.counterpart import (
    Counterpart,
    Weights,
    check_only_x,
    halves_swapped,
    renamed,
)
from ddpm_lightning.interchange.settings import understood
from ddpm_lightning.networks import DiT, Network

MODULES = {
    r"stem": "pos_embed.proj",
    r"embed\.linear1": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    r"embed\.linear2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    r"embed\.label": "transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
    r"blocks\.(\d+)\.modulation": r"transformer_blocks.\1.norm1.linear",
    r"blocks\.(\d+)\.(query|key|value)": r"transformer_blocks.\1.attn1.to_\2",
    r"blocks\.(\d+)\.attended": r"transformer_blocks.\1.attn1.to_out.0",
    r"blocks\.(\d+)\.expand": r"transformer_blocks.\1.ff.net.0.proj",
    r"blocks\.(\d+)\.contract": r"transformer_blocks.\1.ff.net.2",
    r"modulation": "proj_out_1",
    r"out": "proj_out_2",
}
PARTS = {"query": "q", "key": "k", "value": "v"}
EMBEDDING = re.compile(r"transformer_blocks\.(\d+)\.norm1\.emb\.(.*)")


class DiTConfig(TypedDict):
    """Every key of DiTTransformer2DModel's configuration, and those that it had before."""

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int | None
    num_layers: int
    dropout: float
    norm_num_groups: int
    attention_bias: bool
    sample_size: int
    patch_size: int
    activation_fn: str
    num_embeds_ada_norm: int
    upcast_attention: bool
    norm_type: str
    norm_elementwise_affine: bool
    norm_eps: float


DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
ONLY: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0,),
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "upcast_attention": (False,),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
}


class DiTTransformer2D(Counterpart):
    """The diffusion transformer on square images, with labels, an MLP of 4 widths, eps 1e-6."""

    ours = DiT
    theirs = "DiTTransformer2DModel"
    part = "transformer"
    always_null = True
    pipeline = None  # DiTPipeline decodes latents

    @override
    def config(self, net: Network) -> dict[str, Any]:
        check_only_x(net.data, self.theirs)
        own, (channels, height, width) = net.plain_arguments(("data",)), net.data.shape
        if height != width:
            raise InputError(f"{self.theirs} takes square images, not {height}×{width}")
        if net.data.num_classes is None:
            raise InputError(f"{self.theirs} takes labels, and this network none")
        if own["mlp_ratio"] != 4:
            raise InputError(f"{self.theirs} has an mlp_ratio of 4, not {own['mlp_ratio']}")
        return {
            **DEFAULTS,
            "num_attention_heads": own["heads"],
            "attention_head_dim": own["width"] // own["heads"],
            "in_channels": channels,
            "out_channels": own["out_channels"],
            "num_layers": own["depth"],
            "sample_size": height,
            "patch_size": own["patch"],
            "num_embeds_ada_norm": net.data.num_classes,
            "norm_eps": 1e-6,
        }

    @override
    def exported(self, net: Network, weights: Weights) -> Weights:
        own = net.plain_arguments(("data",))
        channels, patch = net.data.shape[0], own["patch"]
        found: Weights = {}
        for name, value in weights.items():
            if ".qkv." in name:
                for part, third in zip(PARTS, value.chunk(3), strict=True):
                    found[their_name(name.replace("qkv", part))] = third
            elif name == "stem.weight":
                found[their_name(name)] = value.view(-1, channels, patch, patch)
            elif name == "embed.linear1.weight":
                found[their_name(name)] = halves_swapped(value)
            else:
                found[their_name(name)] = value
        copied = {EMBEDDING.fullmatch(name): value for name, value in found.items()}
        for block in range(1, own["depth"]):
            prefix = f"transformer_blocks.{block}.norm1.emb"
            found |= {f"{prefix}.{match[2]}": value for match, value in copied.items() if match}
        return found

    @override
    def without_labels(self, config: dict[str, Any], weights: Weights, row: int) -> Weights:
        raise InputError(f"--label: {self.theirs} always takes labels; leave the flag out")

    @override
    def without_variance(self, config: dict[str, Any], weights: Weights, channels: int) -> Weights:
        patches, all_channels = config["patch_size"] ** 2, config["out_channels"]
        config["out_channels"] = channels
        kept = {}
        for name in ("proj_out_2.weight", "proj_out_2.bias"):  # rows are patch positions, channels
            rows = weights[name].unflatten(0, (patches, all_channels))[:, :channels]
            kept[name] = rows.flatten(0, 1)
        return weights | kept

    @override
    def imported(self, net: Network, weights: Weights) -> Weights:
        one, names = _one_embedding(weights), []
        for name in net.state_dict():
            parts = PARTS if ".qkv." in name else ("qkv",)
            names += [name.replace("qkv", part) for part in parts]
        found = renamed(one, names, their_name, "the file of weights")
        for name in [name for name in found if ".query." in name]:
            thirds = [found.pop(name.replace("query", part)) for part in PARTS]
            found[name.replace("query", "qkv")] = torch.cat(thirds)
        found["stem.weight"] = found["stem.weight"].flatten(1)
        found["embed.linear1.weight"] = halves_swapped(found["embed.linear1.weight"])
        return found

    @override
    def settings(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        settings = understood(config, DiTConfig, DEFAULTS, ONLY, where)
        return settings | {"out_channels": settings["out_channels"] or settings["in_channels"]}

    @override
    def arguments(self, settings: dict[str, Any], where: str) -> dict[str, Any]:
        heads = settings["num_attention_heads"]
        return {
            "patch": settings["patch_size"],
            "width": heads * settings["attention_head_dim"],
            "depth": settings["num_layers"],
            "heads": heads,
        }

    @override
    def label_rows(self, settings: dict[str, Any], null_label: bool) -> int | None:
        rows: int = settings["num_embeds_ada_norm"]
        return rows


def their_name(name: str) -> str:
    """Where DiTTransformer2DModel keeps the parameter that DiT calls ``name``."""
    module, _, kind = name.rpartition(".")
    pattern = next(pattern for pattern in MODULES if re.fullmatch(pattern, module))
    theirs = re.sub(pattern, MODULES[pattern], module)
    for long, short in PARTS.items():
        theirs = theirs.replace(f"to_{long}", f"to_{short}")
    return f"{theirs}.{kind}"


def _one_embedding(weights: Weights) -> Weights:
    """Drop the copies of the embedding in all blocks but the first; else InputError."""
    found = dict(weights)
    for name in weights:
        match = EMBEDDING.fullmatch(name)
        if match is None or match[1] == "0":
            continue
        first = weights.get(f"transformer_blocks.0.norm1.emb.{match[2]}")
        if first is None or not torch.equal(first, found.pop(name)):
            raise InputError(
                f"{name} is not that of block 0; DiT embeds noise level and label once for all "
                "blocks"
            )
    return found
