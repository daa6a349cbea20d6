"""Objectives and the few parts a training step is made of."""

from nvg.training.adversarial import DiscriminatorLossConfig, DiscriminatorObjective
from nvg.training.alignment import FEATURES, IMAGE, Alignment
from nvg.training.ema import Ema
from nvg.training.engine import PlainEngine, parameter_groups
from nvg.training.generator_noise import GeneratorLossConfig, noisy_structure
from nvg.training.generator_objectives import ContentObjective, StructureObjective
from nvg.training.schedule import WsdSchedule
from nvg.training.tokenizer_objective import TokenizerLossConfig, TokenizerObjective

__all__ = [
    "FEATURES",
    "IMAGE",
    "Alignment",
    "ContentObjective",
    "DiscriminatorLossConfig",
    "DiscriminatorObjective",
    "Ema",
    "GeneratorLossConfig",
    "PlainEngine",
    "StructureObjective",
    "TokenizerLossConfig",
    "TokenizerObjective",
    "WsdSchedule",
    "noisy_structure",
    "parameter_groups",
]
