"""Entries of the codebook that nothing draws any more are put beside entries that much draws.

Legend: B images, T tokens of all stages, V codebook size, C latent channels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvg.randomness import Purpose, per_sample_normals, uniforms

SPREAD = 0.1  # of the codebook's standard deviation: how far from its donor an entry comes back


class CodebookRevival(nn.Module):
    """Replaces entries that have been idle for a number of images.

    A donor is drawn in proportion to how often it was used lately; the idle entry becomes its neighbour, so that the
    two share its work from then on. All ranks draw alike. Off in the published recipe.

    DEVIATION: an option for small data sets; the paper's warm-up (every entry receives gradient) does without.

    Args:
        codebook_size: V.
        idle_images: images after which an entry counts as dead.

    Paper: App. A.5 (index backpropagation, the remedy of the published recipe)
    """

    idle_V: Tensor
    used_V: Tensor

    def __init__(self, codebook_size: int, idle_images: int) -> None:
        super().__init__()
        self.idle_images = idle_images
        self.register_buffer("idle_V", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("used_V", torch.zeros(codebook_size, dtype=torch.int64))

    @torch.no_grad()
    def note(self, content_ids_BT: Tensor) -> None:
        """Counts the draws of one micro batch, int64 (B, T), of this rank."""
        ids_N = content_ids_BT.flatten()
        self.used_V.scatter_add_(0, ids_N, torch.ones_like(ids_N))

    @torch.no_grad()
    def revive(self, codebook_VC: Tensor, *, seed: int, step: int, num_images: int) -> Tensor | None:
        """The codebook with dead entries replaced; to be called once after every step (every rank calls).

        Args:
            codebook_VC: as it is.
            seed, step: of the training; donors and offsets follow from them.
            num_images: images of the step over all ranks.

        Returns:
            float (V, C), or None when no entry is dead.
        """
        used_V = self.used_V.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(used_V)
        self.used_V.zero_()
        self.idle_V.add_(num_images).masked_fill_(used_V > 0, 0)
        dead_N = (self.idle_V >= self.idle_images).nonzero().flatten()
        if len(dead_N) == 0:
            return None
        self.idle_V[dead_N] = 0
        cdf_V = used_V.double().cumsum(0)
        draws_N = uniforms(seed, 0, Purpose.TRAIN_REVIVAL, step, (len(dead_N),)).to(cdf_V) * cdf_V[-1]
        donor_N = torch.searchsorted(cdf_V, draws_N, right=True)
        offsets_NC = per_sample_normals(
            seed, dead_N.cpu() + 1, Purpose.TRAIN_REVIVAL, step, (codebook_VC.shape[1],)
        ).to(codebook_VC)
        revived_VC = codebook_VC.clone()
        revived_VC[dead_N] = codebook_VC[donor_N] + SPREAD * codebook_VC.std() * offsets_NC
        return revived_VC
