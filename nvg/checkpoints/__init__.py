"""Weights on disk: one enters by `load_network` and `save_weights`.

files             a folder of safetensors and the JSON file that says what they are
networks          networks back from such folders
runs              which checkpoint of a training is whole, and what it was made of
frozen_weights    files of VGG, DINO, DINOv2, EfficientNet: read from where they lie, never fetched
release_files     tensors of the authors' checkpoints, read without trusting them
release_names     their names ↔ ours
release_sizes     their sizes, read from shapes
release_networks  their tensors ↔ our networks, compared strictly
"""

from nvg.checkpoints.files import file_hash, load_config, load_weights, save_weights, weights_hash
from nvg.checkpoints.frozen_weights import (
    find_efficientnet_weights,
    load_dino_features,
    load_dinov2_features,
    load_efficientnet_features,
    load_efficientnet_tokens,
    load_feature_distance,
    load_perceptual_distance,
)
from nvg.checkpoints.networks import load_network

__all__ = [
    "file_hash",
    "find_efficientnet_weights",
    "load_config",
    "load_dino_features",
    "load_dinov2_features",
    "load_efficientnet_features",
    "load_efficientnet_tokens",
    "load_feature_distance",
    "load_network",
    "load_perceptual_distance",
    "load_weights",
    "save_weights",
    "weights_hash",
]
