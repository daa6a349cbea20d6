"""What is written arrives: texts as typed, numbers in one form, at every key of every schema."""

from __future__ import annotations

import json
import math
import os
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from schemas import SCHEMAS, every_key, schema_of
from typer.testing import CliRunner

from nvg.errors import UserError
from pipelines.cli.main import app
from pipelines.configuration import ConfigError, dump_config, load_config
from pipelines.written import Typed, typed_section

BENT_BY_YAML = [
    *("2024_11_25", "2024-11-25", "007", "010", "1e3", "695e0514", "0x1F", "0b1", "0o17", "1_000", "1:30", "190:20:30"),
    *("yes", "no", "on", "off", "y", "true", "False", "null", "Null", "~x", ".inf", "-.INF", ".nan", "inf", "=", "<<"),
    *(
        "/d/data #2",
        "runs/try #3",
        "out: a",
        "a: b",
        "[a]",
        "[old] x",
        "x [old]",
        "{a: 1}",
        "{a",
        "- a",
        "? a",
        "&a",
        "*a",
    ),
    *(
        "!a",
        "|",
        ">",
        "%",
        "@a",
        "`a`",
        "a, b",
        "a=b",
        "'a",
        'a"',
        "'a' b",
        '"a" # b',
        " a ",
        "",
        "\t",
        "a\nb",
        "\\",
        "\\n",
    ),
    *("${", "a${b", "$a", "😀 smile", "datensätze", "猫", "\udce9", "#", "a#b", "...", "---", "1" * 5000),
]


@dataclass(frozen=True, kw_only=True)
class Part:
    note: str | None = None
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = "x"
    maybe: str | None = "x"
    choice: Literal["one", "no", "1"] = "one"
    names: list[str] = field(default_factory=list)
    table: dict[str, str] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    seed: int = 0
    rate: float = 0.0
    every: int | None = None
    flag: bool = False
    part: Part = field(default_factory=Part)
    parts: list[Part] = field(default_factory=list)


def is_as_typed(text: str) -> bool:
    """Whether a text has no meaning of its own: no reference, no quotes around it, no home folder, no missing value."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return not (quoted or re.search(r"\$\{.*\}", text, re.DOTALL) or text.startswith("~") or text == "???")


def read(schema: type, key: str, text: str) -> Any:
    """The value of one typed setting, references followed."""
    value: Any = Typed(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    found = OmegaConf.to_container(OmegaConf.create(typed_section(schema, value, "", schema)), resolve=True)
    for name in key.split("."):
        found = found[name]  # pyright: ignore[reportCallIssue, reportIndexIssue, reportArgumentType, reportOptionalSubscript]
    return found


TEXT_KEYS = [(name, key, kind) for name, key, kind in every_key() if kind in (str, str | None)]
NUMBER_KEYS = [(name, key, kind) for name, key, kind in every_key() if kind in (int, float, int | None, float | None)]
LIST_KEYS = [(name, key, kind) for name, key, kind in every_key() if typing.get_origin(kind) is list]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    place=st.sampled_from(TEXT_KEYS),
    text=st.one_of(st.sampled_from(BENT_BY_YAML), st.text(), st.from_regex(r"[-+.~0-9_:eExX]+")),
)
def test_any_text_arrives_as_typed_at_every_text_key(place, text):
    name, key, kind = place
    assume(is_as_typed(text))
    expected = None if text == "null" and kind is not str else text
    assert read(schema_of(name)[0], key, text) == expected


@pytest.mark.parametrize("text", [text for text in BENT_BY_YAML if is_as_typed(text)])
def test_a_text_goes_through_the_whole_reading_and_through_a_file(text, tmp_path):
    config = load_config(Whole, None, [f"name={text}", f"part.note={text}", f"table.k={text}"])
    assert (config.name, config.table) == (text, {"k": text})
    assert config.part.note == (None if text == "null" else text)
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(Whole, tmp_path / "again.yaml") == config


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text())
@example("null")
@example("a\nb")
def test_quotes_around_the_whole_say_the_text_between_them(text):
    assume("${" not in text)
    assert load_config(Whole, None, [f"maybe={json.dumps(text)}"]).maybe == text
    single = text.replace("'", "''")
    assert load_config(Whole, None, [f"maybe='{single}'"]).maybe == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(texts=st.lists(st.one_of(st.sampled_from(BENT_BY_YAML), st.text()), max_size=5))
def test_items_of_a_list_arrive_as_typed(texts):
    assume(all(is_as_typed(text) for text in texts))
    quoted = ", ".join(json.dumps(text) for text in texts)
    assert load_config(Whole, None, [f"names=[{quoted}]"]).names == texts
    plain = [text for text in texts if text.strip() == text and text and "," not in text and text[0] not in "'\""]
    assert load_config(Whole, None, [f"names=[{', '.join(plain)}]"]).names == plain


def test_home_folder_null_and_references_keep_their_meaning(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(Whole, None, ["name=~/x y", "maybe=~", "names=[~/a, a~, '~/b']", "part.note=${name}/z"])
    assert (config.name, config.maybe, config.names) == ("/home/me/x y", "/home/me", ["/home/me/a", "a~", "~/b"])
    assert config.part.note == "/home/me/x y/z"
    assert load_config(Whole, None, ["maybe=null"]).maybe is None
    assert load_config(Whole, None, ["name=null", "choice=no"]).name == "null"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=010", "seed is 010; expected a whole number; write 10"),
        ("seed=08", "seed is '08'; expected a whole number; write 8"),
        ("seed=1_000", "seed is 1_000; expected a whole number; write 1000"),
        ("seed=0x1F", "seed is 0x1F; expected a whole number; write 31"),
        ("seed=1e3", "seed is 1e3; expected a whole number; write 1000"),
        ("seed=3.0", "seed is 3.0; expected a whole number; write 3"),
        ("seed=1.5", "seed is 1.5; expected a whole number; change seed"),
        ("seed=1:30", "seed is 1:30; expected a whole number; change seed"),
        ("seed=true", "seed is true; expected a whole number"),
        ("seed=~", "seed is ~; expected a whole number"),
        ("seed=", "seed is ''; expected a whole number"),
        ("seed=٣", "seed is '٣'; expected a whole number; write 3"),
        ("seed=9223372036854775808", "expected a whole number up to 9223372036854775807"),
        ("seeds=[3, 010]", "seeds[1] is 010; expected a whole number; write 10"),
        ("seeds=3", "seeds is 3; expected a list, each a whole number; write [3]"),
        ("seeds=3,7", "write [3,7]"),
        ("every=None", "every is 'None'; expected a whole number, or null"),
        ("rate=inf", "rate is 'inf'; expected a finite number"),
        ("rate=1e999", "rate is 1e999; expected a finite number"),
        ("rate=nan", "rate is 'nan'; expected a finite number"),
        ("rate=0_1", "rate is 0_1; expected a number; write 1"),
        ("rate=1:30.5", "rate is 1:30.5; expected a number"),
        ("flag=yes", "flag is yes; expected true or false; write true or false"),
        ("flag=1", "flag is 1; expected true or false; write true or false"),
        ("name=???", "name is '???'; expected a text; OmegaConf takes ??? for a value that is not set; change name"),
        ("names=[a, ???]", "names[1] is '???'"),
        ("seeds=[3", "seeds is '[3'; expected a list, each a whole number; change seeds"),
        ("part=3", "part is 3; expected a section with note, number"),
        ("part={number: 010}", "part.number is 010; expected a whole number; write 10"),
        ("parts=[{number: 1}, {number: 0x2}]", "parts[1].number is 0x2; expected a whole number; write 2"),
        ("choice=yes", "choice is yes; expected one of one, no, 1"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_what_to_write(setting, message):
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, None, [setting])
    assert message in str(caught.value)


def test_a_text_that_omegaconf_would_leave_out_is_refused_of_code_too():
    with pytest.raises(ConfigError, match=r"name is '\?\?\?'"):
        load_config(Whole, None, [{"name": "???"}])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    place=st.sampled_from(NUMBER_KEYS),
    text=st.one_of(st.from_regex(r"[-+0-9._:xXoOeEinfa]{1,8}", fullmatch=True), st.sampled_from(BENT_BY_YAML)),
)
def test_every_number_is_the_one_that_stands_there_or_refused(place, text):
    name, key, _ = place
    try:
        found = read(schema_of(name)[0], key, text)
    except UserError:
        return
    if found is None:
        assert text == "null"
        return
    plain = re.fullmatch(r"[-+]?(0|[1-9]\d*)(\.\d*)?(e[-+]?\d+)?|[-+]?\.\d+(e[-+]?\d+)?", text.strip(), re.IGNORECASE)
    assert plain, text
    assert math.isfinite(found)
    assert found == float(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    place=st.sampled_from(NUMBER_KEYS),
    number=st.integers(-(2**63) + 1, 2**63 - 1),
    share=st.floats(allow_nan=False, allow_infinity=False),
)
def test_numbers_as_python_writes_them_arrive(place, number, share):
    name, key, kind = place
    value = number if kind in (int, int | None) else share
    assert read(schema_of(name)[0], key, repr(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2026_11_25", 'name is the number 20261125; put it in quotes: "2026_11_25"'),
        ("name: 007", 'name is the number 7; put it in quotes: "007"'),
        ("name: 1e3", "name is the number 1000.0; put it in quotes"),
        ("name: 1:30", "name is the number 90; put it in quotes"),
        ("name: no", 'name is the truth value false; put it in quotes: "no"'),
        ("name: .inf", "name is the number Infinity; put it in quotes"),
        ("name:", "name is null; put it in quotes"),
        ("part: {note: 12}", "part.note is the number 12; put it in quotes"),
        ("names: [a, 007]", "names[1] is the number 7; put it in quotes"),
        ("table: {k: on}", "table.k is the truth value true; put it in quotes"),
        ("seed: 010", "seed is 010; expected a whole number; write 10"),
        ("seed: 1:30", "seed is 1:30; expected a whole number"),
        ("seed: 1_000", "write 1000"),
        ("flag: on", "flag is on; expected true or false"),
        ("seeds: [010]", "seeds[0] is 010; expected a whole number; write 10"),
        ("? [a]\n: b", "cannot be read as YAML"),
        ("a: &x [*x]", "cannot be read as YAML"),
        ("names: &x [*x]", "cannot be read as YAML"),
        ("part: &x {note: *x}", "cannot be read as YAML"),
        ("names: " + "[" * 1000, "cannot be read as YAML"),
    ],
)
def test_what_yaml_bends_in_a_file_is_refused(text, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_says_what_it_says(tmp_path):
    file = tmp_path / "config.yaml"
    lines = [
        "\ufeffpart: &base {number: 3}",
        "name: '007'",
        "maybe: ~",
        "names: [2026-11-25, runs/a #b",
        "  , !!str 12]",
    ]
    lines += ["rate: 1e-3", "parts: [{<<: *base, note: a}]"]
    file.write_text("\n".join(lines), encoding="utf-8")
    config = load_config(Whole, file)
    assert (config.name, config.maybe, config.rate) == ("007", None, 1e-3)
    assert config.names == ["2026-11-25", "runs/a", "12"]
    assert config.parts == [Part(number=3, note="a")]


def test_a_mistake_is_said_to_be_of_its_own_source(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^the command line: rate is 'fast'"):
        load_config(Whole, file, ["rate=fast"])


@pytest.mark.parametrize("text", ["2024_11_25", "007", "1e3", "yes", "no", "695e0514", "/d/data #2", "out: a", "😀 x"])
def test_the_command_line_shows_what_was_typed(text):
    result = CliRunner().invoke(app, ["inspect", f"output={text}", f"source.path={text}", "--dry-run"])
    assert result.exit_code == 0, result.output
    shown = yaml.safe_load(result.output.split("# plan")[0])
    assert (shown["output"], shown["source"]["path"]) == (text, text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_default_is_read_back_from_its_file(name, tmp_path):
    schema, needed = schema_of(name)
    config = load_config(schema, None, needed)
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(schema, tmp_path / "config.yaml") == config


def test_the_home_folder_of_others_and_no_home_folder():
    assert load_config(Whole, None, ["name=~nobody-of-that-name/x"]).name == "~nobody-of-that-name/x"
    assert load_config(Whole, None, ["name=~root"]).name == os.path.expanduser("~root")
