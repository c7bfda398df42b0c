"""Trained text encoders of Hugging Face's transformers library, frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.text.encoder import TextEncoder

KEPT = 20_000
"""Texts whose tokens are kept in memory."""

CLASSES = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
"""The text half of models that have another one, by model_type; others are loaded as they are."""


class HuggingFaceEncoder(TextEncoder):
    """A frozen encoder of Hugging Face's transformers library: CLIP, T5, BERT and others.

    A token is a vector of the last layer. The weights stay out of the checkpoint, which names the
    encoder; they are read from safetensors files, nothing is unpickled and no code of the model
    is executed. A text is encoded once and then kept in memory. Needs pip install
    'ddpm_lightning[text]'.

    Args:
        path: A folder that ``save_pretrained`` wrote, or a name on the hub, e.g.
            openai/clip-vit-base-patch32 or google-t5/t5-small.
        length: Tokens of a text; a longer one is cut off, as the models' own pipelines do.
        download: Load from the hub what is not in its cache.

    Raises:
        InputError: transformers is not installed, or there is no such model.
    """

    def __init__(self, path: str, length: int = 77, download: bool = True) -> None:
        at_least(1, self, length=length)
        self.path = path
        self.length = length
        self.download = download
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @cached_property
    def width(self) -> int:  # type: ignore[override]
        """Length D of a token."""
        config = getattr(self._config, "text_config", None) or self._config
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and self.length > most:
            raise InputError(
                f"{self.path} takes up to {most} tokens, not {self.length}; give --model.text."
                f"length {most}"
            )
        return int(getattr(config, "hidden_size", 0) or config.d_model)

    @override
    def encode(self, texts: Sequence[str], device: Any = "cpu") -> tuple[Tensor, Tensor]:
        # One by one, because the last digits depend on what else a batch holds.
        for text in texts:
            if text not in self._kept:
                self._kept[text] = self._computed(text, device)
        found = [self._kept[text] for text in texts]
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        tokens = torch.zeros(len(texts), self.length, self.width)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for row, one in enumerate(found):
            tokens[row, : len(one)] = one
            mask[row, : len(one)] = True
        return tokens, mask

    def _computed(self, text: str, device: Any) -> Tensor:
        """The tokens of a text, float32 [≤ L, D] on the CPU; an empty one has none."""
        if not text.strip():
            return torch.zeros(0, self.width)
        words = self._tokenizer(
            [text], truncation=True, max_length=self.length, return_tensors="pt"
        ).to(device)
        model = self._model.to(device)
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            return model(**words).last_hidden_state[0].float().cpu()

    @cached_property
    def _config(self) -> Any:
        return self._loaded("AutoConfig")

    @cached_property
    def _tokenizer(self) -> Any:
        return self._loaded("AutoTokenizer")

    @cached_property
    def _model(self) -> Any:
        kind = CLASSES.get(self._config.model_type, "AutoModel")
        model = self._loaded(kind, use_safetensors=True, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    def _loaded(self, kind: str, **settings: Any) -> Any:
        """Load a part of the model by a class of transformers."""
        try:
            import transformers
        except ImportError as error:
            raise InputError(
                "HuggingFaceEncoder needs Hugging Face's transformers library: pip install "
                "'ddpm_lightning[text]'"
            ) from error
        folder = Path(self.path).expanduser()
        try:
            return getattr(transformers, kind).from_pretrained(
                str(folder) if folder.is_dir() else self.path,
                local_files_only=not self.download,
                trust_remote_code=False,
                **settings,
            )
        except Exception as error:  # of the library, of the network and of file formats
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            here = "with a connection to the internet"
            if not self.download:
                here = f"that is in its cache (hf download {self.path})"
            raise InputError(
                f"{self.path} cannot be loaded as a text encoder ({reason:.300}); name a folder "
                "with config.json, model.safetensors and a tokenizer, or a name on the hub "
                f"{here} (--model.text.path)"
            ) from error
