"""Typed configuration: defaults of a dataclass, then a YAML file, then `key=value` from the command line.

The merge is strict. Whatever does not fit stops the run with the key, the value found and what is allowed. A YAML file
may begin with `extends: other.yaml` and then says only what it changes.

The one way in which a setting is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from nvg.errors import UserError

T = TypeVar("T")

EXTENDS = "extends"
CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs"  # beside the packages: clone and wheel alike


class ConfigError(UserError):
    """A configuration key, type or value is wrong."""


def find_config(name: str | Path) -> Path:
    """Find a configuration file.

    Args:
        name: A path of the caller's, or a name below the project's `configs/` such as "demo/digits.yaml".

    Returns:
        Path of an existing file. The caller's own file wins over one of `configs/`.

    Raises:
        ConfigError: If there is neither; names the nearest file of `configs/`.
    """
    own = Path(name).expanduser()
    below_configs = str(own).removeprefix("configs/")
    for candidate in (own, CONFIG_FOLDER / below_configs):
        if candidate.is_file():
            return candidate
    known = sorted(str(path.relative_to(CONFIG_FOLDER)) for path in CONFIG_FOLDER.rglob("*.yaml"))
    raise ConfigError(
        f"There is no configuration file {str(name)!r}, neither at that path nor in the project's configs/."
        f"{_nearest(below_configs, known)} "
        f"Configurations here: {', '.join(known) or 'none'}."
    )


def load_config(
    schema: type[T],
    file: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    sections: Mapping[str, str | Path] | None = None,
) -> T:
    """Build a config from the schema's defaults, a file, files of single sections and overrides, in that order.

    Args:
        schema: Dataclass that describes the config; may nest dataclasses, lists and dicts. One with a class method
            `read_as` says itself by which schema given values are read. A table `UNREAD` names sections, with their
            schemas, that a file may hold for another command: they must fit, and are left out.
        file: YAML file (also a name below `configs/`), or None for the defaults alone.
        overrides: Texts "key=value" with dotted keys; the value is read as YAML ("[1, 2]", "null", "1e-3").
        sections: Key of a section to the YAML file that fills it, e.g. {"sampling": "sampling/paper.yaml"}.

    Returns:
        An instance of `schema`, its `__post_init__` checks passed.

    Raises:
        ConfigError: On an unknown key, a wrong type, a missing or an impossible value.
    """
    from_file, paths = _read_files(file, sections or {})
    from_command_line = _parse_overrides(overrides)
    origin = (
        " and ".join([*map(str, paths), *(["the command line"] if overrides else [])])
        or f"the defaults of {schema.__name__}"
    )
    try:
        values = typing.cast(DictConfig, OmegaConf.merge(from_file, from_command_line))
        if hasattr(schema, "read_as"):
            schema = typing.cast(Any, schema).read_as(values)
        _leave_out(schema, values, origin)
        # One merge into the schema: frozen dataclasses make its nodes read-only, which merge lifts once.
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    except ConfigError:
        raise
    except (OmegaConfBaseException, TypeError, UserError) as error:
        raise ConfigError(_explain(schema, error, from_file, from_command_line, origin)) from error
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(schema, error, from_file, from_command_line, origin)) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: {error}") from error
    return typing.cast(T, config)


def _leave_out(schema: type, values: DictConfig, origin: str) -> None:
    """Take the sections out that a schema, or one nested in it, does not read."""
    for name, other in getattr(schema, "UNREAD", {}).items():
        if name in values:
            section = values._get_node(name)
            del values[name]
            if isinstance(section, DictConfig) and not section._is_interpolation():
                try:
                    OmegaConf.merge(OmegaConf.structured(other), section)
                except (OmegaConfBaseException, TypeError) as error:
                    nothing = OmegaConf.create({})
                    reason = _explain(other, error, section, nothing, f"{origin}, section {name}")
                    raise ConfigError(reason) from error
    for name, kind in typing.get_type_hints(schema).items():
        inner = _without_none(kind)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type) and name in values:
            section = values._get_node(name)
            if isinstance(section, DictConfig) and not section._is_interpolation():
                _leave_out(inner, section, origin)


def dump_config(config: object) -> str:
    """Write a config as YAML that `load_config` reads back to an equal object.

    Args:
        config: A dataclass instance.

    Returns:
        YAML text, keys in the order of the schema.
    """
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_files(file: str | Path | None, sections: Mapping[str, str | Path]) -> tuple[DictConfig, list[Path]]:
    """The file with the sections merged into it, and all paths that were read."""
    paths = [] if file is None else [find_config(file)]
    content = OmegaConf.create({}) if file is None else _read_yaml(paths[0])
    for key, name in sections.items():
        paths.append(find_config(name))
        content = OmegaConf.merge(content, {key: _read_yaml(paths[-1])})
    return typing.cast(DictConfig, content), paths


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """A file's content over that of the file it extends."""
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path} must hold `key: value` lines at its top level; found a list or a single value.")
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if not isinstance(base, str) or find_config(base) in (*above, path):
        raise ConfigError(f"{path}: {EXTENDS!r} is {base!r}; it must name another file, and no file in a circle.")
    merged = OmegaConf.merge(_read_yaml(find_config(base), (*above, path)), content)
    assert isinstance(merged, DictConfig)
    return merged


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for text in overrides:
        key, separator, _ = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{text!r} is not an override; write key=value, for example training.seed=1.")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"The overrides {list(overrides)} cannot be read: {error}") from error


def _explain(schema: type, error: Exception, from_file: DictConfig, from_command_line: DictConfig, origin: str) -> str:
    """Turn an error of the merge into: where, key, value found, what is allowed."""
    key = getattr(error, "full_key", None) or _misplaced_key(schema, from_file, from_command_line)
    reason = str(error).splitlines()[0]
    if key is None:
        return f"{origin}: {reason}"
    value = _raw_value(from_command_line, key)
    value = _raw_value(from_file, key) if value is None else value
    if isinstance(error, ConfigKeyError):
        known = [name for name, _ in _walk_schema(schema)]
        parent, _, leaf = key.rpartition(".")
        siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
        hint = _nearest(leaf, siblings) or _nearest(key, known)
        allowed = f"Allowed {f'in {parent}' if parent else 'here'}: {', '.join(siblings) or 'nothing'}."
        return f"{origin}: unknown key {key!r} (value {value!r}).{hint} {allowed}"
    expected = _type_name(dict(_walk_schema(schema)).get(key.split("[")[0]))
    if isinstance(error, MissingMandatoryValue):
        return f"{origin}: {key!r} has no value; it must be set ({expected})."
    if isinstance(error, InterpolationResolutionError):
        return f"{origin}: {key!r}: {reason}; a ${{...}} must name another key of the config."
    return f"{origin}: {key!r} is {value!r}, which does not fit; allowed: {expected}. ({reason})"


def _misplaced_key(schema: type, *sources: DictConfig) -> str | None:
    """First key that holds a plain value where the schema has a section (OmegaConf does not name it)."""
    for key, kind in _walk_schema(schema):
        is_section = dataclasses.is_dataclass(_without_none(kind))
        is_container = typing.get_origin(_without_none(kind)) in (list, dict)
        for source in sources:
            value = _raw_value(source, key)
            if value is None:
                continue
            is_nested = isinstance(value, (dict, list))
            if (is_section and not isinstance(value, dict)) or is_nested != (is_section or is_container):
                return key
    return None


def _walk_schema(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a schema with its type, sections before their content."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        key = f"{prefix}{item.name}"
        kind = hints[item.name]
        yield key, kind
        inner = _without_none(kind)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _walk_schema(inner, f"{key}.")


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _type_name(kind: Any) -> str:
    """A type in words a YAML author knows."""
    if kind is None:
        return "a value of the schema's type"
    inner = _without_none(kind)
    if inner is not kind:
        return f"{_type_name(inner)}, or null"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is list:
        return f"a list, each {_type_name(arguments[0])}" if arguments else "a list"
    if origin is dict:
        return f"`key: value` lines, each value {_type_name(arguments[1])}" if arguments else "`key: value` lines"
    if dataclasses.is_dataclass(kind):
        return "a section with " + ", ".join(item.name for item in dataclasses.fields(kind))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _raw_value(source: DictConfig, key: str) -> Any:
    """The value as written, its ${...} not followed; None where the source does not hold the key."""
    value: Any = OmegaConf.to_container(source, resolve=False)
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


def _nearest(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def check(good: bool, message: str) -> None:
    """Raises ValueError with a message that names key, value and what is allowed, unless all is good."""
    if not good:
        raise ValueError(message)
