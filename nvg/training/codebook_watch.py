"""How much of the codebook each stage uses: the first sign of a collapse.

Legend: B images, T tokens of all stages, S stages, V codebook size.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvg.granularity import StageLayout


class CodebookWatch(nn.Module):
    """Counts which entries the stages drew since it was last read.

    Usage is the share of entries drawn at least once, perplexity the exponential of the entropy of how often each was
    drawn (V when all are drawn alike). A window of few images bounds both: stage 0 draws one entry an image.

    Paper: Table 3, App. B.1 (usage)
    """

    counts_SV: Tensor

    def __init__(self, layout: StageLayout, codebook_size: int) -> None:
        super().__init__()
        self.layout = layout
        counts_SV = torch.zeros(layout.num_stages, codebook_size, dtype=torch.int64)
        self.register_buffer("counts_SV", counts_SV, persistent=False)

    @torch.no_grad()
    def add(self, content_ids_BT: Tensor) -> None:
        """Counts the ids of a batch, int64 (B, T)."""
        ones = torch.ones_like(content_ids_BT)
        for stage in range(self.layout.num_stages):
            columns = self.layout.tokens(stage)
            drawn, one = content_ids_BT[:, columns].flatten(), ones[:, columns].flatten()
            self.counts_SV[stage].scatter_add_(0, drawn, one)

    @torch.no_grad()
    def close(self) -> dict[str, float]:
        """Usage and perplexity overall and per stage since the last call, over all ranks (every rank calls)."""
        counts_SV = self.counts_SV.clone()
        self.counts_SV.zero_()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts_SV)
        if not counts_SV.any():
            return {}
        overall = codebook_use(counts_SV.sum(0, keepdim=True), "codebook")
        return overall | codebook_use(counts_SV, "codebook_{stage}")


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
