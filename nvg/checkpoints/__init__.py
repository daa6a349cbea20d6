"""Weights on disk: safetensors beside a JSON description, and files of frozen networks."""

from nvg.checkpoints.files import file_hash, load_config, load_weights, save_weights, weights_hash
from nvg.checkpoints.frozen_weights import load_dino_features, load_dinov2_features, load_perceptual_distance
from nvg.checkpoints.networks import load_network

__all__ = [
    "file_hash",
    "load_config",
    "load_dino_features",
    "load_dinov2_features",
    "load_network",
    "load_perceptual_distance",
    "load_weights",
    "save_weights",
    "weights_hash",
]
