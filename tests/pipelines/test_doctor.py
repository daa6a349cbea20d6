"""The doctor tells what is there and fails only for what is needed."""

from __future__ import annotations

import io
from collections import namedtuple

import torch
import torch.distributed as dist
from pretend_device import pretend_gpu
from rich.console import Console

from pipelines import doctor

Usage = namedtuple("Usage", "total used free")


def test_versions_are_compared_with_the_requirement():
    assert doctor.package_check("numpy>=1").verdict == "ok"
    old = doctor.package_check("numpy>=900")
    assert old.verdict == "missing"
    assert ">=900" in old.advice
    assert doctor.package_check("surely-not-installed").found == "not installed"


def test_what_the_commands_need_is_looked_at_once_and_the_other_extras_are_not(monkeypatch):
    asked = ["torch>=1", "surely-a; extra == 'train'", "numpy>=1; extra == 'train'", "numpy>=1; extra == 'eval'"]
    asked += ["surely-b; extra == 'app'", "surely-c; python_version < '3'", "nvg[train]; extra == 'all'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    found = {check.subject: check for check in doctor._packages()}
    assert list(found) == ["nvg", "torch", "surely-a", "numpy"]
    assert found["surely-a"].verdict == "missing"
    assert found["surely-a"].advice == 'pip install "nvg[train,eval]", or `make setup` in a clone'


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


def checks_on_a_gpu(monkeypatch, **given):
    """What is said of a pretend GPU; NCCL's group of one rank is one of gloo."""
    begin, sum_up = dist.init_process_group, dist.all_reduce

    def one_rank(backend, device_id, **rest):
        assert (backend, device_id.type) == ("nccl", "cuda")
        begin("gloo", **rest)

    with monkeypatch.context() as patch, pretend_gpu(**given):
        patch.setattr(dist, "init_process_group", one_rank)
        patch.setattr(dist, "all_reduce", lambda value: sum_up(torch.ones(8)))
        return {check.subject: check for check in doctor._devices()}


def test_a_gpu_is_tried_and_not_only_named(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    checks = checks_on_a_gpu(monkeypatch)
    assert "Pretend GPU, compute capability 9.0" in checks["cuda:0"].found
    assert f"cuDNN {torch.backends.cudnn.version()}" in checks["cuda:0"].found
    tried = {name: check.found for name, check in checks.items() if name != "cuda:0"}
    assert tried == {
        "cuda:0 Triton": "ok",
        "cuda:0 bf16 product": "works",
        "cuda:0 attention": "works",
        "NCCL": "works",
    }
    assert {check.verdict for check in checks.values()} == {"ok"}
    assert not dist.is_initialized()


def test_what_is_wrong_with_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)

    def attention(*_):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED\nException raised from ...")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    checks = checks_on_a_gpu(monkeypatch, capability=(7, 0))
    assert (checks["cuda:0"].verdict, checks["cuda:0 Triton"].verdict) == ("note", "note")
    assert "7.0; bf16 and TF32 begin at 8.0; loop.precision=fp32" in checks["cuda:0"].advice
    assert "Triton is not installed; set compute.compile=false" in checks["cuda:0 Triton"].advice
    failed = checks["cuda:0 attention"]
    assert (failed.verdict, failed.found) == ("missing", "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")
    assert "LD_LIBRARY_PATH" in failed.advice
    old = checks_on_a_gpu(monkeypatch, capability=(6, 1))["cuda:0 Triton"]
    assert "6.1; Triton begin at 7.0" in old.advice


def test_wrong_numbers_are_no_success(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: one)
    check = doctor._tried("product", lambda: doctor._product(torch.device("cpu")), "advice")
    assert (check.verdict, check.found) == ("missing", "wrong numbers: off by 255 of 256")


def test_a_gpu_that_torch_does_not_see_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_DRIVER_FILE", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (check,) = doctor._devices()
    assert check.verdict == "note"
    assert "torch and its driver do not fit" in check.advice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (check,) = doctor._devices()
    assert check.verdict == "ok"
    assert check.found.startswith("CPU only")
