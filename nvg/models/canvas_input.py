"""What the content generator sees of the canvas: the canvas itself, or one of the two noised ones of the ablation.

Legend: N sequences (image, stage), L positions, C latent channels.
"""

from __future__ import annotations

from torch import Tensor

CANVAS = "canvas"
NOISED_CANVAS = "noised_canvas"
MIXED_CANVAS = "mixed_canvas"
CONTENT_INPUTS = (CANVAS, NOISED_CANVAS, MIXED_CANVAS)


def noise_level(stage_N: Tensor, last_stage: int) -> Tensor:
    """Share of noise t_i = 1 - i / (K + 1): 1 at stage 0, 1 / (K + 1) at stage K.

    The paper counts the nine stages of K = 8 from 1 and writes 1 - (i - 1) / 9.

    Args:
        stage_N: int64, 0..K.
        last_stage: K.

    Returns:
        float32 (N,).

    Paper: §3.2 (a)
    """
    return 1.0 - stage_N.float() / (last_stage + 1)


def noised_canvas(canvas_NLC: Tensor, noise_NLC: Tensor, level_N: Tensor, content_input: str) -> Tensor:
    """Mixes the canvas with noise: x + t·ε, or (1 - t)·x + t·ε.

    Args:
        canvas_NLC: of about unit variance, as the network takes it.
        noise_NLC: standard normals.
        level_N: t in [0, 1].
        content_input: NOISED_CANVAS or MIXED_CANVAS.

    Returns:
        (N, L, C); the canvas itself where t is 0.

    DEVIATION: the paper does not say in which units the noise is; here it is added to the canvas after its scale, which
    makes the second form variance preserving, as the paper calls it.

    Paper: §3.2 (a), Table 2
    """
    level_N11 = level_N[:, None, None]
    kept_NLC = canvas_NLC if content_input == NOISED_CANVAS else (1.0 - level_N11) * canvas_NLC
    return kept_NLC + level_N11 * noise_NLC
