"""Typed settings of a training run.

Durations are counted in images, so that the same file means the same training at any batch or number of
ranks.

What a training shows besides metrics.jsonl.
"""

from dataclasses import dataclass, field
from typing import Protocol

from nvg.errors import UserError
from pipelines.configuration import check


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Optional log to Weights & Biases by the main rank; ``metrics.jsonl`` is always written.

    Attributes:
        enabled: off by default.
        project: project name.
        group: experiment name shared by the runs of one experiment.
        mode: "offline" writes files to sync later, "online" sends.
    """

    enabled: bool = False
    project: str = "nvg"
    group: str = ""
    mode: str = "offline"

    def __post_init__(self) -> None:
        check(self.mode in ("offline", "online"), f"loop.wandb.mode is {self.mode!r}; choose offline or online")


@dataclass(frozen=True, kw_only=True)
class SampleSheetConfig:
    """Pictures of samples during a generator's training: the averaged weights, fixed classes and seed, with their maps.

    Attributes:
        every_steps: steps between two pictures, ``samples/step-….png`` in the run folder; null draws none.
        tokenizer: run or weights of the tokenizer that the records were made with; its decoder paints.
        partner: run or weights of the other generator. Content needs none: the maps are then those of records.
        num_images: samples on a picture, of as many classes.
        seed: of the samples.
    """

    every_steps: int | None = None
    tokenizer: str = ""
    partner: str = ""
    num_images: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            self.every_steps is None or self.every_steps > 0,
            f"samples.every_steps is {self.every_steps}; it must be above 0, or null",
        )
        check(self.num_images > 0, f"samples.num_images is {self.num_images}; it must be above 0")
        check(self.seed >= 0, f"samples.seed is {self.seed}; it must be 0 or more")
        check(
            self.every_steps is None or self.tokenizer != "",
            "samples.every_steps is set and samples.tokenizer empty; name the tokenizer's run",
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its warm-up, constant, decay schedule, the moving average and the batch.

    Attributes:
        lr: learning rate at factor 1.
        lr_factors: parameter name prefix to multiplier of the learning rate, e.g. {token_head: 20}: a layer
            with few inputs needs a larger one (Adam moves every weight by about lr a step).
        betas: the two decay rates of AdamW.
        eps: AdamW's epsilon.
        weight_decay: on tensors with two or more dimensions.
        gradient_clipping: largest 2-norm of the gradient; 0 clips nothing.
        total_images: length of the training in images.
        warmup_images: images over which the factor rises to 1.
        warmup_factor: factor at image 0 of the warm-up.
        decay_start: share of ``total_images`` at which the linear decay begins.
        decay_shape: "linear" or "cosine" (with ``decay_start`` 0 the tokenizer's schedule).
        final_factor: factor at the end.
        ema_half_life_images: half-life of the parameters' moving average, in images.
        global_batch: images per optimizer step over all ranks.
        micro_batch: images per forward pass of one rank; None takes the rank's whole share at once.

    DEVIATION: `lr_factors` is ours; the demo multiplies the token head's learning rate (docs/experiments.md), the
    published presets do not.

    Paper: App. A.5; Release: betas, weight decay, clipping
    """

    lr: float = 1e-4
    lr_factors: dict[str, float] = field(default_factory=dict)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.05
    gradient_clipping: float = 1.0
    total_images: int = 256_000
    warmup_images: int = 0
    warmup_factor: float = 0.005
    decay_start: float = 0.8
    decay_shape: str = "linear"
    final_factor: float = 0.1
    ema_half_life_images: float = 1_774_000.0
    global_batch: int = 256
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        check(self.lr > 0, f"optimizer.lr is {self.lr}; it must be above 0")
        check(
            all(factor > 0 for factor in self.lr_factors.values()),
            f"optimizer.lr_factors is {self.lr_factors}; every factor must be above 0",
        )
        check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optimizer.betas is {list(self.betas)}; expected two numbers in [0, 1)",
        )
        check(self.eps > 0, f"optimizer.eps is {self.eps}; it must be above 0")
        for name in ("weight_decay", "gradient_clipping", "warmup_images"):
            value = getattr(self, name)
            check(value >= 0, f"optimizer.{name} is {value}; it must be 0 or more")
        for name in ("total_images", "global_batch", "ema_half_life_images"):
            value = getattr(self, name)
            check(value > 0, f"optimizer.{name} is {value}; it must be above 0")
        for name in ("decay_start", "final_factor", "warmup_factor"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"optimizer.{name} is {value}; it must be between 0 and 1")
        check(
            self.decay_shape in ("linear", "cosine"),
            f"optimizer.decay_shape is {self.decay_shape!r}; choose linear or cosine",
        )
        check(
            self.warmup_images < self.total_images,
            f"optimizer.warmup_images is {self.warmup_images}; it must be below total_images={self.total_images}",
        )
        check(
            self.micro_batch is None or self.micro_batch > 0,
            f"optimizer.micro_batch is {self.micro_batch}; give a positive number or null",
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training (the last one may pass ``total_images``)."""
        return -(-self.total_images // self.global_batch)

    def accumulation_steps(self, world_size: int) -> int:
        """Forward passes per optimizer step of one rank.

        Raises:
            UserError: the global batch does not divide over ranks and micro batches.
        """
        share = self.global_batch // world_size
        micro_batch = share if self.micro_batch is None else self.micro_batch
        if share == 0 or micro_batch == 0 or share * world_size != self.global_batch or share % micro_batch:
            raise UserError(
                f"optimizer.global_batch={self.global_batch} does not divide over {world_size} ranks with "
                f"optimizer.micro_batch={self.micro_batch}; change one of them"
            )
        return share // micro_batch


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """What of DeepSpeed may be chosen; batch, clipping and precision follow from the rest.

    Attributes:
        zero_stage: 0 replicates everything; 1, 2, 3 shard optimizer states, gradients, parameters.
        bucket_elements: elements per communication bucket of ZeRO.
        offload_optimizer: keep moments and fp32 weights in host memory and update there; needs ZeRO 1 to 3.
        file: DeepSpeed JSON file of one's own whose other sections are used; what it says about settings
            that are typed here must agree.
    """

    zero_stage: int = 1
    bucket_elements: int = 50_000_000
    offload_optimizer: bool = False
    file: str | None = None

    def __post_init__(self) -> None:
        check(
            self.zero_stage in (0, 1, 2, 3),
            f"deepspeed.zero_stage is {self.zero_stage}; choose 0, 1, 2 or 3",
        )
        check(
            not self.offload_optimizer or self.zero_stage > 0,
            "deepspeed.offload_optimizer=true at deepspeed.zero_stage=0 has nothing to offload; choose 1, 2 or 3",
        )
        check(
            self.bucket_elements > 0,
            f"deepspeed.bucket_elements is {self.bucket_elements}; it must be above 0",
        )


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The training loop around the engine.

    Attributes:
        engine: "plain" (one process, no DeepSpeed) or "deepspeed".
        precision: "fp32"; "tf32": on a GPU, fp32 with convolutions and matrix products rounded to TF32; or "bf16": bf16
            matrix products over fp32 weights (autocast).
        seed: of initialisation, noise and data order.
        threads_per_rank: torch threads of each rank; null leaves torch's choice.
        log_every_steps: steps between rows of metrics.jsonl.
        checkpoint_every_steps: steps between checkpoints; one more is written at the end.
        keep_last: newest checkpoints that are kept.
        keep_every_steps: checkpoints whose step is a multiple of this are kept for good; null keeps none.
        validate_every_steps: steps between validation losses; null for none.
        max_validation_images: held-out images used for it.
        stop_after_steps: end this session (with a checkpoint) at this step, the schedule unchanged; null
            for none.
        max_skipped_steps: consecutive steps the engine may refuse (a gradient that is not finite) before the run
            stops.
        hang_timeout_s: a rank of which nothing is heard for so long writes its stack and ends; null waits for ever.
        accept_changed: settings, by their dotted names in the refusal, with which a run may go on although its
            checkpoint was made with others; noted in the checkpoints from then on.
        wandb: see :class:`WandbConfig`.
        tensorboard: write event files to ``tensorboard/`` in the run folder.
    """

    engine: str = "deepspeed"
    precision: str = "fp32"
    seed: int = 0
    threads_per_rank: int | None = None
    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    keep_last: int = 2
    keep_every_steps: int | None = None
    validate_every_steps: int | None = None
    max_validation_images: int = 1024
    stop_after_steps: int | None = None
    max_skipped_steps: int = 10
    hang_timeout_s: float | None = 3600.0
    accept_changed: list[str] = field(default_factory=list)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check(
            self.engine in ("plain", "deepspeed"),
            f"loop.engine is {self.engine!r}; choose plain or deepspeed",
        )
        check(
            self.precision in ("fp32", "tf32", "bf16"),
            f"loop.precision is {self.precision!r}; choose fp32, tf32 or bf16",
        )
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last", "max_validation_images"):
            value = getattr(self, name)
            check(value > 0, f"loop.{name} is {value}; it must be above 0")
        for name in (
            "threads_per_rank",
            "keep_every_steps",
            "validate_every_steps",
            "stop_after_steps",
            "hang_timeout_s",
        ):
            value = getattr(self, name)
            check(value is None or value > 0, f"loop.{name} is {value}; it must be above 0, or null")
        check(self.seed >= 0, f"loop.seed is {self.seed}; it must be 0 or more")
        check(
            self.max_skipped_steps >= 0,
            f"loop.max_skipped_steps is {self.max_skipped_steps}; it must be 0 or more",
        )


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Where the ranks run.

    Attributes:
        launcher: "process" runs in this process (also right under the deepspeed launcher and torchrun);
            "ray" starts the ranks through Ray Train.
        num_workers: ranks under Ray.
        cpus_per_worker, gpus_per_worker: resources of one rank under Ray.
        address: Ray cluster to join; null reads RAY_ADDRESS or starts one on this machine.
        max_failures: times that Ray may restart the ranks from the newest checkpoint.
    """

    launcher: str = "process"
    num_workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    address: str | None = None
    max_failures: int = 1

    def __post_init__(self) -> None:
        check(
            self.launcher in ("process", "ray"),
            f"launch.launcher is {self.launcher!r}; choose process or ray",
        )
        for name in ("num_workers", "cpus_per_worker"):
            value = getattr(self, name)
            check(value > 0, f"launch.{name} is {value}; it must be above 0")
        for name in ("gpus_per_worker", "max_failures"):
            value = getattr(self, name)
            check(value >= 0, f"launch.{name} is {value}; it must be 0 or more")


class RunConfig(Protocol):
    """The fields that every training's config has."""

    @property
    def run_folder(self) -> str:
        """Outputs."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW, schedule, batch."""
        ...

    @property
    def loop(self) -> LoopConfig:
        """Loop and engine."""
        ...

    @property
    def deepspeed(self) -> DeepSpeedConfig:
        """ZeRO."""
        ...

    @property
    def launch(self) -> LaunchConfig:
        """Where the ranks run."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The three typed parts the loop needs."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)

    @property
    def engine_name(self) -> str:
        """Engine as written into trainer.json: its states are not exchangeable."""
        return "plain" if self.loop.engine == "plain" else f"deepspeed-zero{self.deepspeed.zero_stage}"
