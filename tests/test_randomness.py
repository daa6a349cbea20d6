import numpy as np
import pytest
import torch

from nvg.errors import UserError
from nvg.randomness import IndexOrder, Purpose, normals, per_sample_uniforms, permutation, picks, uniforms


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


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 1000, 4097])
def test_an_index_order_has_every_number_once(length):
    for seed, epoch in ((0, 0), (2**63 - 1, 7)):
        order = IndexOrder(seed, epoch, length)[np.arange(length)]
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(length))


def test_any_part_of_an_index_order_is_that_of_the_whole():
    whole = IndexOrder(3, 4, 5000)[np.arange(5000)]
    places = np.array([4999, 0, 17, 17, 2500])
    assert np.array_equal(IndexOrder(3, 4, 5000)[places], whole[places])
    assert not IndexOrder(3, 4, 5000)[np.arange(0)].size


def test_index_orders_differ_by_seed_and_epoch_and_look_random():
    size, places = 40_000, np.arange(40_000)
    orders = [IndexOrder(seed, epoch, size)[places] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(np.mean(a == b) < 1e-3 for a, b in ((orders[0], orders[1]), (orders[0], orders[2])))
    for order in orders:
        bound = 5 / np.sqrt(size)  # five standard deviations of what independent numbers have
        assert abs(np.corrcoef(places, order)[0, 1]) < bound
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < bound
        shares = np.histogram(order[: size // 10], bins=20, range=(0, size))[0]
        assert ((shares - 200) ** 2 / 200).sum() < 50  # chi-squared of 19 degrees: one in 10^4


def test_an_index_order_of_hundreds_of_millions_needs_no_array():
    places = np.arange(10**9 - 2000, 10**9)
    numbers = IndexOrder(0, 0, 10**9)[places]
    assert len(set(numbers.tolist())) == 2000
    assert 0 <= numbers.min() <= numbers.max() < 10**9


def test_bad_index_orders_are_refused():
    for seed, length, says in ((0, 0, "the length of an order is 0"), (-1, 5, "seed is -1")):
        with pytest.raises(UserError, match=says):
            IndexOrder(seed, 0, length)


def test_picks_depend_on_the_number_alone_and_take_every_choice():
    numbers = np.arange(3000)
    drawn = picks(5, 6, numbers, 3)
    assert np.array_equal(picks(5, 6, numbers[::-1], 3)[::-1], drawn)
    assert ((np.bincount(drawn) - 1000) ** 2 / 1000).sum() < 20
    assert not np.array_equal(picks(5, 7, numbers, 3), drawn)
