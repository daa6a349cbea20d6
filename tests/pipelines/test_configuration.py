"""Configs: merge order, nesting, and one clear message for each kind of mistake."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest

from nvg.errors import UserError
from pipelines import configuration
from pipelines.configuration import ConfigError, dump_config, find_config, load_config, read_keys


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 2
    widths: list[int] = field(default_factory=lambda: [1, 2])
    note: str | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    learning_rate: float = 1e-3
    shuffle: bool = True
    policy: Literal["center", "shift"] = "center"
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    table: dict[str, float] = field(default_factory=dict)
    many: list[Inner] = field(default_factory=list)


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_then_file_then_command_line(tmp_path):
    path = write(tmp_path, "name: x\nlearning_rate: 2e-3\ninner:\n  depth: 3\n  widths: [4]\n")
    config = load_config(Outer, path, ["inner.depth=5", "other.note=here", "table.a=1e-2", "many=[{depth: 7}]"])
    assert config == Outer(
        name="x",
        learning_rate=2e-3,
        inner=Inner(depth=5, widths=[4]),
        other=Inner(note="here"),
        table={"a": 0.01},
        many=[Inner(depth=7)],
    )
    assert type(config.inner.widths) is list
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.inner.depth = 1  # type: ignore[misc]


def test_override_can_set_an_optional_back_to_null(tmp_path):
    path = write(tmp_path, "name: x\nother: {depth: 3}\ninner: {note: a}\n")
    config = load_config(Outer, path, ["other=null", "inner.note=null"])
    assert config.other is None
    assert config.inner.note is None


def test_dictionaries_are_settings_too_and_the_later_wins(tmp_path):
    path = write(tmp_path, "name: x\nlearning_rate: 2e-3\ninner: {depth: 3, note: a}\n")
    config = load_config(Outer, path, [{"inner": {"depth": 5, "widths": [9]}}, "inner.depth=6", {"name": "1e3"}])
    assert config == Outer(name="1e3", learning_rate=2e-3, inner=Inner(depth=6, widths=[9], note="a"))
    with pytest.raises(ConfigError, match=r"the command line: inner\.depth is 'deep'"):
        load_config(Outer, path, [{"inner": {"depth": "deep"}}])


@pytest.mark.parametrize("text", ["12", "null", "[1, 2]", "a: b #c", 'we"ird\\', "${absent}", "\\${absent}", "a=b"])
def test_values_of_dictionaries_are_taken_as_they_are(text):
    assert load_config(Outer, None, [{"name": text}]).name == text


def test_dump_reads_back_to_an_equal_config(tmp_path):
    config = load_config(Outer, None, ["name=x", "other.depth=9", "table.k=0.5", "many=[{depth: 7}]"])
    assert load_config(Outer, write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "inner.dept=3",
            ["inner.dept is an unknown key (value 3)", "did you mean depth?", "one of depth, widths, note"],
        ),
        ("learning_rat=3", ["learning_rat is", "did you mean learning_rate?"]),
        ("inner.depth=deep", ["inner.depth is 'deep'; expected a whole number; change inner.depth"]),
        ("inner.depth=1.5", ["inner.depth is 1.5; expected a whole number"]),
        ("learning_rate=fast", ["learning_rate is 'fast'; expected a number"]),
        ("shuffle=perhaps", ["shuffle is 'perhaps'; expected true or false"]),
        ("policy=corner", ["policy is 'corner'; expected one of center, shift; change policy"]),
        ("inner=5", ["inner is 5; expected a section with depth, widths, note"]),
        ("inner=null", ["inner is null; expected a section with depth"]),
        ("inner=[1]", ["inner is [1]; expected a section with depth"]),
        ("inner.widths=5", ["inner.widths is 5; expected a list, each a whole number"]),
        ("inner.widths=[wide]", ["inner.widths[0] is 'wide'; expected a whole number"]),
        ("table.k=x", ["table.k is 'x'; expected a number"]),
        ("many=[{dept: 1}]", ["dept is an unknown key", "one of depth, widths, note"]),
        ("inner.widths=5", ["write [5]"]),
        ("name=${absent}", ["name is '${absent}'; expected ${...} to name another key", "'absent' not found"]),
        ("inner.depth=0", ["depth is 0", "at least 1"]),
        ("just-a-word", ["just-a-word", "key=value"]),
        ("=3", ["key=value"]),
    ],
)
def test_mistakes_are_explained(override, parts):
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, None, ["name=x", override])
    for part in parts:
        assert part in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_missing_value_is_named():
    with pytest.raises(ConfigError, match=r"defaults of Outer: name is not set; expected a text; set name"):
        load_config(Outer, None)


@pytest.mark.parametrize("text", ["name: x\nname: y\n", "- 1\n", "name: [\n", "just words\n"])
def test_broken_yaml_names_the_file(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(Outer, path)


def test_message_names_the_file_of_the_mistake(tmp_path):
    path = write(tmp_path, "name: x\ninner: {depht: 2}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: inner\.depht is an unknown key .*did you mean depth"):
        load_config(Outer, path)


def test_a_file_extends_one_beside_it_wherever_it_is_read_from(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "base.yaml").write_text("name: x\n")
    (tmp_path / "here" / "mine.yaml").write_text("extends: base.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert read_keys("here/mine.yaml").keys() == {"name"}
    (tmp_path / "empty.yaml").write_text("extends:\n")
    with pytest.raises(ConfigError, match=r"'extends' is .*; it must name another file"):
        read_keys("empty.yaml")


def test_a_file_extends_another_and_changes_what_it_says(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\ninner: {depth: 3, note: b}\n")
    path = write(tmp_path, f"extends: {tmp_path / 'base.yaml'}\ninner: {{depth: 5}}\n")
    config = load_config(Outer, path, ["name=mine"])
    assert (config.name, config.inner.depth, config.inner.note) == ("mine", 5, "b")


@pytest.mark.parametrize("base", ["{own}", "[1]", "no-such-file.yaml"])
def test_what_a_file_cannot_extend_is_named(tmp_path, base):
    path = write(tmp_path, "name: x\n")
    path.write_text(f"name: x\nextends: {base.format(own=path)}\n")
    with pytest.raises(ConfigError, match=r"must name another file|no-such-file\.yaml"):
        load_config(Outer, path)


def test_config_is_found_by_path_then_in_the_project(tmp_path, monkeypatch):
    (tmp_path / "configs" / "demo").mkdir(parents=True)
    shipped = tmp_path / "configs" / "demo" / "digits.yaml"
    shipped.write_text("name: shipped\n")
    monkeypatch.setattr(configuration, "CONFIG_FOLDER", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert find_config("demo/digits.yaml") == shipped
    assert find_config("configs/demo/digits.yaml").read_text() == "name: shipped\n"
    own = write(tmp_path, "name: own\n")
    assert find_config(own) == own
    with pytest.raises(ConfigError, match=r"digit\.yaml.*Did you mean 'demo/digits\.yaml'"):
        find_config("demo/digit.yaml")
