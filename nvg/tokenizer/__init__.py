"""Images ↔ visual granularity sequences, and the networks that judge it in training.

autoencoder    convolutional encoder and decoder
quantizer      a latent becomes stages of content ids: `quantize_ids`, `quantize_for_training`
dequantizer    from ids and maps back to canvases: `Dequantizer`
tokenizer      all of these as one network: `Tokenizer`
perceptual     LPIPS on a frozen VGG: `PerceptualDistance`; a distance in EfficientNet's maps: `FeatureDistance`
discriminator  heads on the tokens of a frozen DINO: `Discriminator`
augmentation   what the discriminator sees, changed at random: `augment`
dinov2         the target of REPA: `Dinov2Features`
efficientnet   features for scores, a loss, a target: `EfficientNetFeatures`, `EfficientNetTokens`
frozen         what the networks that judge share
"""

from nvg.tokenizer.dequantizer import Dequantizer, DequantizerConfig
from nvg.tokenizer.dinov2 import Dinov2Features
from nvg.tokenizer.discriminator import DinoFeatures, Discriminator
from nvg.tokenizer.efficientnet import EfficientNetFeatures, EfficientNetTokens
from nvg.tokenizer.perceptual import FeatureDistance, PerceptualDistance
from nvg.tokenizer.quantizer import Quantized, quantize_for_training, quantize_ids
from nvg.tokenizer.tokenizer import Tokenizer, TokenizerConfig

__all__ = [
    "Dequantizer",
    "DequantizerConfig",
    "DinoFeatures",
    "Dinov2Features",
    "Discriminator",
    "EfficientNetFeatures",
    "EfficientNetTokens",
    "FeatureDistance",
    "PerceptualDistance",
    "Quantized",
    "Tokenizer",
    "TokenizerConfig",
    "quantize_for_training",
    "quantize_ids",
]
