"""Autoencoder and multi-granularity quantiser."""

from nvg.tokenizer.dequantizer import Dequantizer, DequantizerConfig
from nvg.tokenizer.quantizer import Quantized, quantize_for_training, quantize_ids
from nvg.tokenizer.tokenizer import Tokenizer, TokenizerConfig

__all__ = [
    "Dequantizer",
    "DequantizerConfig",
    "Quantized",
    "Tokenizer",
    "TokenizerConfig",
    "quantize_for_training",
    "quantize_ids",
]
