"""The DeepSpeed dictionary, derived from the typed settings of a run and a JSON file of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nvg.errors import UserError
from nvg.json_files import read_json
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig

_NOT_OURS = ("optimizer", "scheduler", "elasticity")


def deepspeed_dict(
    *, optimizer: OptimizerConfig, loop: LoopConfig, deepspeed: DeepSpeedConfig, world_size: int
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize` (JSON types), every setting whose default moved upstream written out.

    Raises:
        UserError: the user's JSON file contradicts the typed configuration (both sides are named) or is
            unreadable.
    """
    accumulation = optimizer.accumulation_steps(world_size)
    stage = deepspeed.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero |= {"contiguous_gradients": True, "overlap_comm": False, "reduce_bucket_size": deepspeed.bucket_elements}
    if stage in (1, 2):
        zero |= {"reduce_scatter": True, "allgather_bucket_size": deepspeed.bucket_elements}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": False}
    if deepspeed.offload_optimizer:
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    derived: dict[str, Any] = {
        "train_batch_size": optimizer.global_batch,
        "train_micro_batch_size_per_gpu": optimizer.global_batch // world_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.gradient_clipping,
        "prescale_gradients": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW updates on the host as well
        "zero_optimization": zero,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {
            "enabled": loop.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if deepspeed.file is None:
        return derived
    return _merge_user_file(derived, Path(deepspeed.file))


def _merge_user_file(derived: dict[str, Any], file: Path) -> dict[str, Any]:
    """The derived dictionary plus the sections that only the user's file has; contradictions are refused."""
    given = read_json(file, dict[str, Any], "DeepSpeed's settings", "change deepspeed.file")
    conflicts: list[str] = []
    merged = _merge(derived, given, "", conflicts)
    if conflicts:
        raise UserError(
            f"deepspeed.file={file} contradicts the run's configuration:\n  "
            + "\n  ".join(conflicts)
            + '\nchange the file (the word "auto" always fits) or the typed setting'
        )
    return merged


def _merge(ours: dict[str, Any], given: dict[str, Any], prefix: str, conflicts: list[str]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in given.items():
        name = f"{prefix}{key}"
        if not prefix and key in _NOT_OURS:
            conflicts.append(f"{name}: the optimizer and its schedule come from `optimizer.*`; remove this section")
        elif value == "auto":
            continue
        elif key not in ours:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(ours[key], dict):
            merged[key] = _merge(ours[key], value, f"{name}.", conflicts)
        elif value != ours[key]:
            conflicts.append(f"{name}: the file says {value!r}, the run says {ours[key]!r}")
    return merged
