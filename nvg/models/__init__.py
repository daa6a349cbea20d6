"""The two generators.

trunk         sizes, initialisation and the stack of blocks of both
canvas_input  what the content generator sees of the canvas
content       canvas so far and structure → final canvas and tokens: `ContentGenerator`
structure     a rectified flow over structure embeddings: `StructureGenerator`
repa          hidden tokens → patch tokens of a frozen network: `RepaHead`
"""

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
