"""Typed configuration: defaults of a dataclass, then a YAML file, then the settings of the command line.

The merge is strict. What does not fit is refused in the form of `nvg.bounds`: the key, what it is, what was expected,
what to do. A YAML file may begin with `extends: other.yaml` and then says only what it changes.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
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

from nvg.bounds import refuse
from nvg.errors import UserError

T = TypeVar("T")
Setting = str | Mapping[str, Any]

_EXTENDS = "extends"
CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs"  # beside the packages: clone and wheel alike


class ConfigError(UserError):
    """A configuration key, type or value is wrong."""


def find_config(name: str | Path) -> Path:
    """The caller's own file of that path, else the one of that name below the project's `configs/`.

    Raises:
        ConfigError: there is neither; names the nearest file of `configs/`.
    """
    own = Path(name).expanduser()
    below_configs = str(own).removeprefix("configs/")
    for candidate in (own, CONFIG_FOLDER / below_configs):
        if candidate.is_file():
            return candidate
    known = sorted(str(path.relative_to(CONFIG_FOLDER)) for path in CONFIG_FOLDER.rglob("*.yaml"))
    nearest = _nearest(below_configs, known)
    raise ConfigError(
        f"There is no configuration file {str(name)!r}, neither at that path nor in the project's configs/."
        f"{f' Did you mean {nearest!r}?' if nearest else ''} Configurations here: {', '.join(known) or 'none'}."
    )


def load_config(
    schema: type[T],
    file: str | Path | None,
    settings: Sequence[Setting] = (),
    *,
    sections: Mapping[str, str | Path] | None = None,
) -> T:
    """Build a config from the schema's defaults, a file, files of single sections and settings, in that order.

    Args:
        schema: a dataclass; may nest dataclasses, lists and dicts. One with a class method `read_as` says itself by
            which schema given values are read. A table `UNREAD` names sections, with their schemas, that a file may
            hold for another command: they must fit, and are left out.
        file: YAML file (also a name below `configs/`), or None for the defaults alone.
        settings: one after the other, the later wins: texts "key=value" with dotted keys, the value read as YAML
            ("[1, 2]", "null", "1e-3"), and nested dictionaries, whose values are taken as they are.
        sections: key of a section to the YAML file that fills it, e.g. {"sampling": "sampling/paper.yaml"}.

    Returns:
        An instance of `schema`, its `__post_init__` checks passed.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing or an impossible value.
    """
    from_file, paths = _read_files(file, sections or {})
    given = _merge_settings(settings)
    sources = [*map(str, paths), *(["the command line"] if given else [])]
    origin = " and ".join(sources) or f"the defaults of {schema.__name__}"
    try:
        values = typing.cast(DictConfig, OmegaConf.merge(from_file, given))
        if hasattr(schema, "read_as"):
            schema = typing.cast(Any, schema).read_as(values)
        _leave_out(schema, values)
        # One merge into the schema: frozen dataclasses make its nodes read-only, which merge lifts once.
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        return typing.cast(T, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a value where OmegaConf wants a section
        raise ConfigError(f"{origin}: {_explain(schema, error, given, from_file)}") from error
    except ValueError as error:  # of a `__post_init__`
        raise ConfigError(f"{origin}: {error}") from error


def _leave_out(schema: type, values: DictConfig) -> None:
    """Take out the sections that a schema, or one nested in it, does not read; ConfigError where one is wrong."""
    for name, other in getattr(schema, "UNREAD", {}).items():
        section = _section(values, name)
        if section is not None:
            try:
                OmegaConf.merge(OmegaConf.structured(other), section)
            except (OmegaConfBaseException, TypeError) as error:
                raise ConfigError(f"in {name}, {_explain(other, error, section)}") from error
        values.pop(name, None)
    for name, kind in typing.get_type_hints(schema).items():
        inner, section = _without_none(kind), _section(values, name)
        if section is not None and dataclasses.is_dataclass(inner) and isinstance(inner, type):
            _leave_out(inner, section)


def _section(values: DictConfig, name: str) -> DictConfig | None:
    """What stands below a key as written; None where that is a single value, a list or a ${...}."""
    node = values._get_node(name)
    return node if isinstance(node, DictConfig) and not node._is_interpolation() else None


def dump_config(config: object) -> str:
    """A config as YAML that `load_config` reads back to an equal object, keys in the order of the schema."""
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
    base = content.pop(_EXTENDS, None)
    if base is None:
        return content
    if not isinstance(base, str) or find_config(base) in (*above, path):
        raise ConfigError(f"{path}: {_EXTENDS!r} is {base!r}; it must name another file, and no file in a circle.")
    merged = OmegaConf.merge(_read_yaml(find_config(base), (*above, path)), content)
    assert isinstance(merged, DictConfig)
    return merged


def _merge_settings(settings: Sequence[Setting]) -> DictConfig:
    merged = OmegaConf.create({})
    for setting in settings:
        if not isinstance(setting, str):
            merged.merge_with(_literal(setting))
            continue
        key, separator, _ = setting.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{setting!r} is not a setting; write key=value, for example training.seed=1.")
        try:
            merged.merge_with_dotlist([setting])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"{setting!r} cannot be read: {' '.join(str(error).split())}") from error
    return merged


def _literal(value: Any) -> Any:
    """The value without empty sections, `${` in its texts escaped: OmegaConf shall not take it for another key."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items() if item != {}}
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _explain(schema: type, error: Exception, *sources: DictConfig) -> str:
    """An error of the merge in the project's own words: key, value as written, what was expected."""
    key = getattr(error, "full_key", None) or _misplaced_key(schema, *sources)
    reason = str(error).splitlines()[0]
    if key is None:
        return reason
    found = next((value for source in sources if (value := _raw_value(source, key)) is not None), None)
    kinds = dict(_walk_schema(schema))
    if isinstance(error, ConfigKeyError):
        section = error.object_type if dataclasses.is_dataclass(error.object_type) else schema
        siblings = [item.name for item in dataclasses.fields(section)]
        nearest = _nearest(key.rpartition(".")[2], siblings) or _nearest(key, list(kinds))
        advice = f"did you mean {nearest}?" if nearest else f"remove {key}"
        return f"{key} is an unknown key (value {found!r}); expected one of {', '.join(siblings)}; {advice}"
    expected = _type_name(kinds.get(key.split("[")[0]) or kinds.get(key.rpartition(".")[0]))
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set; expected {expected}; set {key}"
    if isinstance(error, InterpolationResolutionError):
        return str(refuse(key, found, "${...} to name another key of the config", f"change {key} ({reason})"))
    return str(refuse(key, found, expected))


def _misplaced_key(schema: type, *sources: DictConfig) -> str | None:
    """First key that holds a plain value where the schema has a section (OmegaConf does not name it)."""
    for key, kind in _walk_schema(schema):
        is_section = dataclasses.is_dataclass(_without_none(kind))
        is_container = typing.get_origin(_without_none(kind)) in (list, dict)
        for source in sources:
            value = _raw_value(source, key)
            is_nested = isinstance(value, (dict, list))
            wrong = (is_section and not isinstance(value, dict)) or is_nested != (is_section or is_container)
            if value is not None and wrong:
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
        return "one of " + ", ".join(map(str, arguments))
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
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")
