"""Features of images, from networks whose weights lie in files.

In reading order: `inception` (the network behind every published FID), `small_network` (one trained on the data, where
Inception knows nothing about them), `pretrained` (EfficientNet-Lite0 and DINOv2), `extractors` (each of them by its
name: enter by `build_extractor` and `extract`).
"""

from eval.features.extractors import ExtractorConfig, ExtractorSpec, build_extractor, extract, trained_extractor

__all__ = ["ExtractorConfig", "ExtractorSpec", "build_extractor", "extract", "trained_extractor"]
