"""Encoders, which turn captions into tokens for a network's cross-attention."""

from ddpm_lightning.text.encoder import TextEncoder
from ddpm_lightning.text.hugging_face import HuggingFaceEncoder
from ddpm_lightning.text.vocabulary import VocabularyEncoder

__all__ = ["HuggingFaceEncoder", "TextEncoder", "VocabularyEncoder"]
