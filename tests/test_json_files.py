"""The form of a JSON file: what fits passes as it is, what does not is named with its field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from nvg.bounds import Range, at_least, check_fields
from nvg.errors import UserError
from nvg.json_files import Count, check_form, make, read_json


class Inner(TypedDict):
    size: Count
    kind: Literal["a", 1]


class Outer(TypedDict):
    inner: list[Inner]
    share: Annotated[float, Range(0, 1)] | None
    names: dict[str, str]
    flag: NotRequired[bool]
    rest: NotRequired[Any]


@dataclass
class Settings:
    depth: int = at_least(1)
    name: str = "x"

    def __post_init__(self) -> None:
        check_fields(self)


SOUND: dict[str, Any] = {"inner": [{"size": 1, "kind": "a"}], "share": 0.5, "names": {"a": "b"}, "more": [1]}


@pytest.mark.parametrize(
    "changes", [{}, {"share": None}, {"share": 1}, {"flag": True}, {"inner": []}, {"rest": [None]}]
)
def test_what_fits_passes(changes, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SOUND | changes))
    assert read_json(tmp_path / "a.json", Outer, "a card", "write it") == SOUND | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": None}, "inner is None; expected a list"),
        (
            {"inner": [{"size": 1, "kind": "a"}, {"size": -1, "kind": "a"}]},
            r"inner\[1\].size is -1; expected a number",
        ),
        ({"inner": [{"size": True, "kind": "a"}]}, r"inner\[0\].size is True; expected a whole number"),
        ({"inner": [{"size": 2**80, "kind": "a"}]}, r"inner\[0\].size is \d+; expected a whole number"),
        ({"inner": [{"kind": "a"}]}, r"key inner\[0\].size is missing"),
        ({"inner": [{"size": 1, "kind": True}]}, r"inner\[0\].kind is True; expected one of 'a', 1"),
        ({"share": 1.5}, "share is 1.5; expected a number from 0 to 1"),
        ({"share": math.inf}, "share is inf; expected a finite number"),
        ({"share": "1"}, "share is '1'; expected a finite number"),
        ({"names": {"a": 5}}, r"names.a is 5; expected a text"),
        ({"flag": 1}, "flag is 1; expected true or false"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError, match=f"^card: {message}.*; write it$"):
        check_form(SOUND | changes, Outer, "card", "write it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "not valid JSON .NaN is no number of JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", r"the whole is \[\]; expected an object"),
    ],
)
def test_what_is_no_json_is_refused(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", Outer, "a card", "write it")


def test_a_dataclass_knows_its_own_range_and_keys():
    assert make(Settings, {"depth": 2}, "file", "write it") == Settings(2)
    for values, message in (
        ({"depth": 0}, "file: depth is 0; expected 1 or more"),
        ({"depth": 2, "deep": 1}, "file: deep is an unknown key; expected depth, name; write it"),
        ({}, "file: key depth is missing"),
    ):
        with pytest.raises(UserError, match=message):
            make(Settings, values, "file", "write it")
