"""Autoencoder, multi-granularity quantiser, and the networks that judge them in training."""

from nvg.tokenizer.dequantizer import Dequantizer, DequantizerConfig
from nvg.tokenizer.dinov2 import Dinov2Features
from nvg.tokenizer.discriminator import DinoFeatures, Discriminator
from nvg.tokenizer.perceptual import PerceptualDistance
from nvg.tokenizer.quantizer import Quantized, quantize_for_training, quantize_ids
from nvg.tokenizer.tokenizer import Tokenizer, TokenizerConfig

__all__ = [
    "Dequantizer",
    "DequantizerConfig",
    "DinoFeatures",
    "Dinov2Features",
    "Discriminator",
    "PerceptualDistance",
    "Quantized",
    "Tokenizer",
    "TokenizerConfig",
    "quantize_for_training",
    "quantize_ids",
]
