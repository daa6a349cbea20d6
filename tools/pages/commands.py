"""Command lines of pages, each parsed by what would run it: `nvg` by its own parser and schemas, scripts by name.

Nothing is run. Of `nvg` the command, its options and every `key=value` are read as the program reads them; a file of
`configs/` must be there and be valid with what follows it. Other files are the reader's own.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from nvg.errors import UserError
from pipelines import configuration
from pipelines.cli.main import app
from pipelines.experiment import forecast, own_images
from pipelines.written import typed_section, walk_schema
from tools.pages.text import ROOT, Block, Page

LEFT_OUT = "…"
_CONFIGS = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
_LAUNCHERS = ("deepspeed", "torchrun")
_PROGRAMS = ("nvg", "python", "python3", "make", "pip", "pytest", *_LAUNCHERS)


class _Resolved(Exception):  # noqa: N818  the way out of a command once its settings are read
    """All that a command line says was read."""


def commands(page: Page) -> Iterator[tuple[int, str]]:
    """Line and text of each command in the page's blocks, and of `nvg …` in its lines."""
    for block in page.blocks:
        if block.language in ("", "bash", "sh", "console", "shell"):
            yield from _of_block(block)
    for line, code in page.code:
        if re.match(r"(\.venv/bin/)?nvg \w", code):
            yield line, code


def _of_block(block: Block) -> Iterator[tuple[int, str]]:
    has_prompt = re.search(r"^\$ ", block.text, re.MULTILINE)
    text = re.sub(r" *\\\n\s*", " ", block.text)
    for number, line in enumerate(text.splitlines()):
        if has_prompt and not line.startswith("$ "):
            continue
        for part in re.split(r" && ", line.removeprefix("$ ").strip()):
            words = re.sub(r"^(?:[A-Z_]+=\S* +)+", "", part).split(" ")
            if words[0].rpartition("/")[2] in _PROGRAMS and len(words) > 1:
                yield block.line + number, part


def problem_of(command: str) -> str | None:
    """Why a command line would be refused, or None."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return f"`{command}`: {error}"
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    program, arguments = words[0].rpartition("/")[2], _without_gaps(words[1:])
    if program == "nvg":
        found = _problem_of_nvg(arguments)
    elif program in _LAUNCHERS or program.startswith("python"):
        found = _problem_of_python(arguments)
    else:
        found = {"make": _problem_of_make, "pip": _problem_of_pip, "pytest": _problem_of_pytest}[program](arguments)
    return f"`{command}`: {found}" if found else None


def _without_gaps(words: Sequence[str]) -> list[str]:
    """Without `…` that stands for further words; after an option it stands for the option's value."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if word != LEFT_OUT or before.startswith("-")]


def _problem_of_nvg(arguments: Sequence[str]) -> str | None:
    command: Any = typer.main.get_command(app)
    rest, name = list(arguments), "nvg"
    if rest and rest[0].startswith("-"):
        return None if rest[0] in (*_options(command), "--help") else f"{name} has no {rest[0]}"
    while hasattr(command, "commands"):
        if not rest:
            return None  # a group by its name
        child = command.commands.get(rest[0])
        if child is None:
            return f"{name} has no command {rest[0]}"
        name, rest, command = f"{name} {rest[0]}", rest[1:], child
    if not rest:
        return None  # a command by its name
    try:
        context = command.make_context(name, rest)
    except Exception as error:
        if type(error).__name__ in ("UsageError", "NoSuchOption", "BadParameter", "BadOptionUsage"):
            return f"{name}: {error.format_message()}"  # pyright: ignore[reportAttributeAccessIssue]
        if type(error).__name__ in ("MissingParameter", "Exit"):
            return None
        raise
    if name == "nvg submit":
        return problem_of(shlex.join(context.params["command"]))
    if name in ("nvg doctor", "nvg verify"):
        return None
    if name == "nvg plan" and not all(_is_ours(file) for file in context.params["files"] if "=" not in file):
        return None
    return _problem_of_settings(context)


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@contextmanager
def _loading_is(function: Any) -> Iterator[None]:
    """While this lasts, commands that load their configuration call `function` instead."""
    with ExitStack() as patches:
        for module in (configuration, own_images):
            patches.enter_context(mock.patch.object(module, "load_config", function))
        patches.enter_context(mock.patch.object(forecast, "forecast", side_effect=_Resolved))
        patches.enter_context(mock.patch("pipelines.app.enter_own_environment"))
        yield
    for name, module in list(sys.modules.items()):  # what was imported meanwhile has taken the name with it
        if name.startswith("pipelines.") and vars(module).get("load_config") is function:
            vars(module)["load_config"] = configuration.load_config


def _problem_of_settings(context: Any) -> str | None:
    """What is wrong with a command's files and settings: it is begun, and left once they are read."""
    with _loading_is(_read_settings):
        try:
            with context:
                context.invoke(context.command.callback, **context.params)
        except _Resolved:
            return None
        except (UserError, typer.BadParameter) as error:
            return str(error)
    return None


def _read_settings(
    schema: Any, file: str | None, settings: Sequence[Any] = (), *, sections: Mapping[str, str] | None = None
) -> None:
    """Stands where a command loads its configuration: reads it as far as the page says it."""
    for name in (file, *(sections or {}).values()):
        if name and _is_ours(name):
            configuration.find_config(name)
    for setting in settings:
        content = configuration._setting(setting)
        typed_section(schema, content, "", schema)
    if file and _is_ours(file):
        _LOAD_CONFIG(schema, file, settings, sections=sections)
    else:
        whole = [text for text in settings if isinstance(text, str) and LEFT_OUT not in text]
        given = [text.partition("=")[0] for text in whole]
        try:
            _LOAD_CONFIG(schema, None, whole)
        except configuration.ConfigError as error:  # for want of the reader's file, or of a value that the page gives
            if any(re.search(rf"(?<![\w.]){re.escape(key)} is ", str(error)) for key in given):
                raise
    raise _Resolved


_LOAD_CONFIG = configuration.load_config


def _is_ours(file: str) -> bool:
    """Whether a name is of `configs/`: one of its folders, then a file."""
    parts = Path(file.removeprefix("configs/")).parts
    return file.startswith("configs/") or (len(parts) > 1 and parts[0] in _CONFIGS)


def _problem_of_python(arguments: Sequence[str]) -> str | None:
    """A module or script that is not there, or an option that its text does not name."""
    words = list(arguments)
    modules = [words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-m", "--module")]
    scripts = [word for word in words if word.endswith(".py")]
    if modules and modules[0] in ("venv", "pip", "build", "pytest", "ipykernel"):
        return {"pytest": _problem_of_pytest, "pip": _problem_of_pip}.get(modules[0], lambda _: None)(
            words[words.index(modules[0]) + 1 :]
        )
    if modules:
        spec = _spec(modules[0])
        if spec is None:
            return f"there is no module {modules[0]}"
        file = Path(spec)
        package = file.parent / "__main__.py"
        file = package if file.name == "__init__.py" and package.exists() else file
        rest = words[words.index(modules[0]) + 1 :]
    elif scripts:
        file, rest = ROOT / scripts[0], words[words.index(scripts[0]) + 1 :]
        if not file.exists():
            return f"there is no {scripts[0]}"
    else:
        return None
    text = file.read_text(encoding="utf-8")
    if "program(" in text:  # a training's module: the options of every command
        text += "--config"
    if "--" not in text or file.name == "compiled.py":
        return None
    strange = [word for word in rest if re.match(r"--\w", word) and word.partition("=")[0] not in text]
    return f"{file.relative_to(ROOT).as_posix()} has no {strange[0]}" if strange else None


def _spec(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return spec.origin if spec else None


def _problem_of_make(arguments: Sequence[str]) -> str | None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    strange = [word for word in arguments if re.fullmatch(r"[\w-]+", word) and word not in targets]
    return f"the Makefile has no {strange[0]}" if strange else None


def _problem_of_pip(arguments: Sequence[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [extra for word in arguments for extra in re.findall(r"^(?:nvg|\.)\[([\w,]+)\]$", word)]
    strange = [name for text in asked for name in text.split(",") if name not in project["optional-dependencies"]]
    return f"the package has no extra {strange[0]}" if strange else None


def _problem_of_pytest(arguments: Sequence[str]) -> str | None:
    missing = [word for word in arguments if word.startswith("tests/") and not (ROOT / word.split("::")[0]).exists()]
    return f"there is no {missing[0]}" if missing else None


@cache
def known_options() -> frozenset[str]:
    """Options of every `nvg` command, and what scripts of the repository name as such."""
    waiting: list[Any] = [typer.main.get_command(app)]
    found: set[str] = set()
    while waiting:
        command = waiting.pop()
        found |= _options(command)
        waiting += getattr(command, "commands", {}).values()
    for folder in ("benchmarks", "tools", "tests/support", "cluster"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in (".py", ".sh", ".sbatch"):
                found |= set(re.findall(r"(--[a-z][\w-]+)", file.read_text(encoding="utf-8")))
    return frozenset(found)


@cache
def known_keys() -> frozenset[str]:
    """Dotted keys of every command's settings."""
    schemas: set[Any] = set()

    def note(schema: Any, *_: Any, **__: Any) -> None:
        schemas.add(schema)
        raise _Resolved

    with _loading_is(note):
        waiting: list[Any] = [typer.main.get_command(app)]
        while waiting:
            command = waiting.pop()
            waiting += getattr(command, "commands", {}).values()
            parameters = {parameter.name for parameter in command.params}
            if {"dry_run", "overrides"} <= parameters:
                words = ["FILE"] if "experiment" in parameters else []
                with command.make_context(command.name, words) as context:
                    try:
                        context.invoke(command.callback, **context.params)
                    except _Resolved:
                        continue
    return frozenset(key for schema in schemas for key, _ in walk_schema(schema))


def takes(function: Any, names: Sequence[str]) -> list[str]:
    """Those of the keyword names that a function does not take."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [name for name in names if name not in parameters]
