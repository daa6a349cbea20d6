"""Bad values of every key of every schema, and damaged configuration files."""

from __future__ import annotations

import dataclasses
import math
import random
import types
import typing
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from robustness import Tally
from schemas import SCHEMAS, every_key, schema_of

from nvg.bounds import Range
from pipelines.configuration import dump_config, load_config
from pipelines.written import Typed, typed_section, walk_schema

NO_NUMBERS = ["deep", "", "[1]", "{a: 1}", "1_0", "010", "0x1F", "1:30", "٣", "1 0", "--1", "1e", "true", "9" * 400]
BY_TYPE: dict[Any, list[str]] = {
    int: [*NO_NUMBERS, "1.5", "1e3", "inf", "9223372036854775808", "-9223372036854775809"],
    float: [*NO_NUMBERS, "inf", "-.inf", "nan", "1e999", "0,5", "1.5.0"],
    bool: ["", "yes", "on", "no", "off", "1", "0", "y", "[true]", "{a: 1}", "truth"],
    list: ["5", "", "{a: 1}", "a, b", "[", "(1)"],
    dict: ["5", "", "[1]", "{a", "{a: 1, a: 2}", "{[1]: 2}", "a: 1"],
}
IN_FILES = ["007", "1e3", "2026_11_25", "1:30", "0x1F", "yes", "off", ".inf", "[1]", "{a: 1}"]  # where a text is wanted


def bad_values(kind: Any) -> list[str]:
    """Texts that are no value of a type, on the command line; for a text there are none."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        choices = bad_values(next(choice for choice in arguments if choice is not type(None)))
        return [text for text in choices if text != "null"]
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return ["no-such-choice", "", f"{arguments[0]}x", f"[{arguments[0]}]", "010", "1_0"]
    if dataclasses.is_dataclass(kind):
        return ["5", "", "text", "[1]", "{absent: 1}", "{", "null" if origin is kind else "5"]
    if origin is list:
        return [*BY_TYPE[list], *(f"[{text}]" for text in bad_values(arguments[0]) if text and "," not in text)]
    if origin is dict:
        return [*BY_TYPE[dict], *(f"{{a: {text}}}" for text in bad_values(arguments[1]) if text[:1] not in ("", "["))]
    return BY_TYPE.get(kind, [])


def is_choice(kind: Any) -> bool:
    """Whether it is a `Literal`, or one or null."""
    return any(typing.get_origin(choice) is typing.Literal for choice in (kind, *typing.get_args(kind)))


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def sections() -> dict[type, list[str]]:
    """Every dataclass that is a section of a schema, with the keys that it has itself."""
    found: dict[type, list[str]] = {}
    for name in SCHEMAS:
        schema = schema_of(name)[0]
        owners = [kind for _, kind in walk_schema(schema) if dataclasses.is_dataclass(kind)]
        for owner in [schema, *owners]:
            found[typing.cast(type, owner)] = [item.name for item in dataclasses.fields(typing.cast(Any, owner))]
    return found


def test_values_of_another_type_at_every_key_of_every_schema(tally: Tally):
    for name, key, kind in every_key():
        schema = schema_of(name)[0]
        for text in bad_values(kind):
            if is_choice(kind):
                continue  # refused by the section: see below
            run = partial(typed_section, schema, nested(key, Typed(text)), "", schema)
            tally.expect_refusal(
                "settings by type", f"{name}: {key}={text}", run, names=key.split(".")[-1] if text[:1] != "{" else ""
            )
        wrong = f"{key}_"
        run = partial(typed_section, schema, nested(wrong, Typed("1")), "", schema)
        tally.expect_refusal("unknown keys", f"{name}: {wrong}=1", run, names=f"{wrong} is an unknown key")
    tally.check("settings by type", at_least=10_000)
    tally.check("unknown keys", at_least=1_500)


def out_of_range(section: type) -> Iterator[tuple[str, str]]:
    for item in dataclasses.fields(section):
        allowed: Range | None = item.metadata.get("range")
        kind = typing.get_type_hints(section)[item.name]
        if allowed is None or typing.get_origin(kind) is dict:
            continue
        bracket = "[{}]" if typing.get_origin(kind) is list else "{}"
        yield item.name, bracket.format(f"{allowed.low - 1:.0f}")
        yield item.name, bracket.format(f"{allowed.low - 10**9:.0f}")
        if allowed.above:
            yield item.name, bracket.format(f"{allowed.low:.0f}")
        if allowed.high < 1e300:
            yield item.name, bracket.format(f"{allowed.high + 1:.0f}")


@pytest.mark.slow
def test_values_that_a_section_itself_refuses(tally: Tally):
    """Out of range, no choice, a reference to nothing."""
    for section in sections():
        needed = SCHEMAS[section.__name__][1] if section.__name__ in SCHEMAS else []
        hints = typing.get_type_hints(section)
        tries = list(out_of_range(section))
        for item in dataclasses.fields(section):
            kind = hints[item.name]
            if is_choice(kind):
                tries += [(item.name, text) for text in bad_values(kind)]
            if not dataclasses.is_dataclass(kind):  # whole schemas are long to read
                tries.append((item.name, "${absent}"))
        tries += [(dataclasses.fields(section)[0].name, text) for text in ("${a b}", "${.}", "${absent:1}")]
        for key, text in tries:
            run = partial(load_config, section, None, [*needed, f"{key}={text}"])
            tally.expect_refusal("settings by value", f"{section.__name__}: {key}={text}", run, names=key)
    tally.check("settings by value", at_least=900)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_every_float_is_finite(number: float, tally: Tally):
    """Also where Python code sets it; no setting of today gives infinity a meaning."""
    for section in sections():
        needed = SCHEMAS[section.__name__][1] if section.__name__ in SCHEMAS else []
        for key, kind in typing.get_type_hints(section).items():
            values = {float: number, float | None: number, list[float]: [1.0, number], dict[str, float]: {"a": number}}
            if kind in values:
                run = partial(load_config, section, None, [*needed, {key: values[kind]}])
                tally.expect_refusal("floats", f"{section.__name__}: {key}={number}", run, names=key)
    tally.check("floats", at_least=50)


def test_texts_in_a_file_that_yaml_bends(tally: Tally, tmp_path):
    file = tmp_path / "config.yaml"
    for name, key, kind in every_key():
        if kind in (str, str | None):
            for text in IN_FILES[:: 1 if name in ("SampleConfig", "PrecomputeConfig") else 3]:
                file.write_text(
                    "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split(".")))[:-1] + f" {text}\n"
                )
                run = partial(load_config, schema_of(name)[0], file)
                tally.expect_refusal("texts in files", f"{name}: {key}: {text}", run, names=f"{file}: {key} is ")
    tally.check("texts in files", at_least=1_000)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """A file with a few bytes changed, cut out, doubled, or put in."""
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(content) + 1)
        length = generator.choice([1, 1, 2, 8, 40])
        piece = generator.choice(
            [
                b"",
                generator.randbytes(length),
                content[place : place + length] * 2,
                b":",
                b"\n  ",
                b"[",
                b"&a ",
                b"*a",
                b"\t",
                b"'",
                b"!!int ",
            ]
        )
        content = content[:place] + piece + content[place + length :]
    return content


@pytest.mark.parametrize("num_files", [300, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_damaged_configuration_files(num_files: int, tally: Tally, tmp_path):
    generator = random.Random(0)
    names = ["SampleConfig", "PrecomputeConfig", "ReportConfig", "InspectConfig"]
    contents = {name: dump_config(load_config(*_of(name))).encode() for name in names}
    file = tmp_path / "config.yaml"
    for number in range(num_files):
        name = names[number % len(names)]
        file.write_bytes(damaged(contents[name], generator))
        run = partial(load_config, schema_of(name)[0], file)
        tally.expect_refusal("damaged configurations", f"{name} {number}", run, tolerated="still means something")
    tally.check("damaged configurations", at_least=num_files)


def _of(name: str) -> tuple[type, None, list[str]]:
    schema, needed = schema_of(name)
    return schema, None, needed


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_key_through_the_whole_reading(tally: Tally):
    for name, key, kind in every_key():
        schema, needed = schema_of(name)
        for text in ["${absent}", *bad_values(kind)]:
            run = partial(load_config, schema, None, [*needed, f"{key}={text}"])
            tally.expect_refusal("whole schemas", f"{name}: {key}={text}", run, names="the command line: ")
    tally.check("whole schemas", at_least=15_000)
