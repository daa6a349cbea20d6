"""Declared ranges and choices: one check, one form of refusal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
from omegaconf import OmegaConf

from nvg.bounds import at_least, between, check_fields, positive, refuse
from nvg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = positive(10)
    seed: int = at_least(0, 0)
    share: float = between(0, 1, 0.5)
    every: int | None = positive(None)
    kind: Literal["plain", "deepspeed"] = "plain"
    maybe: Literal["left", "right"] | None = None
    betas: list[float] = between(0, 0.999, [0.9, 0.95])
    factors: dict[str, float] = positive({})
    free: float = 1.0
    flag: bool = False
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self, "part")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", 0, r"part\.steps is 0; expected a number above 0; change part\.steps"),
        ("seed", -1, r"part\.seed is -1; expected 0 or more"),
        ("share", 1.5, r"part\.share is 1\.5; expected a number from 0 to 1"),
        ("every", 0, r"part\.every is 0; expected a number above 0"),
        ("kind", "zero", r"part\.kind is 'zero'; expected one of plain, deepspeed"),
        ("maybe", "up", r"part\.maybe is 'up'; expected one of left, right, None"),
        ("betas", [0.9, 1.0], r"part\.betas is \[0\.9, 1\.0\]"),
        ("factors", {"a": 0.0}, r"part\.factors is \{'a': 0\.0\}"),
        ("free", math.inf, r"part\.free is inf; expected a finite number"),
        ("free", math.nan, r"part\.free is nan; expected a finite number"),
        ("share", math.nan, r"part\.share is nan"),
        ("steps", math.inf, r"part\.steps is inf; expected a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_value_and_what_would(key, value, expected):
    with pytest.raises(UserError, match=expected):
        Settings(**{key: value})


def test_what_fits_passes_and_defaults_are_not_shared():
    settings = Settings(steps=1, share=0, every=3, maybe="left", factors={"a": 2.0}, free=-1e300, flag=True)
    assert settings.every == 3
    assert Settings().betas is not Settings().betas


def test_declared_fields_are_ordinary_ones_for_omegaconf():
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.create({"every": 4})))
    assert merged == Settings(every=4)


def test_refusal_has_one_form():
    assert str(refuse("a.b", "x", "a number", "remove it")) == "a.b is 'x'; expected a number; remove it"
