"""Weights on disk: safetensors beside a JSON description."""

from nvg.checkpoints.files import load_config, load_weights, save_weights, weights_hash
from nvg.checkpoints.networks import load_network

__all__ = ["load_config", "load_network", "load_weights", "save_weights", "weights_hash"]
