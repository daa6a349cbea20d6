"""Weights on disk: safetensors beside a JSON description."""

from nvg.checkpoints.files import load_weights, save_weights, weights_hash
from nvg.checkpoints.networks import (
    load_content_generator,
    load_dequantizer,
    load_structure_generator,
    load_tokenizer,
)

__all__ = [
    "load_content_generator",
    "load_dequantizer",
    "load_structure_generator",
    "load_tokenizer",
    "load_weights",
    "save_weights",
    "weights_hash",
]
