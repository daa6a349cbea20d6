"""Stages of an actor run side by side and give what plain calls give."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipelines.precompute.unit import BATCHES_AHEAD, in_stages


def test_order_and_results_are_those_of_plain_calls():
    assert list(in_stages(range(50), [lambda x: x + 1, lambda x: 2 * x, str])) == [str(2 * (x + 1)) for x in range(50)]
    assert list(in_stages([], [str])) == []


def test_stages_run_at_the_same_time():
    """The first stage of item 1 waits for the second stage of item 0 to have begun, and the other way round."""
    met = threading.Barrier(2, timeout=30)

    def first(item: int) -> int:
        if item == 1:
            met.wait()
        return item

    def second(item: int) -> int:
        if item == 0:
            met.wait()
        return item

    assert list(in_stages(range(3), [first, second])) == [0, 1, 2]


def test_no_more_than_a_few_items_are_on_their_way():
    taken: list[int] = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    stages = in_stages(items(), [lambda x: x, lambda x: x])
    for number, _ in enumerate(stages, start=1):
        assert len(taken) <= number + 2 * BATCHES_AHEAD


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_first_error_ends_it_and_leaves_no_thread(stage):
    before = threading.active_count()
    done: list[int] = []

    def fails(item: int) -> int:
        if item == 5:
            raise OSError("disk")
        return item

    stages: list[Callable[[int], int]] = [int, int, lambda item: done.append(item) or item]
    stages.insert(stage, fails)
    with pytest.raises(OSError, match="disk"):
        list(in_stages(range(100), stages))
    assert threading.active_count() == before
    assert 5 not in done
