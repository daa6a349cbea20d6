"""JSON files that are read in one place: what is there must have the form that the reader names, to the last field.

A form is a type: a `TypedDict` (fields it does not name are let through), a dataclass (they are refused), `list[…]`,
`dict[str, …]`, `… | None`, a `Literal`, `bool`, `int`, `float`, `str`; `Annotated[int, Range(…)]` has bounds as well.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from nvg.bounds import Range
from nvg.errors import UserError

Form = TypeVar("Form")
_LARGEST = 1 << 63
Count = Annotated[int, Range(0, float(1 << 48))]
_NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", dict: "an object"}


def read_json(path: Path, form: type[Form], what: str, advice: str) -> Form:
    """A JSON file of a form.

    Args:
        form: see above.
        what: the file is expected to be, for messages.
        advice: what to do about a file that is not that.

    Raises:
        UserError: it is missing, cannot be read, or has another form; names the file and the field.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: found no such file, expected {what}; {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected {what}; {advice}") from error
    return parse_json(data, form, str(path), what, advice)


def parse_json(data: bytes | str, form: type[Form], name: str, what: str, advice: str) -> Form:
    """JSON of a form out of memory; `name` says where it is from. See `read_json`."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON ({error}), expected {what}; {advice}") from error
    check_form(value, form, name, advice)
    return value


def check_form(value: Any, form: Any, name: str, advice: str) -> None:
    """Make sure that a JSON value has a form.

    Raises:
        UserError: "`name`: field is X; expected Y; advice".
    """
    if problem := _problem(value, form, ""):
        raise UserError(f"{name}: {problem}; {advice}")


def make(form: type[Form], values: Any, name: str, advice: str) -> Form:
    """A dataclass of a JSON object, whose own checks name the file too; see `check_form`."""
    check_form(values, form, name, advice)
    try:
        return form(**values)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _problem(value: Any, form: Any, key: str) -> str:
    """What is wrong with a value, empty where nothing is."""
    origin, arguments = get_origin(form), get_args(form)
    if form in (Any, object):
        return ""
    if origin is NotRequired:
        return _problem(value, arguments[0], key)
    if origin is Annotated:
        allowed = arguments[1]
        return _problem(value, arguments[0], key) or ("" if value in allowed else _other(value, str(allowed), key))
    if origin in (Union, UnionType):
        rest = [choice for choice in arguments if choice is not NoneType]
        return "" if value is None else _problem(value, rest[0], key)
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in arguments)
        return "" if fits else _other(value, "one of " + ", ".join(map(repr, arguments)), key)
    if is_typeddict(form) or is_dataclass(form):
        return _record_problem(value, form, key)
    if (origin or form) is list:
        if not isinstance(value, list):
            return _other(value, "a list", key)
        of = arguments[0] if arguments else Any
        return next(filter(None, (_problem(item, of, f"{key}[{place}]") for place, item in enumerate(value))), "")
    if (origin or form) is dict:
        if not isinstance(value, dict):
            return _other(value, "an object", key)
        of = arguments[1] if arguments else Any
        return next(filter(None, (_problem(item, of, _below(key, name)) for name, item in value.items())), "")
    return "" if _fits(value, form) else _other(value, _NAMES[form], key)


def _record_problem(value: Any, form: Any, key: str) -> str:
    if not isinstance(value, dict):
        return _other(value, "an object", key)
    hints, needed = _fields_of(form)
    for name in hints:
        if name in value and (problem := _problem(value[name], hints[name], _below(key, name))):
            return problem
    if missing := [name for name in needed if name not in value]:
        return f"key {_below(key, missing[0])} is missing"
    if is_dataclass(form) and (unknown := sorted(value.keys() - hints.keys())):
        return f"{_below(key, unknown[0])} is an unknown key; expected {', '.join(hints)}"
    return ""


@cache
def _fields_of(form: Any) -> tuple[dict[str, Any], list[str]]:
    """Types of the fields of a record, and those that must be there."""
    hints = get_type_hints(form, include_extras=True)
    if not is_dataclass(form):
        return hints, [name for name, hint in hints.items() if get_origin(hint) is not NotRequired]
    needed = [item.name for item in fields(form) if item.default is MISSING and item.default_factory is MISSING]
    return {item.name: hints[item.name] for item in fields(form)}, needed


def _fits(value: Any, form: type) -> bool:
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if form is float:
        return (isinstance(value, float) and abs(value) < 1e300) or _fits(value, int)
    return isinstance(value, form)


def _other(value: Any, expected: str, key: str) -> str:
    found = repr(value)
    shown = found if len(found) <= 60 else f"{found[:50]}…"
    return f"{key.removeprefix('.') or 'the whole'} is {shown}; expected {expected}"


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON; expected finite numbers")
