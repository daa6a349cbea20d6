"""Objectives and the parts a training step is made of.

generator_noise       random choices of a generator's step: `GeneratorLossConfig`
generator_objectives  losses of the two generators: `ContentObjective`, `StructureObjective`
mistakes              canvases painted with mistakes, which generator and decoder learn to live with
alignment             REPA: hidden tokens towards those of a frozen network
tokenizer_objective   loss of the tokenizer: `TokenizerObjective`
adversarial           the discriminator's side: `DiscriminatorObjective`
codebook_watch        how much of the codebook each stage uses
codebook_revival      idle entries put beside used ones
schedule              learning rates: `WsdSchedule`
ema                   averages of weights: `Ema`
engine                a single-process engine with DeepSpeed's methods: `PlainEngine`
"""

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
