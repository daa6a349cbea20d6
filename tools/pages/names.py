"""Names that pages use: links, files, functions, settings, options and Python. Each must be there as it is written."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tools.pages.commands import known_keys, known_options, takes
from tools.pages.text import ROOT, Page

_FOLDERS = ("nvg", "pipelines", "eval", "cluster", "configs", "docs", "tests", "tools", "benchmarks")
_ENDINGS = r"(?:py|md|sh|yaml|json|jsonl|png|sbatch|toml|lock)"
# Options of other programs that pages speak of.
_OTHERS_OPTIONS = {
    "--num_gpus": "deepspeed",
    "--num_accelerators": "deepspeed",
    "--module": "deepspeed",
    "--nproc-per-node": "torchrun",
    "--gpus-per-task": "Slurm",
    "--gpus-per-node": "Slurm",
    "--follow": "git log",
    "--concatenate": "tar",
    "--dry-run": "pip",
}


def problems_of(page: Page) -> Iterator[tuple[int, str]]:
    """Line and problem of every name that is not there."""
    for line, target in page.links:
        if problem := _problem_of_link(page, target):
            yield line, problem
    for line, code in page.code:
        for problem in _problems_of_code(code):
            yield line, problem
    for block in page.blocks:
        python = block.language == "python" or re.match(
            r"\s*(import nvg|model\.|\w+ = (nvg|model)\.|nvg\.)", block.text
        )
        if python:
            for line, problem in problems_of_python(block.text):
                yield block.line + line, problem


def _problem_of_link(page: Page, target: str) -> str | None:
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (page.path.parent / path) if path else page.path
    if not file.exists():
        return f"link to {target}: there is no such file"
    if anchor and file.suffix == ".md":
        linked = page if file == page.path else Page(file)
        if anchor not in linked.anchors:
            return f"link to {target}: {file.name} has no heading of that name"
    return None


def _problems_of_code(code: str) -> Iterator[str]:
    if match := re.fullmatch(rf"((?:{'|'.join(_FOLDERS)})/[\w./-]+?)(?:::?([\w.]+))?", code):
        name = match[2]
        path = next((path for path in (match[1], f"tests/{match[1]}", f"configs/{match[1]}") if _is_path(path)), None)
        if path is None:
            yield f"`{code}`: there is no such file or folder"
        elif name and path.endswith(".py") and name not in _definitions(path):
            yield f"`{code}`: {path} does not define {name}"
    elif match := re.fullmatch(r"([a-z]+)/[\w./-]+\.yaml", code):
        if (ROOT / "configs" / match[1]).is_dir() and not (ROOT / "configs" / code).exists():
            yield f"`{code}`: configs/ has no such file"
    elif re.fullmatch(r"nvg(\.\w+)+(\(.*\))?", code):
        if _resolved(code.partition("(")[0]) is None:
            yield f"`{code}`: there is no such name"
    elif match := re.fullmatch(r"([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:=.*)?", code):
        yield from _problem_of_key(match[1], code)
    for option in re.findall(r"(?<![\w/])--[a-z][\w-]+", code):
        if option not in known_options() and option not in _OTHERS_OPTIONS:
            yield f"`{code}`: no command has the option {option}"


@cache
def _is_path(path: str) -> bool:
    return (ROOT / path).exists()


@cache
def _definitions(path: str) -> frozenset[str]:
    """Names that a module defines, methods behind their class."""
    found: set[str] = set()

    def walk(node: Any, prefix: str) -> None:
        for child in getattr(node, "body", []):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                found.add(f"{prefix}{child.name}")
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found.update(f"{prefix}{target.id}" for target in targets if isinstance(target, ast.Name))

    walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return frozenset(found)


@cache
def _sections() -> frozenset[str]:
    return frozenset(key.split(".")[0] for key in known_keys() if "." in key)


@cache
def _keys() -> frozenset[tuple[str, bool]]:
    """Every key, and whether no other is below it: below a map stand names of one's own."""
    above = {key.rpartition(".")[0] for key in known_keys()}
    return frozenset((key, key not in above) for key in known_keys())


def _problem_of_key(key: str, code: str) -> Iterator[str]:
    if re.search(rf"\.{_ENDINGS}$|\.(?:npy|npz|pth|ckpt|pt|html|txt|csv|tar|mds|safetensors|gz|zst|mjs)$", key):
        return
    first = key.split(".")[0]
    if first not in _sections() or (first == "model" and key.split(".")[1] in _of_model()):
        return
    if not any(
        f".{known}".endswith(f".{key}") or (is_last and key.startswith(f"{known}.")) for known, is_last in _keys()
    ):
        yield f"`{code}`: no command has the key {key}"


@cache
def _of_model() -> frozenset[str]:
    """What a model has: methods and fields."""
    model = _resolved("nvg.Model")
    return frozenset(dir(model)) | frozenset(inspect.signature(model).parameters)


def _resolved(name: str) -> Any:
    """The object of a dotted name, or None."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found
    return None


def problems_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Lines of an example that do not parse, name what `nvg` does not have, or call it with what it does not take.

    `model` is an `nvg.Model`, `region` and other names are left alone.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield error.lineno or 0, f"example: {error.msg}"
        return
    for node in ast.walk(tree):
        name = _dotted(node)
        if isinstance(node, ast.expr) and name and name.split(".")[0] == "nvg" and _resolved(name) is None:
            yield node.lineno - 1, f"example: there is no {name}"
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            name = re.sub(r"^model\.", "nvg.Model.", called or "")
            function = _resolved(name) if name.startswith("nvg.") else None
            if name.startswith("nvg.Model.") and function is None:
                yield node.lineno - 1, f"example: nvg.Model has no {name.removeprefix('nvg.Model.')}"
            if function is not None:
                strange = takes(function, [word.arg for word in node.keywords if word.arg])
                if strange:
                    yield node.lineno - 1, f"example: {called} does not take {strange[0]}"


def _dotted(node: Any) -> str | None:
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None
