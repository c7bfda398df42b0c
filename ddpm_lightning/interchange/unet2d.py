"""UNet and diffusers' UNet2DModel, in the layout of the published DDPM networks."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

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
from ddpm_lightning.networks import DiffusersUNet, Network, UNet

MODULES = {
    r"stem": "conv_in",
    r"embed\.linear1": "time_embedding.linear_1",
    r"embed\.linear2": "time_embedding.linear_2",
    r"embed\.label": "class_embedding",
    r"(down|up)\.(\d+)\.blocks\.(\d+)\.residual\.(.*)": r"\1_blocks.\2.resnets.\3.\4",
    r"(down|up)\.(\d+)\.blocks\.(\d+)\.attention\.(.*)": r"\1_blocks.\2.attentions.\3.\4",
    r"(down|up)\.(\d+)\.resize\.conv": r"\1_blocks.\2.\1samplers.0.conv",
    r"mid\.(\d)\.residual\.(.*)": r"mid_block.resnets.\1.\2",
    r"mid\.0\.attention\.(.*)": r"mid_block.attentions.0.\1",
    r"norm": "conv_norm_out",
    r"out": "conv_out",
}
RESIDUAL = {"condition": "time_emb_proj", "shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "out": "to_out.0"}
ATTENTION |= {"query": "to_q", "key": "to_k", "value": "to_v"}
EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in attention layers that were published before diffusers 0.12, and those since."""

TABLE, BIAS = "class_embedding.weight", "time_embedding.linear_2.bias"
TIME = "time_embedding.linear_1.weight"

FIXED: dict[str, Any] = {
    "block": "residual",
    "linear_attention_levels": [],
    "scale_shift": False,
    "patch": 1,
    "self_conditioning": False,
}
"""Settings of UNet that DiffusersUNet leaves alone."""


class UNet2DConfig(TypedDict):
    """Every key of UNet2DModel's configuration."""

    sample_size: int | list[int] | None
    in_channels: int
    out_channels: int
    center_input_sample: bool
    time_embedding_type: str
    time_embedding_dim: int | None
    freq_shift: float
    flip_sin_to_cos: bool
    down_block_types: list[str]
    mid_block_type: str | None
    up_block_types: list[str]
    block_out_channels: list[int]
    layers_per_block: int
    mid_block_scale_factor: float
    downsample_padding: int
    downsample_type: str
    upsample_type: str
    dropout: float
    act_fn: str
    attention_head_dim: int | None
    norm_num_groups: int
    attn_norm_num_groups: int | None
    norm_eps: float
    resnet_time_scale_shift: Literal["default", "scale_shift"]
    add_attention: bool
    class_embed_type: str | None
    num_class_embeds: int | None
    num_train_timesteps: int | None


DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
}
KINDS = {"DownBlock2D": False, "UpBlock2D": False, "AttnDownBlock2D": True, "AttnUpBlock2D": True}
"""Blocks that correspond, and whether they have attention."""


class UNet2D(Counterpart):
    """The U-Net of DDPM; sines before cosines, from frequency 1 to 1/10000, eps 1e-6."""

    ours: ClassVar[type[Network]] = UNet
    theirs = "UNet2DModel"
    part = "unet"
    pipeline = "DDPMPipeline"
    layout: ClassVar[dict[str, Any]] = {
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
    }
    """What is the same in all networks of this class."""

    @override
    def fits(self, config: dict[str, Any]) -> bool:
        return bool(config.get("freq_shift", 0) == self.layout["freq_shift"])

    @override
    def config(self, net: Network) -> dict[str, Any]:
        check_only_x(net.data, self.theirs)
        own = FIXED | net.plain_arguments(skip=("data", "out_channels"))
        levels = range(len(own["multipliers"]))
        widths = [own["channels"] * multiplier for multiplier in own["multipliers"]]
        attended = [level in own["attention_levels"] for level in levels]
        if own["block"] != "residual":
            raise InputError(f"UNet2DModel has no block {own['block']}, residual only")
        if own["linear_attention_levels"]:
            raise InputError("UNet2DModel has no linear attention (linear_attention_levels)")
        if own["patch"] != 1 or own["self_conditioning"]:
            raise InputError("UNet2DModel has neither patches nor self-conditioning (patch 1)")
        if own["multipliers"][0] != 1:
            raise InputError(
                f"UNet2DModel begins with as many channels as its first level has, and here "
                f"multipliers[0] is {own['multipliers'][0]}, not 1"
            )
        of_heads = _with_attention(widths, attended, own["mid_attention"])
        height, width = net.data.shape[1:]
        return {
            **DEFAULTS,
            "sample_size": height if height == width else [height, width],
            "in_channels": net.data.shape[0],
            "out_channels": net.out.out_channels,  # type: ignore[union-attr]
            **self.layout,
            "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
            "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
            "block_out_channels": widths,
            "layers_per_block": own["blocks"],
            "dropout": own["dropout"],
            "attention_head_dim": self.head_width(own, of_heads),
            "norm_num_groups": own["groups"],
            "attn_norm_num_groups": own["groups"],
            "resnet_time_scale_shift": "scale_shift" if own["scale_shift"] else "default",
            "add_attention": own["mid_attention"],
            "num_class_embeds": None if net.data.num_classes is None else net.data.num_classes + 1,
        }

    def head_width(self, own: dict[str, Any], of_heads: set[int]) -> int | None:
        """Features of a head, which theirs has one number of; None: one head in every layer."""
        heads: int = own["heads"]
        if heads > 1 and len(of_heads) > 1:
            raise InputError(
                f"UNet2DModel has heads of one width, so heads {heads} on layers of "
                f"{', '.join(map(str, sorted(of_heads)))} channels cannot be said"
            )
        return max(of_heads) // heads if heads > 1 and of_heads else None

    @override
    def exported(self, net: Network, weights: Weights) -> Weights:
        return {their_name(name): value for name, value in weights.items()}

    @override
    def without_labels(self, config: dict[str, Any], weights: Weights, row: int) -> Weights:
        # The label's row is added to what this layer gives, so its bias can hold the row.
        config["num_class_embeds"] = None
        kept = {name: value for name, value in weights.items() if name != TABLE}
        return kept | {BIAS: weights[BIAS] + weights[TABLE][row]}

    @override
    def without_variance(self, config: dict[str, Any], weights: Weights, channels: int) -> Weights:
        config["out_channels"] = channels
        last = {name: weights[name][:channels] for name in ("conv_out.weight", "conv_out.bias")}
        return weights | last

    @override
    def imported(self, net: Network, weights: Weights) -> Weights:
        named = {since(name): value for name, value in weights.items()}
        return renamed(named, net.state_dict(), their_name, "the file of weights")

    @override
    def settings(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        layout = {key: (value,) for key, value in self.layout.items()}
        return understood(config, UNet2DConfig, DEFAULTS, ONLY | layout, where)

    @override
    def arguments(self, settings: dict[str, Any], where: str) -> dict[str, Any]:
        widths, first = settings["block_out_channels"], settings["block_out_channels"][:1]
        attended = _attended(settings, where)
        if not first or first[0] < 1 or any(width % first[0] for width in widths):
            raise InputError(
                f"{where}: block_out_channels {widths} are no multiples of the first, which "
                "UNet's are"
            )
        if settings["time_embedding_dim"] not in (None, 4 * first[0]):
            raise InputError(
                f"{where}: time_embedding_dim {settings['time_embedding_dim']} has no counterpart "
                f"here, {4 * first[0]} has"
            )
        groups, scale_shift = settings["norm_num_groups"], settings["resnet_time_scale_shift"]
        in_mid = settings["attn_norm_num_groups"]
        normed = in_mid == groups or (in_mid is None and scale_shift == "default")
        if settings["add_attention"] and not normed:
            raise InputError(
                f"{where}: attn_norm_num_groups {in_mid} has no counterpart here, {groups} has"
            )
        return {
            "channels": first[0],
            "multipliers": [width // first[0] for width in widths],
            "blocks": settings["layers_per_block"],
            "attention_levels": [level for level, one in enumerate(attended) if one],
            **self.heads(
                settings, _with_attention(widths, attended, settings["add_attention"]), where
            ),
            "dropout": float(settings["dropout"]),
            "groups": groups,
            **({"scale_shift": True} if scale_shift == "scale_shift" else {}),
            "mid_attention": settings["add_attention"],
        }

    def heads(self, settings: dict[str, Any], of_heads: set[int], where: str) -> dict[str, int]:
        """The argument of our network for their heads of one width."""
        wide = settings["attention_head_dim"]
        if wide is None or not of_heads:
            return {"heads": 1}
        counts = {width // wide if wide > 0 else 0 for width in of_heads}
        if len(counts) > 1 or 0 in counts or any(width % wide for width in of_heads):
            raise InputError(
                f"{where}: attention_head_dim {wide} gives layers of "
                f"{', '.join(map(str, sorted(of_heads)))} channels different numbers of heads, "
                "and UNet has one number"
            )
        return {"heads": counts.pop()}

    @override
    def label_rows(self, settings: dict[str, Any], null_label: bool) -> int | None:
        rows: int | None = settings["num_class_embeds"]
        return rows if rows is None else rows - null_label


class UNet2DOfTutorials(UNet2D):
    """The U-Net as diffusers builds it by default; cosines before sines."""

    ours: ClassVar[type[Network]] = DiffusersUNet
    layout: ClassVar[dict[str, Any]] = {
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "downsample_padding": 1,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
    }

    @override
    def head_width(self, own: dict[str, Any], of_heads: set[int]) -> int | None:
        width: int = own["head_width"]
        return width

    @override
    def heads(self, settings: dict[str, Any], of_heads: set[int], where: str) -> dict[str, int]:
        wide = settings["attention_head_dim"]
        if wide is None and len(of_heads) > 1:
            raise InputError(
                f"{where}: attention_head_dim null has no counterpart here beside freq_shift 0, "
                "where heads are of one width"
            )
        return {"head_width": max(of_heads, default=8) if wide is None else wide}

    @override
    def exported(self, net: Network, weights: Weights) -> Weights:
        theirs = super().exported(net, weights)
        return theirs | {TIME: halves_swapped(theirs[TIME])}

    @override
    def imported(self, net: Network, weights: Weights) -> Weights:
        ours = super().imported(net, weights)
        name = "embed.linear1.weight"
        return ours | {name: halves_swapped(ours[name])}


def their_name(name: str) -> str:
    """Where UNet2DModel keeps the parameter that UNet calls ``name``."""
    module, _, kind = name.rpartition(".")  # kind: weight or bias
    pattern = next(pattern for pattern in MODULES if re.fullmatch(pattern, module))
    parent, _, leaf = re.sub(pattern, MODULES[pattern], module).rpartition(".")
    if ".residual." in module:
        leaf = RESIDUAL.get(leaf, leaf)
    if ".attention." in module:
        leaf = ATTENTION[leaf]
    return ".".join(filter(None, [parent, leaf, kind]))


def since(name: str) -> str:
    """Replace the names of attention layers that diffusers had before 0.12."""
    parent, _, rest = name.rpartition("attentions.")
    number, _, rest = rest.partition(".")
    leaf, _, kind = rest.rpartition(".")
    return f"{parent}attentions.{number}.{EARLIER[leaf]}.{kind}" if leaf in EARLIER else name


def _attended(settings: dict[str, Any], where: str) -> list[bool]:
    """Which levels have attention, from both lists of blocks."""
    down, up = settings["down_block_types"], settings["up_block_types"]
    for kind in [*down, *up]:
        if kind not in KINDS:
            raise InputError(f"{where}: UNet has no block {kind}, only {', '.join(KINDS)}")
    attended = [KINDS[kind] for kind in down]
    if attended != [KINDS[kind] for kind in reversed(up)] or len(attended) != len(
        settings["block_out_channels"]
    ):
        raise InputError(
            f"{where}: down_block_types, up_block_types and block_out_channels must name the same "
            "levels, with attention at the same ones both ways"
        )
    return attended


def _with_attention(widths: list[int], attended: list[bool], in_middle: bool) -> set[int]:
    """The widths of layers with attention."""
    found = {width for width, one in zip(widths, attended, strict=True) if one}
    return found | ({widths[-1]} if in_middle else set())
