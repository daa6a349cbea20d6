import pytest
import torch

from nvg.layers import rotary_table, rotate, token_ids
from nvg.layers.rope import axis_widths


@pytest.mark.parametrize(("last_stage", "grid"), [(4, 24), (6, 22), (8, 20), (10, 18)])
def test_axes_fill_a_head(last_stage, grid):
    widths = axis_widths(last_stage)
    assert widths == [8] + [2] * last_stage + [grid, grid]
    assert sum(widths) == 64


def test_ids_of_a_structure_sequence():
    structure = torch.randperm(16, generator=torch.Generator().manual_seed(0))[None]
    ids = token_ids(structure, torch.tensor([2]), [2, 0])[0]
    assert ids.shape == (33, 7)
    assert ids[0].tolist() == [1] * 7
    assert ids[1, 0] == 2
    assert ids[17, 0] == 0
    assert torch.equal(ids[1:17, 1:], ids[17:, 1:])
    assert ids[6, -2:].tolist() == [1, 1]
    assert bool((ids[1:, 3:5] == 1).all())


def test_without_structure_all_channels_are_padding():
    ids = token_ids(torch.arange(16)[None], torch.tensor([4]), [0], structure_aware=False)
    assert bool((ids[:, :, 1:5] == 1).all())


def test_scores_depend_on_id_differences_only():
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 64, generator=generator).double().float()
    ids = torch.randint(0, 5, (1, 1, 11), generator=generator)
    other = torch.randint(0, 5, (1, 1, 11), generator=generator)

    def score(a, b):
        return (rotate(query, rotary_table(a)) * rotate(key, rotary_table(b))).sum()

    torch.testing.assert_close(score(ids, other), score(ids + 3, other + 3), rtol=1e-4, atol=1e-4)


def test_rotation_of_one_pair_is_the_textbook_formula():
    x = torch.zeros(1, 1, 1, 64)
    x[..., 8] = 1.0  # first channel of the first structure axis: frequency 1
    ids = torch.zeros(1, 1, 11, dtype=torch.int64)
    ids[..., 1] = 2
    turned = rotate(x, rotary_table(ids))
    angle = torch.tensor(2.0)
    torch.testing.assert_close(turned[0, 0, 0, 8:10], torch.stack([angle.cos(), angle.sin()]))
