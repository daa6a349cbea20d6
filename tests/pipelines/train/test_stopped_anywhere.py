"""Stopped after any step, the same command again: the real objectives under every engine equal the straight run.

The step is drawn anew for each case from a seed that is fixed; what is not partitioned is compared bit for bit.
"""

from __future__ import annotations

import itertools
import json
import random

import pytest
from stopped_training import NUM_STEPS, PLAIN, Case, compare, compare_all

from nvg.errors import UserError
from nvg.training import TokenizerLossConfig
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.tokenizer import TokenizerRunConfig

KINDS = ("content", "structure", "tokenizer")
STAGES = ("0", "1", "2", "3")
MORE = [
    {"depth": 2},
    {"micro_batch": 2},
    {"depth": 2, "micro_batch": 2, "stages_per_image": 1},
]


def stops(*about: object, number: int = 1) -> tuple[int, ...]:
    """Steps after which a case is stopped, ascending."""
    return tuple(sorted(random.Random(repr(about)).sample(range(1, NUM_STEPS), number)))


def short(kind: str, engine: str, num_ranks: int) -> Case:
    # A step of a rank has few sequences here: with one stage an image the ranks do not draw the same stages.
    stages = 1 if kind == "content" else None
    return Case(kind=kind, engine=engine, stops=stops(kind, engine, num_ranks), stages_per_image=stages)


def matrix(num_ranks: int) -> list[Case]:
    engines = (PLAIN, *STAGES) if num_ranks == 1 else STAGES
    return [
        Case(kind=kind, engine=engine, stops=stops(kind, engine, num_ranks, more, number=3), **more)
        for kind, engine, more in itertools.product(KINDS, engines, MORE)
        if kind != "tokenizer" or "depth" not in more
    ]


def assert_equal(cases: list[Case], found: dict[str, float]) -> None:
    apart = {case.name: found[case.name] for case in cases if not found[case.name] <= case.tolerance}
    assert not apart, apart
    assert len(found) == len(cases)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [PLAIN, *STAGES])
@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_stopped_somewhere_equals_the_straight_run(kind, engine, tmp_path):
    case = short(kind, engine, 1)
    assert_equal([case], {case.name: compare(case, tmp_path)})


@pytest.mark.slow
@pytest.mark.cluster
def test_two_ranks_stopped_somewhere_equal_the_straight_run(two_ranks, tmp_path):
    cases = [short(kind, engine, 2) for kind, engine in itertools.product(KINDS, STAGES)]
    two_ranks.run(compare_all, cases, tmp_path)
    assert_equal(cases, json.loads((tmp_path / "found.json").read_text()))


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_three_times_with_other_depths_and_micro_batches(kind, two_ranks, tmp_path):
    one, two = ([case for case in matrix(num_ranks) if case.kind == kind] for num_ranks in (1, 2))
    assert_equal(one, {case.name: compare(case, tmp_path / "one" / case.name) for case in one})
    found: dict[str, float] = {}
    for case in two:
        two_ranks.run(compare_all, [case], tmp_path)
        found |= json.loads((tmp_path / "found.json").read_text())
    assert_equal(two, found)


def test_revival_of_a_codebook_that_no_rank_holds_whole_is_refused():
    with pytest.raises(UserError, match=r"loss.revive_after_images is 9 at deepspeed.zero_stage=3.*use 0, 1 or 2"):
        TokenizerRunConfig(loss=TokenizerLossConfig(revive_after_images=9), deepspeed=DeepSpeedConfig(zero_stage=3))
