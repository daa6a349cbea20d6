"""In what precision is computed: what null stands for, what a device has, and what the process rounds to."""

import pytest
import torch

from nvg.errors import UserError
from nvg.precision import resolve_precision, round_to_tf32, settle_precision, without_tf32


def rounding() -> tuple[bool, bool]:
    return bool(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def process_is_left_as_found():
    """The rounding of the process, as the test found it."""
    before = rounding()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def make_gpu(monkeypatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


def test_null_is_what_a_device_is_good_at():
    assert [resolve_precision(None, device) for device in ("cpu", "cuda")] == ["fp32", "bf16"]
    assert [resolve_precision(wanted, "cuda") for wanted in ("fp32", "tf32", "bf16")] == ["fp32", "tf32", "bf16"]
    assert resolve_precision("bf16", "cpu") == "bf16"
    with pytest.raises(UserError, match=r"precision is 'tf32'; expected fp32 or bf16 on a CPU.*set precision=fp32"):
        resolve_precision("tf32", "cpu")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_that_is_too_old_is_named_with_the_key(monkeypatch, precision):
    make_gpu(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(
        UserError, match=rf"precision is '{precision}'; expected fp32: Tesla T4 has .*7\.5; bf16 and TF32 begin"
    ):
        settle_precision(precision, "cuda")
    settle_precision("fp32", "cuda")
    make_gpu(monkeypatch, "A100", (8, 0))
    settle_precision(precision, "cuda")


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_the_process_rounds_where_the_precision_says_so(monkeypatch, precision, rounded):
    make_gpu(monkeypatch, "H100", (9, 0))
    round_to_tf32(not rounded)
    settle_precision(precision, "cuda")
    assert rounding() == (rounded, rounded)


def test_what_scores_are_made_of_is_not_rounded():
    round_to_tf32(True)
    with without_tf32():
        assert rounding() == (False, False)
    with pytest.raises(KeyError), without_tf32():
        raise KeyError
    assert rounding() == (True, True)
