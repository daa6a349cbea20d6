"""One face for three engines: the plain one of `nvg.training`, DeepSpeed without ZeRO, and DeepSpeed with it.

The step sees forward, backward, update and the two questions after an update (was it applied, how long was the
gradient); what differs (accumulation, precision, partitioned parameters, saving) stays here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cluster.ranks import Ranks, device_for_deepspeed, settle_deepspeed
from nvg.checkpoints.runs import checkpoints_in
from nvg.errors import UserError
from nvg.training import PlainEngine, parameter_groups
from pipelines.train.config import OptimizerConfig, RunConfig
from pipelines.train.deepspeed_settings import deepspeed_dict


def trained_modules(objective: Any) -> list[nn.Module]:
    """What an objective's optimizer moves: its network, and the head that aligns it where there is one."""
    alignment = getattr(objective, "alignment", None)
    return [objective.network] if alignment is None else [objective.network, alignment]


def build_optimizer(modules: list[nn.Module], config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with fused updates (no compilation at run time on any device), decay on tensors of two or more dimensions.

    Args:
        modules: what is trained, the network first; it alone has learning rate factors.
        config: learning rate, betas, weight decay.
        device: where the weights are.
    """
    network, *others = modules
    groups = parameter_groups(network, config.weight_decay, config.lr_factors)
    for other in others:
        groups += parameter_groups(other, config.weight_decay)
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),
    )


class TrainingEngine(Protocol):
    """What step and saving need of an engine."""

    folder_name: str
    optimizer: Any

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and its named parts for one micro batch."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add this micro batch's share of the gradient."""
        ...

    def step(self, *, last: bool, want_grad_norm: bool) -> float | None:
        """Finish a micro batch, update the weights on the `last`; the gradient's norm if wanted."""
        ...

    def was_step_applied(self) -> bool:
        """Whether the last update changed the weights."""
        ...

    def whole_parameters(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the network's parameters are complete on every rank."""
        ...

    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give a parameter another value, the same on all ranks (all ranks call); ZeRO 0 to 2."""
        ...

    def save(self, folder: Path, client_state: dict[str, Any]) -> list[Path]:
        """Write what resuming needs (all ranks call); the files that this rank wrote."""
        ...

    def load(self, folder: Path) -> None:
        """Read it back (all ranks call)."""
        ...


class _Wrapping:
    """What is the same of an engine of our own and one of DeepSpeed: parameters are whole on every rank."""

    engine: Any

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def was_step_applied(self) -> bool:
        return self.engine.was_step_applied()

    def whole_parameters(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @torch.no_grad()
    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.copy_(value)


class _Plain(_Wrapping):
    """`nvg.training.PlainEngine`: one process, no process group, nothing to compile."""

    folder_name = "plain"

    def __init__(self, objective: Any, optimizer: OptimizerConfig, config: RunConfig, ranks: Ranks) -> None:
        self.objective, self.device = objective, ranks.device
        self.optimizer = build_optimizer(trained_modules(objective), optimizer, ranks.device)
        self.engine = PlainEngine(
            objective,
            self.optimizer,
            gradient_clipping=optimizer.gradient_clipping,
            accumulation_steps=optimizer.accumulation_steps(1),
        )
        self.bf16 = config.loop.precision == "bf16"

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.engine(batch, noise)

    def step(self, *, last: bool, want_grad_norm: bool) -> float | None:
        self.engine.step()
        return self.engine.get_global_grad_norm() if last and want_grad_norm else None

    def save(self, folder: Path, client_state: dict[str, Any]) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "global_steps": self.engine.global_steps,
            "client_state": client_state,
        }
        torch.save(state, folder / "plain.pt")
        return [folder / "plain.pt"]

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "plain.pt", map_location=self.device, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.engine.global_steps = state["global_steps"]


class _DeepSpeed(_Wrapping):
    """`deepspeed.initialize` around the objective, with our AdamW as client optimizer."""

    folder_name = "deepspeed"

    def __init__(
        self, objective: Any, optimizer: OptimizerConfig, config: RunConfig, ranks: Ranks, **checkpoint: Any
    ) -> None:
        import deepspeed  # here: it probes compilers and devices, which the plain engine does not need

        settle_deepspeed(ranks)
        settings = deepspeed_dict(
            optimizer=optimizer, loop=config.loop, deepspeed=config.deepspeed, world_size=ranks.world_size
        )
        self.objective, self.modules, self.device = objective, trained_modules(objective), ranks.device
        self.optimizer: Any = build_optimizer(self.modules, optimizer, ranks.device)
        self.engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=self.optimizer,
            args=device_for_deepspeed(ranks, config.deepspeed.zero_stage),
            config={**settings, "checkpoint": {**settings.get("checkpoint", {}), **checkpoint}},
        )
        ranks.settle_timeouts()
        self.writer = _NotingWriter(self.engine.checkpoint_engine)
        self.engine.checkpoint_engine = self.writer

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.engine(batch, noise)

    def step(self, *, last: bool, want_grad_norm: bool) -> float | None:
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if last and want_grad_norm else None
        return None if norm is None else float(norm)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for module in self.modules for parameter in module.parameters()]

    def save(self, folder: Path, client_state: dict[str, Any]) -> list[Path]:
        self.writer.written = []
        # DeepSpeed moves its `latest` before the other ranks have finished; ours moves after all have.
        self.engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state=client_state, save_latest=False)
        return self.writer.written

    def load(self, folder: Path) -> None:
        loaded, _ = self.engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            raise UserError(f"DeepSpeed found nothing to load in {folder}; remove this checkpoint folder")


class _NotingWriter:
    """What DeepSpeed writes and reads checkpoints with, and which files this rank wrote."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.written: list[Path] = []

    def save(self, state_dict: Any, path: str) -> Any:
        self.written.append(Path(path))
        return self.writer.save(state_dict, path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class _Replicated(_DeepSpeed):
    """Without ZeRO: DeepSpeed tells no norm and would take a gradient that is not finite; here it is averaged."""

    refused = False

    def step(self, *, last: bool, want_grad_norm: bool) -> float | None:
        if not last:
            return super().step(last=False, want_grad_norm=False)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        # Fused AdamW leaves weights, moments and its count of steps alone where this is 1.
        self.optimizer.found_inf = (~torch.isfinite(norm)).float().to(self.device)
        self.engine.step()
        del self.optimizer.found_inf
        self.refused = not bool(torch.isfinite(norm))
        return float(norm)

    def was_step_applied(self) -> bool:
        return super().was_step_applied() and not self.refused


class _Sharded(_DeepSpeed):
    """ZeRO 1 to 3; `universal` where it will load states that were converted for another number of ranks."""

    def __init__(
        self, objective: Any, optimizer: OptimizerConfig, config: RunConfig, ranks: Ranks, universal: bool
    ) -> None:
        super().__init__(objective, optimizer, config, ranks, load_universal=universal)
        self.stage, self.universal = config.deepspeed.zero_stage, universal

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[None]:
        from deepspeed import zero

        with zero.GatheredParameters(self.parameters(), enabled=self.stage == 3):
            yield

    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        super().set_parameter(parameter, value)  # what the next forward pass reads
        safe_set_full_fp32_param(parameter, value)  # what the next update starts from

    def load(self, folder: Path) -> None:
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        super().load(folder)
        if self.universal:
            self._load_buffers(folder)
            # At ZeRO-3 every group gets the settings of the first, and all share one count of steps.
            for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(settings)
            for state in self.optimizer.state.values():
                state["step"] = state["step"].clone()
        # Loading leaves small parameters whole. DeepSpeed notes which parameters a module borrows of its children when
        # the first forward pass meets them partitioned; noted later, they contradict the order it has recorded.
        self.engine.empty_partition_cache()

    @torch.no_grad()
    def _load_buffers(self, folder: Path) -> None:
        """Universal checkpoints restore parameters and moments; averages and counters of the objective are buffers."""
        file = sorted(folder.glob("*model_states.pt"))[0]
        module = torch.load(file, map_location=self.device, weights_only=False)["module"]
        for name, buffer in self.objective.named_buffers():
            if name in module:
                buffer.copy_(module[name])


def build_engine(
    objective: Any, optimizer: OptimizerConfig, config: RunConfig, ranks: Ranks, *, universal: bool = False
) -> TrainingEngine:
    """The engine that the configuration asks for.

    Args:
        objective: module whose `network` holds the trained parameters, on the rank's device.
        optimizer: of this objective; the run's own unless it is the adversary's.
        config: engine, precision, ZeRO.
        ranks: this rank.
        universal: whether it will load states that were converted for another number of ranks.
    """
    if config.loop.engine == "plain":
        return _Plain(objective, optimizer, config, ranks)
    if config.deepspeed.zero_stage == 0:
        return _Replicated(objective, optimizer, config, ranks)
    return _Sharded(objective, optimizer, config, ranks, universal)


@contextlib.contextmanager
def advice_on_devices(name: str, checkpoints: Path) -> Iterator[None]:
    """Turn a device that is out of memory, or that fails, into a message that says what to do.

    Args:
        name: of the training.
        checkpoints: the newest one is named where a device fails.

    Raises:
        UserError: the device is out of memory; it or the way to the other ranks is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name}: the device is out of memory: {error}\nless at a time: optimizer.micro_batch, "
            "loss.stages_per_image (generators); less kept for the backward pass: compute.recompute_activations=true "
            "(generators); less on every device: deepspeed.zero_stage=1, 2 or 3, deepspeed.offload_optimizer=true; "
            "half as wide: loop.precision=bf16"
        ) from error
    except (torch.AcceleratorError, torch.distributed.DistBackendError) as error:
        there = checkpoints_in(checkpoints)
        kept = f"{there[0]} is the newest checkpoint" if there else "there is no checkpoint yet"
        raise UserError(
            f"{name}: a device failed: {str(error).strip().splitlines()[0]}\n{kept}; start the same command again to "
            "go on. Whether the GPU is still there: `nvidia-smi`, `nvg doctor`; why it failed: `dmesg` (lines with Xid)"
        ) from error
