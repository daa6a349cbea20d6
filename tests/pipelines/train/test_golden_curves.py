"""The first thirty losses are those that were written down; what moves them belongs under Numerics in CHANGELOG.md."""

import json

import pytest
from golden_training import GOLDEN, KINDS, NUM_STEPS, NUMBERS, curve

TOLERANCE = {"loss": 1e-4, "grad_norm": 1e-3}  # other processors add up in another order, and steps carry it on


@pytest.mark.parametrize("kind", KINDS)
def test_thirty_steps_give_the_golden_numbers(kind, tmp_path):
    golden = json.loads((GOLDEN / f"{kind}.json").read_text())
    found = curve(kind, tmp_path)
    assert set(golden) == set(NUMBERS)
    assert len(found["loss"]) == NUM_STEPS
    for name, tolerance in TOLERANCE.items():
        assert found[name] == pytest.approx(golden[name], rel=tolerance), name
    assert found["accuracy"] == pytest.approx(golden["accuracy"], abs=0.02)  # a draw may tip over
    assert sum(found["loss"][-5:]) < sum(found["loss"][:5])
