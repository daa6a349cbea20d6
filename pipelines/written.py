"""What is written for a key becomes a value of the key's type, in a file and on the command line alike.

`from_yaml` and `Typed` hold what is written as it is written; `typed_section` gives it the types of a schema. The type
decides, not the look: a text of the command line arrives as typed, and a number, or a text in a file, that YAML 1.1
would bend (010 to 8, 1:30 to 90, no to false) is refused with what to write.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import yaml

from nvg.bounds import refuse
from nvg.errors import UserError

_WHOLE_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_REFERENCE = re.compile(r"\$\{.*\}", re.DOTALL)
_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,]*?)\s*(?:,|\Z)""", re.DOTALL)
_IN_SINGLE_QUOTES = re.compile(r"'(?:[^']|'')*'", re.DOTALL)
_BENT = {"int": "the number", "float": "the number", "bool": "the truth value", "null": ""}  # by YAML, out of a text
_LARGEST_WHOLE_NUMBER = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Written:
    """A single value as it is written, before it is known what type it shall have.

    Attributes:
        text: without the quotes around it.
        quoted: whether there were any.
        in_file: a text there that YAML would take for something else is refused; on the command line it is a text.
    """

    text: str
    quoted: bool = False
    in_file: bool = False

    @property
    def tag(self) -> str:
        """What YAML takes it for: `str`, `int`, `float`, `bool`, `null`, `timestamp`, `merge` or `value`."""
        tag = "str" if self.quoted else Loader("").resolve(yaml.ScalarNode, self.text, (True, False))
        return tag.rpartition(":")[2]

    @property
    def is_null(self) -> bool:
        """Whether it is what stands for nothing: on the command line `null` alone."""
        return self.tag == "null" and (self.in_file or self.text == "null")

    @property
    def in_yaml(self) -> Any:
        """What YAML would read."""
        with suppress(yaml.YAMLError, ValueError):
            return yaml.load(self.text, Loader) if self.tag in _BENT else self.text
        return self.text

    def __repr__(self) -> str:
        return self.text if self.text and self.tag in _BENT else repr(self.text)


class Typed(str):
    """What stands behind "key=" or between the commas of a list there, brackets and quotes with it."""


class Loader(yaml.SafeLoader):
    """YAML 1.1, and 1e3 is the number that it looks like."""


class Dumper(yaml.SafeDumper):
    """Puts into quotes what `Loader` would take for something else than a text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value that comes twice is written twice: always."""
        return True


for _side in (Loader, Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def from_yaml(node: yaml.Node | None, *, in_file: bool) -> Any:
    """A YAML node as dictionaries and lists of `Written`."""
    if node is None:
        return {}
    if isinstance(node, yaml.SequenceNode):
        return [from_yaml(item, in_file=in_file) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return Written(node.value, quoted=node.style is not None or node.tag.endswith(":str"), in_file=in_file)
    assert isinstance(node, yaml.MappingNode)
    names = [key.value for key, _ in node.value]
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or names.count(key.value) > 1:
            raise yaml.constructor.ConstructorError(None, None, "found a key twice, or one of parts", key.start_mark)
    Loader("").flatten_mapping(node)  # `<<: *anchor`
    return {key.value: from_yaml(item, in_file=in_file) for key, item in node.value}


def literal(value: Any) -> Any:
    """The value with every `${` in its texts escaped: OmegaConf shall not take it for another key."""
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def typed_section(schema: type, content: Mapping[str, Any], key: str, root: type) -> dict[str, Any]:
    """What is written in a section, each value of the type that the schema gives its key."""
    unread = getattr(schema, "UNREAD", {})
    kinds = _kinds(schema) | unread
    typed = {}
    for name, value in content.items():
        full_key = f"{key}.{name}" if key else name
        if name not in kinds:
            siblings = list(_kinds(schema))
            similar = nearest(name, siblings) or nearest(full_key, [known for known, _ in walk_schema(root)])
            advice = f"did you mean {similar}?" if similar else f"remove {full_key}"
            found = _opened(Any, value) if isinstance(value, Typed) else value
            expected = f"one of {', '.join(siblings)}"
            raise UserError(f"{full_key} is an unknown key (value {found!r}); expected {expected}; {advice}")
        read = _typed(kinds[name], value, full_key, root)
        if name not in unread:
            typed[name] = read
    return typed


def _typed(kind: Any, value: Any, key: str, root: type) -> Any:
    """What is written for a key, of the key's type; a `${…}` stays, and what is no text is left to OmegaConf."""
    inner = _without_none(kind)
    value = _opened(inner, value) if isinstance(value, Typed) else value
    if isinstance(value, Written) and _REFERENCE.search(value.text):
        return value.text
    if inner is not kind and (value is None or (isinstance(value, Written) and value.is_null)):
        return None
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    is_section = dataclasses.is_dataclass(inner)
    if isinstance(value, Mapping) and (is_section or origin is dict or inner is Any):
        if is_section:
            return typed_section(typing.cast(type, inner), value, key, root)
        each = arguments[1] if arguments else Any
        return {name: _typed(each, item, f"{key}.{name}", root) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and (origin is list or inner is Any):
        each = arguments[0] if arguments else Any
        return [_typed(each, item, f"{key}[{number}]", root) for number, item in enumerate(value)]
    if is_section or origin in (list, dict) or isinstance(value, (Mapping, list, tuple)):
        text = value.text if origin is list and isinstance(value, Written) else ""
        advice = f"write [{text}]" if text[:1] not in ("[", "(", "") else ""
        raise refuse(key, value, type_name(kind), advice)
    if value == "???" or (isinstance(value, Written) and value.text == "???"):
        raise refuse(key, "???", f"{type_name(kind)}; OmegaConf takes ??? for a value that is not set")
    if isinstance(value, str):
        return literal(value) if inner is str else _typed_value(inner, Written(value), key, kind)
    return _typed_value(inner, value, key, kind) if isinstance(value, Written) else value


def _opened(kind: Any, text: Typed) -> Any:
    """What was typed for a key of that type: its brackets opened, its quotes taken off."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    is_nested = _is_nested(arguments[0] if origin is list else kind)
    stripped = text.strip()
    if is_nested and stripped[:1] in ("[", "{"):
        try:
            return from_yaml(yaml.compose(stripped, Loader=Loader), in_file=False)
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError(f"{str(text)!r} cannot be read: {' '.join(str(error).split())}") from error
    if origin is list and not is_nested and stripped[:1] == "[" and stripped[-1:] == "]":
        inside = stripped[1:-1].strip()
        return [Typed(item[1]) for item in _ITEM.finditer(inside) if item.start() < len(inside)]
    if _IN_SINGLE_QUOTES.fullmatch(text):
        return Written(text[1:-1].replace("''", "'"), quoted=True)
    if text[:1] == '"':
        with suppress(ValueError):
            return Written(json.loads(text, strict=False), quoted=True)
    return Written(str(text))


def _typed_value(kind: Any, value: Written, key: str, declared: Any) -> Any:
    """A single value of that type."""
    text, expected = value.text.strip(), type_name(declared)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise refuse(key, value, expected, "write true or false")
        return text.lower() == "true"
    if typing.get_origin(kind) is typing.Literal:  # what is none of the choices may be overruled: the merge refuses it
        return next((choice for choice in typing.get_args(kind) if str(choice) == text), value.text)
    if kind is str:
        return _text(value, key)
    if kind in (int, float):
        return _number(kind, value, key, expected)
    return value.in_yaml if kind is Any else value.text


def _text(value: Written, key: str) -> str:
    """A text as it is written; the home folder where a shell would put it."""
    if value.in_file and value.tag in _BENT:
        found = f"{_BENT[value.tag]} {json.dumps(value.in_yaml)}".strip()
        raise UserError(f"{key} is {found}; put it in quotes: {json.dumps(value.text)}")
    text = value.text if value.quoted else os.path.expanduser(value.text)
    return text if value.in_file else literal(text)  # a file escapes a `${` of its own, as OmegaConf has it


def _number(kind: type, value: Written, key: str, expected: str) -> float:
    """A number that everybody reads alike."""
    text = value.text.strip()
    number = _meant(text)
    if number is None:
        raise refuse(key, value, expected)
    if kind is int and not abs(number) <= _LARGEST_WHOLE_NUMBER:
        raise refuse(key, value, f"a whole number up to {_LARGEST_WHOLE_NUMBER}")
    if kind is float and not abs(number) <= sys.float_info.max:
        raise refuse(key, value, "a finite number")
    if (_WHOLE_NUMBER if kind is int else _NUMBER).fullmatch(text):
        return kind(text)
    fits = kind is float or number == int(number)
    raise refuse(key, value, expected, f"write {number if kind is float else int(number)}" if fits else "")


def _meant(text: str) -> float | None:
    """The number that people mean by a text, however they write it; None for a text that is none."""
    for read in (int, lambda text: int(text, 0), float):
        with suppress(ValueError):
            return read(text)
    return None


def walk_schema(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a schema with its type, sections before their content."""
    for name, kind in _kinds(schema).items():
        key = f"{prefix}{name}"
        yield key, kind
        inner = _without_none(kind)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from walk_schema(inner, f"{key}.")


@cache
def _kinds(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {item.name: hints[item.name] for item in dataclasses.fields(schema)}


def _is_nested(kind: Any) -> bool:
    """Whether a value of that type has values below it, as YAML writes them."""
    return dataclasses.is_dataclass(kind) or kind is Any or typing.get_origin(kind) in (list, dict)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def type_name(kind: Any) -> str:
    """A type in words a YAML author knows."""
    if kind is None:
        return "a value of the schema's type"
    inner = _without_none(kind)
    if inner is not kind:
        return f"{type_name(inner)}, or null"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {type_name(arguments[0])}" if arguments else "a list"
    if origin is dict:
        return f"`key: value` lines, each value {type_name(arguments[1])}" if arguments else "`key: value` lines"
    if dataclasses.is_dataclass(kind):
        return "a section with " + ", ".join(item.name for item in dataclasses.fields(kind))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that is most like another; empty where none is."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")
