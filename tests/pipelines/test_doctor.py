"""The doctor tells what is there and fails only for what is needed."""

from __future__ import annotations

import io
from collections import namedtuple

from rich.console import Console

from pipelines import doctor

Usage = namedtuple("Usage", "total used free")


def test_versions_are_compared_with_the_requirement():
    assert doctor.package_check("numpy>=1").verdict == "ok"
    old = doctor.package_check("numpy>=900")
    assert old.verdict == "missing"
    assert ">=900" in old.advice
    assert doctor.package_check("surely-not-installed").found == "not installed"


def test_report_names_every_subject_and_the_exit_code_follows(monkeypatch, tmp_path):
    console = Console(record=True, width=160, file=io.StringIO())
    code = doctor.run_doctor(console, tmp_path)
    text = console.export_text()
    for subject in (
        "Python",
        "torch",
        "deepspeed",
        "ray",
        "compiler",
        "/dev/shm",
        "disk here",
        "cores",
        "devices",
    ):
        assert subject in text
    assert code == int("missing" in text)
    monkeypatch.setattr(doctor, "_packages", lambda: iter([doctor.package_check("surely-not-installed")]))
    assert doctor.run_doctor(console, tmp_path) == 1


def test_little_room_is_a_note_with_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(2**30, 2**30, 0))
    check = doctor._room("/dev/shm", tmp_path, 2**20, "use --shm-size")
    assert (check.verdict, check.advice) == ("note", "use --shm-size")


def test_a_missing_compiler_is_named_as_a_package(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    check = doctor._compiler()
    assert check.verdict == "missing"
    assert "apt-get install g++" in check.advice


def test_a_folder_too_long_for_sockets_is_named(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch")
    assert doctor._sockets().verdict == "ok"
    monkeypatch.setenv("TMPDIR", "/" + "t" * 134)
    check = doctor._sockets()
    assert (check.verdict, check.found) == ("note", "TMPDIR: 135 bytes")
    assert "/tmp is used; RAY_TMPDIR" in check.advice
    monkeypatch.setenv("RAY_TMPDIR", "/" + "t" * 60)
    assert doctor._sockets().verdict == "missing"
