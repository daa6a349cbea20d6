"""How much of the codebook each stage uses: the first sign of a collapse.

Legend: B images, T tokens of all stages, S stages, V codebook size, N steps.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvg.granularity import StageLayout

logger = logging.getLogger(__name__)


class CodebookWatch(nn.Module):
    """Counts which entries the stages drew since it was last read.

    Usage is the share of entries drawn at least once, perplexity the exponential of the entropy of how often each was
    drawn (V when all are drawn alike). A window of few images bounds both: stage 0 draws one entry an image. All of it
    is of the whole batch, however it is cut over ranks and micro batches: usage is a union, no mean of shares.

    Args:
        layout, codebook_size: of the token space.
        warn_below: share of what even draws would use below which a stage is warned of, once for each time it falls
            below; 0 never warns.

    Paper: Table 3 (usage), App. B.1 (usage of stage 0)
    """

    counts_SV: Tensor
    drawn_V: Tensor

    def __init__(self, layout: StageLayout, codebook_size: int, *, warn_below: float = 0.0) -> None:
        super().__init__()
        self.layout = layout
        self.warn_below = warn_below
        self._low_stages: set[int] = set()
        self._is_settling = False
        counts_SV = torch.zeros(layout.num_stages, codebook_size, dtype=torch.int64)
        self.register_buffer("counts_SV", counts_SV, persistent=False)
        self.register_buffer("drawn_V", torch.zeros(codebook_size, dtype=torch.uint8), persistent=False)
        self._drawn_in_steps: list[Tensor] = []

    @torch.no_grad()
    def add(self, content_ids_BT: Tensor, *, is_settling: bool = False) -> None:
        """Counts the ids of a batch or of a part of it, int64 (B, T); while the codebook settles nothing is warned of.

        In its warm-up every entry receives gradient, also those that are not drawn yet.
        """
        self._is_settling |= is_settling
        ones = torch.ones_like(content_ids_BT)
        for stage in range(self.layout.num_stages):
            columns = self.layout.tokens(stage)
            drawn, one = content_ids_BT[:, columns].flatten(), ones[:, columns].flatten()
            self.counts_SV[stage].scatter_add_(0, drawn, one)
        self.drawn_V[content_ids_BT.flatten()] = 1

    def end_step(self) -> None:
        """What has been added since the last call was the batch of one step."""
        self._drawn_in_steps.append(self.drawn_V.clone())
        self.drawn_V.zero_()

    @torch.no_grad()
    def close(self) -> dict[str, float]:
        """Numbers of the steps since the last call, over all ranks (every rank calls).

        Returns:
            usage and perplexity overall and per stage; codebook_used, the mean over steps of a step's usage.
        """
        counts_SV = self.counts_SV.clone()
        self.counts_SV.zero_()
        drawn_NV = torch.stack(self._drawn_in_steps) if self._drawn_in_steps else self.drawn_V[None]
        self._drawn_in_steps = []
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts_SV)
            dist.all_reduce(drawn_NV, op=dist.ReduceOp.MAX)
        if not counts_SV.any():
            return {}
        low = {} if self._is_settling else low_stages(counts_SV, self.warn_below)
        self._is_settling = False
        if not low.keys() <= self._low_stages:
            found = ", ".join(f"stage {stage}: {used} of {counts_SV.shape[1]}" for stage, used in low.items())
            logger.warning(
                f"the codebook may collapse: entries drawn since the last row of metrics are {found}, below "
                f"{self.warn_below:g} of what even draws would use. Train longer with soft_assignment_images, set "
                "loss.revive_after_images, or lower lr"
            )
        self._low_stages = set(low)
        overall = codebook_use(counts_SV.sum(0, keepdim=True), "codebook")
        used = {"codebook_used": float(drawn_NV.float().mean())}
        return used | overall | codebook_use(counts_SV, "codebook_{stage}")


def low_stages(counts_SV: Tensor, warn_below: float) -> dict[int, int]:
    """Stages that use few entries for as many draws, each with the number it uses.

    Args:
        counts_SV: how often each entry was drawn.
        warn_below: share of the entries that as many even draws would have met.

    Paper: App. B.1 (stage 0 uses 68.55 % of the codebook)
    """
    num_entries = counts_SV.shape[1]
    draws_S = counts_SV.sum(1).double()
    even_S = num_entries * (1.0 - (1.0 - 1.0 / num_entries) ** draws_S)
    used_S = (counts_SV > 0).sum(1)
    return {stage: int(used_S[stage]) for stage in range(len(used_S)) if used_S[stage] < warn_below * even_S[stage]}


def codebook_use(counts_SV: Tensor, name: str) -> dict[str, float]:
    """Usage and perplexity of every row of counts.

    Args:
        counts_SV: how often each entry was drawn, at least once in every row.
        name: pattern of the names; `{stage}` becomes the row's number.

    Returns:
        `<name>_usage` in (0, 1] and `<name>_perplexity` in [1, V].

    Paper: Table 3 (usage)
    """
    share_SV = counts_SV.double() / counts_SV.sum(1, keepdim=True)
    perplexity_S = torch.special.entr(share_SV).sum(1).exp()
    usage_S = (counts_SV > 0).double().mean(1)
    numbers: dict[str, float] = {}
    for stage, (usage, perplexity) in enumerate(zip(usage_S.tolist(), perplexity_S.tolist(), strict=True)):
        numbers[f"{name.format(stage=stage)}_usage"] = usage
        numbers[f"{name.format(stage=stage)}_perplexity"] = perplexity
    return numbers
