"""The content generator: from the canvas so far and the structure of a stage to the final canvas and its tokens.

Legend: N sequences (image, stage), L positions, C latent channels, K last stage, U tokens of one stage,
V codebook size, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nvg.bounds import between, check_fields
from nvg.errors import UserError
from nvg.granularity import StageLayout, cluster_mean, counted_mean
from nvg.layers import ModulatedHead, rotary_table, token_ids
from nvg.models.canvas_input import CANVAS, CONTENT_INPUTS, noise_level, noised_canvas
from nvg.models.trunk import CONTENT_WIDTH_PER_DEPTH, HiddenTokens, Trunk, check_token_space, initialize, resolve_width

CONTENT_KIND = 0
FINAL_CANVAS = "final_canvas"
NEXT_CONTENT = "next_content"
PREDICTIONS = (FINAL_CANVAS, NEXT_CONTENT)


@dataclass(frozen=True, kw_only=True)
class ContentGeneratorConfig:
    """Size of the generator and of the token space; the defaults are NVG-d16 on ImageNet.

    `canvas_scales` has K + 2 entries: entry i makes the input canvas of stage i about unit variance
    (entry 0 is unused), the last one belongs to x_K. Empty means 1 everywhere.

    The last three settings are the ablations' switches: what is seen of the canvas (x, x + tε or (1-t)x + tε), whether
    the head estimates the final canvas or the features of the next tokens, and whether rotations carry the structure.

    Paper: App. A.4
    """

    depth: int = 16
    width: int | None = None
    mlp_ratio: int = 4
    drop_path_rate: float = between(0, 1, 0.1)
    num_classes: int = 1000
    num_positions: int = 256
    latent_channels: int = 32
    codebook_size: int = 4096
    canvas_scales: list[float] = field(default_factory=list)
    content_input: str = CANVAS
    prediction: str = FINAL_CANVAS
    structure_rope: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "content")
        resolve_width(self.depth, self.width, CONTENT_WIDTH_PER_DEPTH)
        check_token_space(self.num_positions, self.num_classes, self.codebook_size, self.latent_channels)
        expected = StageLayout(self.num_positions).num_stages + 1
        if self.canvas_scales and len(self.canvas_scales) != expected:
            raise UserError(
                f"canvas_scales has {len(self.canvas_scales)} entries; {self.num_positions} positions need {expected}"
            )
        for name, choices in (("content_input", CONTENT_INPUTS), ("prediction", PREDICTIONS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    @property
    def needs_noise(self) -> bool:
        """Whether the generator takes noise beside the canvas."""
        return self.content_input != CANVAS


class ContentGenerator(nn.Module):
    """Predicts, for one stage of each sequence, the final canvas; the tokens follow from it by pooling.

    Paper: §2.2.2, App. A.4
    """

    canvas_scales: Tensor

    def __init__(self, config: ContentGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = StageLayout(config.num_positions)
        width = resolve_width(config.depth, config.width, CONTENT_WIDTH_PER_DEPTH)
        self.start_canvas = nn.Parameter(torch.empty(1, config.num_positions, config.latent_channels))
        self.canvas_in = nn.Linear(config.latent_channels, width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.stage_embedding = nn.Embedding(self.layout.num_stages, width)
        self.trunk = Trunk(config.depth, width, config.mlp_ratio, config.drop_path_rate)
        self.head = ModulatedHead(width, config.latent_channels)
        self.token_head = nn.Linear(config.latent_channels, config.codebook_size)
        scales = torch.tensor(config.canvas_scales or [1.0] * (self.layout.num_stages + 1), dtype=torch.float32)
        self.register_buffer("canvas_scales", scales)
        initialize(self)
        nn.init.normal_(self.start_canvas)

    @property
    def null_class(self) -> int:
        """Class id that stands for "no class" in guidance and class dropout."""
        return self.config.num_classes

    def forward(
        self,
        canvas_NLC: Tensor,
        structure_NL: Tensor,
        stage_N: Tensor,
        class_N: Tensor,
        drop_path_ND: Tensor | None = None,
        noise_NLC: Tensor | None = None,
        hidden: HiddenTokens | None = None,
    ) -> Tensor:
        """Estimates the final canvas x_K, or with `prediction` next_content the features of the stage's tokens.

        Args:
            canvas_NLC: x_{i-1}, unscaled; ignored at stage 0, which sees the learned start canvas.
            structure_NL: int64 finest map, its `stage_N` leading bits are read.
            stage_N: int64, 0..K.
            class_N: int64, 0..num_classes (the last one is the null class).
            drop_path_ND: uniforms for stochastic depth, None to keep every branch.
            noise_NLC: standard normals, for a noised `content_input` alone.
            hidden: takes the stream (class token and image tokens) after one of the blocks.

        Returns:
            float32 (N, L, C) in raw latent units.

        Raises:
            UserError: noise is missing, or given to a generator that takes none.

        DEVIATION: stage 0 sees a learned start canvas, as in the release; the paper writes an empty one.

        Paper: §2.2.2 (final canvas), Fig. 2
        """
        if (noise_NLC is not None) != self.config.needs_noise:
            raise UserError(
                f"noise_NLC: found {'none' if noise_NLC is None else 'some'} at content_input "
                f"{self.config.content_input!r}; a noised canvas needs noise, the plain canvas takes none"
            )
        scale_N11 = self.canvas_scales[stage_N][:, None, None]
        first_N11 = (stage_N == 0)[:, None, None]
        input_NLC = torch.where(first_N11, self.start_canvas, canvas_NLC * scale_N11)
        if noise_NLC is not None:
            level_N = noise_level(stage_N, self.layout.last_stage)
            input_NLC = noised_canvas(input_NLC, noise_NLC, level_N, self.config.content_input)
        class_ND = self.class_embedding(class_N)
        x_NSD = torch.cat([class_ND[:, None], self.canvas_in(input_NLC)], dim=1)
        vec_ND = class_ND + self.stage_embedding(stage_N)
        ids_NSA = token_ids(structure_NL, stage_N, [CONTENT_KIND], structure_aware=self.config.structure_rope)
        x_NSD = self.trunk(x_NSD, vec_ND, rotary_table(ids_NSA), drop_path_ND, hidden)
        return self.head(x_NSD[:, 1:], vec_ND) / self.canvas_scales[-1]

    def token_logits(
        self,
        final_NLC: Tensor,
        canvas_NLC: Tensor,
        structure_NL: Tensor,
        stage: int,
        *,
        painted_NL: Tensor | None = None,
    ) -> Tensor:
        """Logits of the unique tokens of one stage, from what is still missing on the canvas.

        Args:
            final_NLC: estimate of x_K from `forward`.
            canvas_NLC: x_{i-1}; zeros at stage 0.
            structure_NL: int64 finest map, its `stage` leading bits are read.
            stage: 0..K, the same for all rows.
            painted_NL: bool, positions that the tokens will paint; what others lack does not count. None is all.

        Returns:
            (N, U, V).

        Paper: §2.2.2 (content prediction)
        """
        missing_NLC = self.missing(final_NLC, canvas_NLC)
        if painted_NL is None:
            return self.token_head(cluster_mean(missing_NLC, structure_NL, stage))
        return self.token_head(counted_mean(missing_NLC, painted_NL, structure_NL, stage))

    def missing(self, final_NLC: Tensor, canvas_NLC: Tensor) -> Tensor:
        """What the canvas x_{i-1} still lacks, whose means in the clusters the token head reads: (N, L, C).

        With `prediction` next_content the head's output is taken as it is: it stands for the missing part itself.

        Paper: §2.2.2 (content prediction)
        """
        return final_NLC - canvas_NLC if self.config.prediction == FINAL_CANVAS else final_NLC
