"""Dead entries come back beside used ones, at the right moment and alike everywhere."""

from __future__ import annotations

import torch

from nvg.training.codebook_revival import SPREAD, CodebookRevival

CODEBOOK = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def step(revival: CodebookRevival, ids: list[int], number: int) -> torch.Tensor | None:
    revival.note(torch.tensor([ids]))
    return revival.revive(CODEBOOK, seed=1, step=number, num_images=10)


def test_only_entries_idle_for_long_enough_are_replaced():
    revival = CodebookRevival(6, idle_images=30)
    assert step(revival, [0, 1, 2, 3, 4], 0) is None
    assert step(revival, [0, 1, 5, 5, 5], 1) is None
    assert step(revival, [0, 1, 5, 5, 5], 2) is None
    revived = step(revival, [0, 1, 5, 5, 5], 3)
    assert revived is not None
    changed = (revived != CODEBOOK).any(1)
    assert changed.tolist() == [False, False, True, True, True, False]
    assert step(revival, [0, 1, 5, 5, 5], 4) is None  # they start anew


def test_a_revived_entry_is_a_neighbour_of_one_that_is_used():
    revival = CodebookRevival(6, idle_images=10)
    revived = step(revival, [1, 1, 1, 4], 0)
    assert revived is not None
    distances = torch.cdist(revived[[0, 2, 3, 5]], CODEBOOK[[1, 4]]).amin(1)
    assert bool((distances < 6 * SPREAD * CODEBOOK.std()).all())
    assert bool((distances > 0).all())


def test_the_same_seed_and_step_give_the_same_codebook():
    first, second = (step(CodebookRevival(6, idle_images=10), [1, 4], 7) for _ in range(2))
    other = step(CodebookRevival(6, idle_images=10), [1, 4], 8)
    assert first is not None
    assert second is not None
    assert other is not None
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_what_is_idle_is_part_of_a_checkpoint():
    revival = CodebookRevival(6, idle_images=30)
    step(revival, [0, 1, 2], 0)
    resumed = CodebookRevival(6, idle_images=30)
    resumed.load_state_dict(revival.state_dict())
    for number in (1, 2):
        ours, theirs = step(revival, [0], number), step(resumed, [0], number)
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours, theirs)
