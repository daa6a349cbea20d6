"""Content and structure generators."""

from nvg.models.content import ContentGenerator, ContentGeneratorConfig
from nvg.models.structure import StructureGenerator, StructureGeneratorConfig

__all__ = ["ContentGenerator", "ContentGeneratorConfig", "StructureGenerator", "StructureGeneratorConfig"]
