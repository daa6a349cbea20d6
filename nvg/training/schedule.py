"""Learning rates over training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WsdSchedule:
    """Warm-up, stable, decay: a factor on the base learning rate as a function of images seen.

    Rises linearly from `warmup_factor` to 1, stays, then falls from `decay_start` (a fraction of training) to
    `final_factor`, linearly or along a cosine. A cosine with `decay_start` 0 is the tokenizer's schedule.

    Paper: App. A.5 (1,000 steps, 80 %, 1/10; the tokenizer's cosine to 0); Release: warm-up from 0.5 %
    """

    total_images: int
    warmup_images: int = 0
    warmup_factor: float = 0.005
    decay_start: float = 0.8
    final_factor: float = 0.1
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.total_images < 1 or not 0 <= self.warmup_images <= self.total_images:
            raise UserError(
                f"total_images is {self.total_images} and warmup_images {self.warmup_images}; "
                "training needs images, and the warm-up must end within it"
            )
        if not 0.0 <= self.decay_start <= 1.0:
            raise UserError(f"decay_start is {self.decay_start}; it is a fraction of training from 0 to 1")
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"shape is {self.shape!r}; the decay is 'linear' or 'cosine'")

    def factor(self, images_seen: float) -> float:
        """Multiplier of the base learning rate after `images_seen` images."""
        if images_seen < self.warmup_images:
            return self.warmup_factor + (1 - self.warmup_factor) * images_seen / self.warmup_images
        start = self.decay_start * self.total_images
        if images_seen <= start or start >= self.total_images:
            return 1.0
        done = min(1.0, (images_seen - start) / (self.total_images - start))
        if self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return 1.0 + (self.final_factor - 1.0) * done
