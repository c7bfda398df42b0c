"""Digests of a checkpoint's content, so that a damaged file is refused and not trained with.

torch.load compares no checksum: a flipped bit in a tensor is a wrong weight. So a checkpoint of
format 3 holds the SHA-256 of every tensor, and one of everything else.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError

DEEPEST = 60
MOST_BITS = 4096  # because Python writes no longer number in decimals
MOST_REPEATED = 100_000
CONTAINERS = (dict, OrderedDict, Counter, list, tuple)
PLAIN = (NoneType, bool, int, float, complex, str, bytes, bytearray)
TORCH_PLAIN = (torch.Size, torch.dtype, torch.device)


def walk(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every node of nested containers with its place, e.g. ``['loops']['fit_loop']``.

    Raises InputError: A node is none that torch.load reads back, or there is no end of nodes.
    """
    remaining: list[tuple[str, Any, int]] = [("", content, 0)]
    seen, repeated = set[int](), 0
    while remaining:
        where, node, depth = remaining.pop()
        if type(node) in CONTAINERS and id(node) in seen:
            repeated += 1 + len(node)
        if depth > DEEPEST or repeated > MOST_REPEATED:
            raise InputError(f"{where[:200]} is nested or repeated without end")
        yield where, node
        if type(node) not in CONTAINERS:
            _check_leaf(where, node)
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            for key in node:
                _check_key(where, key)
            parts = [(f"{where}[{key!r}]", value) for key, value in node.items()]
        else:
            parts = [(f"{where}[{k}]", value) for k, value in enumerate(node)]
        remaining += [(place, value, depth + 1) for place, value in reversed(parts)]


def _check_leaf(where: str, leaf: Any) -> None:
    known = isinstance(leaf, Tensor) or type(leaf) in (*PLAIN, *TORCH_PLAIN, set)
    if not known and type(leaf) not in torch.serialization.get_safe_globals():
        raise InputError(
            f"{where} is a {type(leaf).__module__}.{type(leaf).__name__}, which only a pickle can "
            "hold; a checkpoint holds tensors and plain data"
        )
    if type(leaf) is int and leaf.bit_length() > MOST_BITS:
        raise InputError(f"{where} is a number of {leaf.bit_length()} bits")
    for one in leaf if type(leaf) is set else ():
        _check_key(where, one)


def _check_key(where: str, key: Any) -> None:
    """Raise InputError unless a key, or what a set holds, is plain or a tuple of such."""
    for one in key if type(key) is tuple else (key,):
        if type(one) is tuple:
            _check_key(where, one)
        else:
            _check_leaf(f"a key of {where}", one)


def digests_of(content: dict[str, Any]) -> dict[str, Any]:
    """Compute the digests of a checkpoint's content: of each tensor by its place, and of the rest.

    They are ``{"plain": digest, "tensors": {place: digest}}``, in hexadecimal.

    Raises InputError: The content holds what could not be read again.
    """
    tensors = {where: node for where, node in walk(content) if isinstance(node, Tensor)}
    for where, tensor in tensors.items():
        check_storage(where, tensor)
    return {"plain": plain_digest(content), "tensors": _tensor_digests(tensors)}


def plain_digest(content: dict[str, Any]) -> str:
    """Compute the digest of everything but the values of tensors, which are not read."""
    digest = hashlib.sha256()
    for where, node in walk(content):
        kind = type(node).__name__
        if isinstance(node, Tensor):
            kind, shown = "Tensor", f"{node.dtype} {list(node.shape)}"
        elif isinstance(node, dict | list | tuple):
            shown = str(len(node))
        elif isinstance(node, set):
            shown = repr(sorted(map(repr, node)))
        else:
            shown = repr(node) if type(node) in (*PLAIN, *TORCH_PLAIN) else ""
        digest.update(f"{where} {kind} {shown}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_plain(content: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise InputError if anything but the tensors' values differs from what was saved."""
    if stored.get("plain") != plain_digest(content):
        raise InputError("its description is not what was saved")


def check_tensors(content: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise InputError, naming the tensors, if one differs from what was saved."""
    tensors = {where: node for where, node in walk(content) if isinstance(node, Tensor)}
    for where, tensor in tensors.items():
        check_storage(where, tensor)
    found, saved = _tensor_digests(tensors), stored.get("tensors")
    if not isinstance(saved, dict) or found.keys() != saved.keys():
        raise InputError("its digests are not those of its tensors")
    if wrong := [where for where, digest in found.items() if saved[where] != digest]:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"the tensor {wrong[0]}{others} is not what was saved")


def check_storage(where: str, tensor: Tensor) -> None:
    """Raise InputError unless a tensor holds every value that its shape promises."""
    dense = tensor.layout == torch.strided and tensor.device.type != "meta"
    size = tensor.numel() * tensor.element_size()
    if not dense or tensor.is_quantized or size > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{where}, of shape {list(tensor.shape)}, holds fewer values than that; a checkpoint "
            "holds .to_dense() and .contiguous() tensors"
        )


def _tensor_digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Compute the SHA-256 of each tensor's values in threads, as hashlib releases the lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return dict(zip(tensors, threads.map(_tensor_digest, tensors.values()), strict=True))


def _tensor_digest(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The values of a tensor as bytes, independent of device and strides."""
    values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return memoryview(values.numpy())
