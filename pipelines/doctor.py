"""`nvg doctor`: what this machine has of what the project needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from rich.console import Console
from rich.table import Table

from pipelines.configuration import CONFIG_FOLDER

GIB = 2**30
MIN_SHARED_MEMORY_BYTES = GIB  # Ray's object store and DeepSpeed's buffers of the demo
MIN_FREE_DISK_BYTES = 2 * GIB
MIN_MEMORY_BYTES = 6 * GIB  # the demo's processes together
STYLES = {"ok": "green", "note": "yellow", "missing": "red"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report.

    Attributes:
        subject: What was looked at.
        found: What is there.
        verdict: "ok"; "note" when something works less well; "missing" when the project cannot run.
        advice: What to change when the verdict is not "ok".
    """

    subject: str
    found: str
    verdict: Literal["ok", "note", "missing"] = "ok"
    advice: str = ""


def run_doctor(console: Console | None = None, folder: Path = Path()) -> int:
    """Print the report.

    Args:
        console: Where to; None is stdout.
        folder: Folder whose disk is looked at, the one runs are written to.

    Returns:
        Exit code: 1 when something needed is missing, else 0.
    """
    checks = list(examine(folder))
    table = Table("what", "found", "", "advice", title="nvg doctor", title_justify="left")
    for check in checks:
        style = STYLES[check.verdict]
        table.add_row(check.subject, check.found, f"[{style}]{check.verdict}[/]", check.advice)
    (console or Console()).print(table)
    return int(any(check.verdict == "missing" for check in checks))


def examine(folder: Path) -> Iterator[Check]:
    """All checks, cheap ones first.

    Args:
        folder: Folder whose disk is looked at.

    Yields:
        One `Check` per subject.
    """
    yield _python()
    yield from _packages()
    yield _compiler()
    yield _configs()
    yield _cores()
    yield _memory()
    yield _room("/dev/shm", Path("/dev/shm"), MIN_SHARED_MEMORY_BYTES, "start the container with --shm-size=2g")
    yield _room("disk here", folder, MIN_FREE_DISK_BYTES, "free some space or run from another disk")
    yield _devices()


def package_check(requirement_text: str) -> Check:
    """Compare one requirement of the project with what is installed.

    Args:
        requirement_text: As in pyproject.toml, for example "numpy>=2.0,<2.2".

    Returns:
        The check; "missing" when it is absent or of another version.
    """
    requirement = Requirement(requirement_text)
    wanted = str(requirement.specifier)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(
            subject=requirement.name,
            found="not installed",
            verdict="missing",
            advice="run `make setup` again",
        )
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(subject=requirement.name, found=version, verdict="missing", advice=f"needs {wanted}; `make setup`")
    return Check(subject=requirement.name, found=version)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(subject="Python", found=f"{version} ({sys.executable})")


def _packages() -> Iterator[Check]:
    try:
        requirements = metadata.requires("nvg") or []
        yield Check(subject="nvg", found=metadata.version("nvg"))
    except metadata.PackageNotFoundError:
        yield Check(subject="nvg", found="not installed", verdict="missing", advice="run `make setup`")
        return
    for text in requirements:
        try:
            is_extra = "extra" in str(Requirement(text).marker or "")
        except InvalidRequirement:
            continue
        if not is_extra:
            yield package_check(text)


def _compiler() -> Check:
    if shutil.which("g++") is None:
        return Check(
            subject="compiler",
            found="none",
            verdict="missing",
            advice="DeepSpeed asks for one; sudo apt-get install g++",
        )
    output = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False)
    return Check(subject="compiler", found=f"g++ {output.stdout.strip()}")


def _configs() -> Check:
    count = len(list(CONFIG_FOLDER.rglob("*.yaml")))
    if not count:
        return Check(subject="configs", found="none", verdict="missing", advice=f"{CONFIG_FOLDER} is empty")
    return Check(subject="configs", found=f"{count} files in {CONFIG_FOLDER}")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Check(subject="cores", found=str(cores), verdict="note", advice="the demo is made for two or more")
    return Check(subject="cores", found=str(cores))


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    found = f"{total / GIB:.1f} GiB"
    if total < MIN_MEMORY_BYTES:
        return Check(
            subject="memory",
            found=found,
            verdict="note",
            advice=f"the demo uses up to {MIN_MEMORY_BYTES // GIB} GiB",
        )
    return Check(subject="memory", found=found)


def _room(subject: str, folder: Path, needed: int, advice: str) -> Check:
    if not folder.is_dir():
        return Check(subject=subject, found="no such folder", verdict="missing", advice=advice)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < needed:
        return Check(subject=subject, found=found, verdict="note", advice=advice)
    return Check(subject=subject, found=found)


def _devices() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # a torch whose libraries do not load
        return Check(subject="devices", found="torch does not load", verdict="missing", advice=str(error))
    if not torch.cuda.is_available():
        return Check(subject="devices", found=f"CPU only, torch uses {torch.get_num_threads()} threads")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check(subject="devices", found=", ".join(names))
