"""Content and structure generators, REPA head."""

from nvg.models.content import FINAL_CANVAS, ContentGenerator, ContentGeneratorConfig
from nvg.models.repa import RepaHead, RepaHeadConfig
from nvg.models.structure import StructureGenerator, StructureGeneratorConfig
from nvg.models.trunk import HiddenTokens

__all__ = [
    "FINAL_CANVAS",
    "ContentGenerator",
    "ContentGeneratorConfig",
    "HiddenTokens",
    "RepaHead",
    "RepaHeadConfig",
    "StructureGenerator",
    "StructureGeneratorConfig",
]
