"""The structure generator: a rectified flow over structure embeddings, conditioned on the canvas.

Legend: N sequences (image, stage), L positions, C latent channels, K structure channels, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.bounds import check_fields
from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.layers import ModulatedHead, rotary_table, token_ids
from nvg.models.trunk import STRUCTURE_WIDTH_PER_DEPTH, Trunk, check_token_space, initialize, resolve_width

CANVAS_KIND = 2
STRUCTURE_KIND = 0
TIME_CHANNELS = 64
PARTIAL = "partial"
NOISE = "noise"
STRUCTURE_INPUTS = (PARTIAL, NOISE)


@dataclass(frozen=True, kw_only=True)
class StructureGeneratorConfig:
    """Size of the generator and of the token space; the defaults are NVG-d16 on ImageNet.

    The last two settings are the ablations' switches: whether known channels are clean in the input ("partial") or
    noise like the others ("noise"), and whether rotations carry the structure.

    Paper: App. A.4
    """

    depth: int = 16
    width: int | None = None
    mlp_ratio: int = 4
    drop_path_rate: float = 0.1
    num_classes: int = 1000
    num_positions: int = 256
    latent_channels: int = 32
    structure_input: str = PARTIAL
    structure_rope: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "structure")
        resolve_width(self.depth, self.width, STRUCTURE_WIDTH_PER_DEPTH)
        check_token_space(self.num_positions, self.num_classes, 1, self.latent_channels)
        if self.structure_input not in STRUCTURE_INPUTS:
            raise UserError(f"structure_input is {self.structure_input!r}; choose one of {', '.join(STRUCTURE_INPUTS)}")
        if self.structure_input == NOISE and not self.structure_rope:
            raise UserError(
                "structure_input is 'noise' and structure_rope false: nothing would tell the network which splits are "
                "known; change one of them"
            )

    @property
    def known_clean(self) -> bool:
        """Whether channels of known splits are clean in the input, with target 0."""
        return self.structure_input == PARTIAL


class TimeEmbedding(nn.Module):
    """Flow time t in [0, 1] → width D: [cos | sin] of 1000 t · 10⁴^(-k/32), then two layers with SiLU.

    Release: 64 channels, time times 1000
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(TIME_CHANNELS, width)
        self.linear_out = nn.Linear(width, width)

    def forward(self, time_N: Tensor) -> Tensor:
        """Embeds float times (N,) as (N, D)."""
        half = TIME_CHANNELS // 2
        frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float32, device=time_N.device) / half)
        angle = 1000.0 * time_N.float()[:, None] * frequency
        return self.linear_out(F.silu(self.linear_in(torch.cat([angle.cos(), angle.sin()], dim=-1))))


@dataclass(frozen=True)
class FlowCondition:
    """What the structure generator sees at every flow step of a stage, embedded once.

    Attributes:
        canvas_NLD: canvas tokens.
        class_ND: class embedding: the class token, and a part of the conditioning vector.
        stage_ND: stage embedding.
        table_NSP2: rotations of all tokens.
    """

    canvas_NLD: Tensor
    class_ND: Tensor
    stage_ND: Tensor
    table_NSP2: Tensor


class StructureGenerator(nn.Module):
    """Velocity of the noisy structure embedding, from which the next split is integrated.

    Paper: §2.2.1, App. A.4
    """

    def __init__(self, config: StructureGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = StageLayout(config.num_positions)
        width = resolve_width(config.depth, config.width, STRUCTURE_WIDTH_PER_DEPTH)
        self.canvas_in = nn.Linear(config.latent_channels, width)
        self.structure_in = nn.Linear(self.layout.last_stage, width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.stage_embedding = nn.Embedding(self.layout.num_structure_stages, width)
        self.time_embedding = TimeEmbedding(width)
        self.trunk = Trunk(config.depth, width, config.mlp_ratio, config.drop_path_rate)
        self.head = ModulatedHead(width, self.layout.last_stage)
        initialize(self)

    @property
    def null_class(self) -> int:
        """Class id that stands for "no class" in guidance and class dropout."""
        return self.config.num_classes

    def forward(
        self,
        noisy_NLK: Tensor,
        canvas_NLC: Tensor,
        structure_NL: Tensor,
        stage_N: Tensor,
        time_N: Tensor,
        class_N: Tensor,
        drop_path_ND: Tensor | None = None,
    ) -> Tensor:
        """Predicts the velocity ε - s.

        Args:
            noisy_NLK: structure data in [-1, 1] mixed with noise, known channels clean if `known_clean`.
            canvas_NLC: x_i, unscaled.
            structure_NL: int64 finest map, its `stage_N` leading bits are read.
            stage_N: int64, 0..K-2: the stage whose split is predicted.
            time_N: float in [0, 1], 1 is pure noise.
            class_N: int64, 0..num_classes (the last one is the null class).
            drop_path_ND: uniforms for stochastic depth, None to keep every branch.

        Returns:
            float32 (N, L, K).

        Paper: §2.2.1 (v-prediction)
        """
        condition = self.condition(canvas_NLC, structure_NL, stage_N, class_N)
        return self.velocity(noisy_NLK, time_N, condition, drop_path_ND)

    def condition(self, canvas_NLC: Tensor, structure_NL: Tensor, stage_N: Tensor, class_N: Tensor) -> FlowCondition:
        """Embeds everything that stays the same from one flow step to the next; arguments as of `forward`."""
        kinds = [CANVAS_KIND, STRUCTURE_KIND]
        ids_NSA = token_ids(structure_NL, stage_N, kinds, structure_aware=self.config.structure_rope)
        return FlowCondition(
            canvas_NLD=self.canvas_in(canvas_NLC),
            class_ND=self.class_embedding(class_N),
            stage_ND=self.stage_embedding(stage_N),
            table_NSP2=rotary_table(ids_NSA),
        )

    def with_class(self, condition: FlowCondition, class_N: Tensor) -> FlowCondition:
        """The same condition for other classes, e.g. the null class."""
        return replace(condition, class_ND=self.class_embedding(class_N))

    def velocity(
        self, noisy_NLK: Tensor, time_N: Tensor, condition: FlowCondition, drop_path_ND: Tensor | None = None
    ) -> Tensor:
        """Predicts the velocity ε - s under a condition; arguments and result as of `forward`."""
        class_ND = condition.class_ND
        x_NSD = torch.cat([class_ND[:, None], condition.canvas_NLD, self.structure_in(noisy_NLK)], dim=1)
        vec_ND = class_ND + self.time_embedding(time_N) + condition.stage_ND
        x_NSD = self.trunk(x_NSD, vec_ND, condition.table_NSP2, drop_path_ND)
        return self.head(x_NSD[:, 1 + self.layout.num_positions :], vec_ND)
