"""Typed configuration: defaults of a dataclass, then a YAML file, then the settings of the command line.

The type of a key says how its value is read, not the look of the value. A text of the command line arrives as typed;
a number, and a text in a file, must be written so that nobody reads it otherwise (YAML 1.1 takes 010 for 8). What does
not fit is refused in the form of `nvg.bounds`: the key, what it is, what was expected, what to do. A YAML file may
begin with `extends: other.yaml` and then says only what it changes.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from nvg.bounds import refuse
from nvg.errors import UserError
from pipelines.written import (
    Dumper,
    Loader,
    Typed,
    Written,
    from_yaml,
    literal,
    nearest,
    type_name,
    typed_section,
    walk_schema,
)

T = TypeVar("T")
Setting = str | Mapping[str, Any]

_EXTENDS = "extends"
_COMMAND_LINE = "the command line"
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
    similar = nearest(below_configs, known)
    raise ConfigError(
        f"There is no configuration file {str(name)!r}, neither at that path nor in the project's configs/."
        f"{f' Did you mean {similar!r}?' if similar else ''} Configurations here: {', '.join(known) or 'none'}."
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
            hold for another command: they must fit, and are left out. A table `SHARED`
            names sections, and for each the others ("step.section") that take what they do not say themselves from it.
        file: YAML file (also a name below `configs/`), or None for the defaults alone.
        settings: one after the other, the later wins: texts "key=value" with dotted keys, the value read by the key's
            type ("[1, 2]", "null", "1e-3"), and nested dictionaries, whose values are taken as they are.
        sections: key of a section to the YAML file that fills it, e.g. {"sampling": "sampling/paper.yaml"}.

    Returns:
        An instance of `schema`, its `__post_init__` checks passed.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing or an impossible value.
    """
    sources = [] if file is None else _read_yaml(find_config(file))
    for key, name in (sections or {}).items():
        sources += [(origin, {key: content}) for origin, content in _read_yaml(find_config(name))]
    sources += [(_COMMAND_LINE, _setting(setting)) for setting in settings]
    all_origins = " and ".join(dict.fromkeys(origin for origin, content in sources if content))
    origin = all_origins = all_origins or f"the defaults of {schema.__name__}"
    values = OmegaConf.create({})
    try:
        if hasattr(schema, "read_as"):
            given = {key: getattr(value, "text", value) for _, content in sources for key, value in content.items()}
            schema = typing.cast(Any, schema).read_as(given)
        typed = []
        for name, content in sources:
            origin = name
            typed.append(OmegaConf.create(typed_section(schema, content, "", schema)))
        origin = all_origins
        values = _with_shared(schema, typing.cast(DictConfig, OmegaConf.merge(values, *typed)))
        # One merge into the schema: frozen dataclasses make its nodes read-only, which merge lifts once.
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        return typing.cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {_explain(schema, error, values)}") from error
    except ValueError as error:  # of the reading, or of a `__post_init__`
        raise ConfigError(f"{origin}: {error}") from error


def dump_config(config: Any) -> str:
    """A config as YAML that `load_config` reads back to an equal object, keys in the order of the schema."""
    return yaml.dump(literal(dataclasses.asdict(config)), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_section(file: Path, name: str) -> dict[str, Any]:
    """One section of a YAML file as a setting {name: …} for `load_config`; empty where the file does not hold it."""
    merged = {key: value for _, content in _read_yaml(file) for key, value in content.items()}
    return {name: merged[name]} if name in merged else {}


def read_keys(name: str | Path) -> dict[str, Any]:
    """What a YAML file (also a name below `configs/`) holds at its top level, as it is written."""
    return {key: value for _, content in _read_yaml(find_config(name)) for key, value in content.items()}


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Name and content of a file, behind those of the file that it extends; single values as `Written`."""
    try:
        content = from_yaml(yaml.compose(path.read_bytes(), Loader=Loader), in_file=True)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines at its top level; found a list or a single value.")
    base = content.pop(_EXTENDS, None)
    if base is None:
        return [(str(path), content)]
    if not isinstance(base, Written) or not base.text or (found := _extended(base.text, path)) in (*above, path):
        raise ConfigError(f"{path}: {_EXTENDS!r} is {base!r}; it must name another file, and no file in a circle.")
    return [*_read_yaml(found, (*above, path)), (str(path), content)]


def _extended(name: str, by: Path) -> Path:
    """The file that another one extends: beside it, or as `find_config` has it."""
    return beside if (beside := by.parent / name).is_file() else find_config(name)


def _setting(setting: Setting) -> dict[str, Any]:
    """A setting as nested dictionaries; "a.b=c" as {"a": {"b": "c"}}."""
    if not isinstance(setting, str):
        return {key: value for key, value in setting.items() if value != {}}
    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{setting!r} is not a setting; write key=value, for example training.seed=1.")
    value: Any = Typed(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _with_shared(schema: type, values: DictConfig) -> DictConfig:
    """What is given, each section that others take (`SHARED`) copied below what they say themselves."""
    given = typing.cast(dict[str, Any], OmegaConf.to_container(values, resolve=False))
    for name, others in getattr(schema, "SHARED", {}).items():
        for step, section in (other.split(".") for other in others):
            if isinstance(holder := given.get(step), dict) and isinstance(own := holder.get(section, {}), dict):
                if not isinstance(shared := given.get(name, {}), dict):
                    raise ConfigError(f"{name} is {shared}; expected its settings, one a line below it")
                holder[section] = {**shared, **own}
    return OmegaConf.create(given)


def _explain(schema: type, error: OmegaConfBaseException, values: DictConfig) -> str:
    """An error of the merge in the project's own words: key, value, what was expected."""
    key, reason = getattr(error, "full_key", None), str(error).splitlines()[0]
    if not key:
        return reason
    kinds = dict(walk_schema(schema))
    expected = type_name(kinds.get(key.split("[")[0]) or kinds.get(key.rpartition(".")[0]))
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set; expected {expected}; set {key}"
    found = _raw_value(values, key)
    if isinstance(error, InterpolationResolutionError):
        return str(refuse(key, found, "${...} to name another key of the config", f"change {key} ({reason})"))
    return str(refuse(key, Written(found) if isinstance(found, str) else found, expected))


def _raw_value(source: DictConfig, key: str) -> Any:
    """The value as written, its ${...} not followed; None where the source does not hold the key."""
    value: Any = OmegaConf.to_container(source, resolve=False)
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value
