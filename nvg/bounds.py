"""Settings that know their own range: declared beside the field, checked in one way, refused in one form."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nvg.errors import UserError

_KEY = "range"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high.

    Attributes:
        low, high: both allowed; infinity is never a setting.
        above: low itself is not allowed (where there is no high).
    """

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number from {self.low:g} to {self.high:g}"
        return f"a number above {self.low:g}" if self.above else f"{self.low:g} or more"


def positive(default: Any = MISSING) -> Any:
    """A dataclass field that must be above 0 (or null, or 0 < each item of a list or dictionary)."""
    return _ranged(default, Range(0, above=True))


def at_least(low: float, default: Any = MISSING) -> Any:
    """A dataclass field that must be `low` or more."""
    return _ranged(default, Range(low))


def between(low: float, high: float, default: Any = MISSING) -> Any:
    """A dataclass field from `low` to `high`, both included."""
    return _ranged(default, Range(low, high))


def check_fields(config: Any, section: str = "") -> None:
    """Refuse a value out of its range, no choice of its `Literal`, or a float that is not finite.

    Call it first in `__post_init__`. Checks between several fields stand beside it and raise `refuse(…)`.

    Args:
        config: a dataclass instance; None is always allowed where the type allows it, items of lists and values of
            dictionaries are checked one by one.
        section: what stands before the field's name in the key, such as "optimizer".

    Raises:
        UserError: "`section.name` is X; expected Y; change `section.name`".
    """
    hints = _hints(type(config))
    for item in fields(config):
        key = f"{section}.{item.name}" if section else item.name
        value = getattr(config, item.name)
        choices = _choices(hints[item.name])
        if choices and value not in choices:
            raise refuse(key, value, "one of " + ", ".join(map(str, choices)))
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        allowed: Range = item.metadata.get(_KEY, Range(-math.inf))
        for number in values:
            if isinstance(number, (int, float)) and not isinstance(number, bool) and number not in allowed:
                raise refuse(key, value, str(allowed) if _KEY in item.metadata else "a finite number")


def refuse(key: str, found: Any, expected: str, advice: str = "") -> UserError:
    """The one form in which a setting is refused.

    Args:
        key: its full name, such as "optimizer.lr".
        found: its value.
        expected: what would fit, in words.
        advice: what to do where changing the key is not it.
    """
    return UserError(f"{key} is {found!r}; expected {expected}; {advice or f'change {key}'}")


def _ranged(default: Any, allowed: Range) -> Any:
    metadata = {_KEY: allowed}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _choices(hint: Any) -> tuple[Any, ...]:
    """Values of a `Literal`, also inside `| None`; empty for any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    inner = [choices for part in get_args(hint) if (choices := _choices(part))] if type(None) in get_args(hint) else []
    return (*inner[0], None) if inner else ()
