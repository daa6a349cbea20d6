import pytest
import torch

from nvg.errors import UserError
from nvg.randomness import Purpose, normals, per_sample_uniforms, permutation, uniforms


def test_values_are_frozen():
    """A change here changes every sample and every training run: it belongs under Numerics in the changelog."""
    drawn = uniforms(1, 2, Purpose.TOKEN, 3, (3,))
    assert drawn.tolist() == pytest.approx(FROZEN, abs=0)


FROZEN = [0.6844765152749288, 0.0721188140161183, 0.6946221574202349]


def test_streams_differ_in_every_part_of_their_name():
    names = [
        (0, 0, Purpose.TOKEN, 0),
        (1, 0, Purpose.TOKEN, 0),
        (0, 1, Purpose.TOKEN, 0),
        (0, 0, Purpose.SPLIT, 0),
    ]
    values = [tuple(uniforms(*name, (4,)).tolist()) for name in [*names, (0, 0, Purpose.TOKEN, 1)]]
    assert len(set(values)) == 5


def test_a_longer_draw_begins_like_a_shorter_one():
    assert torch.equal(uniforms(0, 0, Purpose.TOKEN, 0, (9,))[:5], uniforms(0, 0, Purpose.TOKEN, 0, (5,)))


ROWS = [
    slice(None), slice(0, 5), slice(5, 10), slice(3, 4), slice(7, 7), slice(-3, None), slice(90, 200),
    slice(2, None, 7), slice(6, None, 7), slice(0, None, 30), slice(9, None, -4),
]  # fmt: skip


@pytest.mark.parametrize("shape", [(96,), (96, 1), (96, 3), (96, 4, 9), (96, 8, 128)])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_of_a_draw_are_those_of_the_whole_bitwise(shape, rows):
    whole, part = (uniforms(5, 6, Purpose.TRAIN_TIME, 7, shape, *given) for given in ((), (rows,)))
    expected = whole.numpy()[rows]
    assert part.shape == expected.shape
    assert part.numpy().tobytes() == expected.tobytes()
    drawn = normals(5, 6, Purpose.TRAIN_TIME, 7, shape, rows)
    assert drawn.numpy().tobytes() == normals(5, 6, Purpose.TRAIN_TIME, 7, shape).numpy()[rows].tobytes()


def test_only_asked_rows_are_drawn():
    """A whole draw of this shape would take 512 TiB."""
    assert uniforms(0, 0, Purpose.TOKEN, 0, (2**26, 2**20), slice(2**25, 2**25 + 2)).shape == (2, 2**20)
    assert uniforms(0, 0, Purpose.TOKEN, 0, (2**26, 2**20), slice(5, None, 2**25)).shape == (2, 2**20)


def test_moments():
    uniform = uniforms(0, 0, Purpose.TOKEN, 0, (100_000,))
    assert float(uniform.min()) >= 0.0
    assert float(uniform.max()) < 1.0
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.005)
    normal = normals(0, 0, Purpose.FLOW_NOISE, 0, (100_000,))
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(normal.std()) == pytest.approx(1.0, abs=0.01)


def test_permutation_is_one():
    assert sorted(permutation(0, 0, Purpose.TRAIN_STAGES, 0, 50).tolist()) == list(range(50))


def test_per_sample_streams_follow_the_index():
    both = per_sample_uniforms(4, torch.tensor([7, 9]), Purpose.TOKEN, 2, (3,))
    assert torch.equal(both[1], uniforms(4, 9, Purpose.TOKEN, 2, (3,)))


def test_negative_seed_is_refused():
    with pytest.raises(UserError, match="seed is -1"):
        uniforms(-1, 0, Purpose.TOKEN, 0, (1,))
