"""torch.compile of a network's training pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ddpm_lightning.errors import InputError

COMPILERS = {
    "InvalidCxxCompiler": "C++ compiler (g++ on PATH, or named by CXX)",
    "TritonMissing": "Triton",
}
"""What inductor misses, by the name of its error."""


def compile_training(net: nn.Module) -> None:
    """Compile the network for training; in evaluation mode it runs as it is.

    In place, because torch.compile(net) renames the weights. Evaluation is left out because it
    has other batch sizes and no gradient: it would be compiled anew, several times, and its
    results would differ from those of the same checkpoint read elsewhere.
    """
    plain = net._call_impl
    compiled = torch.compile(plain)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not (net.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if missing := _missing(error):
                raise InputError(
                    f"torch.compile finds no {missing}; install one, or train without: "
                    "--model.compile false"
                ) from error
            raise

    net._compiled_call_impl = call


@contextmanager
def uncompiled(net: nn.Module) -> Iterator[None]:
    """Run a network as it is for a while, so that hooks on its modules are called."""
    compiled, net._compiled_call_impl = net._compiled_call_impl, None
    try:
        yield
    finally:
        net._compiled_call_impl = compiled


def _missing(error: BaseException) -> str | None:
    """What an error of torch.compile, or one of its causes, finds missing on this machine."""
    cause: BaseException | None = error
    while cause is not None:
        cause = getattr(cause, "inner_exception", None) or cause
        if missing := COMPILERS.get(type(cause).__name__):
            return missing
        cause = cause.__cause__
    return None
