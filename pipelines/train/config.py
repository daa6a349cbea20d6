"""Typed settings that every training has: optimizer, loop and engine, where the ranks run, what is shown.

Durations are counted in images, so that the same file means the same training at any batch or number of ranks.
"""

from dataclasses import dataclass, field
from typing import Literal

from nvg.bounds import at_least, between, check_fields, positive, refuse
from nvg.errors import UserError
from nvg.precision import Device, Precision


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Optional log to Weights & Biases by the main rank; `metrics.jsonl` is always written.

    Attributes:
        group: experiment name shared by the runs of one experiment.
        mode: "offline" writes files to sync later, "online" sends.
    """

    enabled: bool = False
    project: str = "nvg"
    group: str = ""
    mode: Literal["offline", "online"] = "offline"

    def __post_init__(self) -> None:
        check_fields(self, "loop.wandb")


@dataclass(frozen=True, kw_only=True)
class SampleSheetConfig:
    """Pictures of samples during a generator's training: the averaged weights, fixed classes and seed, with their maps.

    Attributes:
        every_steps: steps between two pictures, `samples/step-….png` in the run folder; null draws none.
        tokenizer: run or weights of the tokenizer that the records were made with; its decoder paints.
        partner: run or weights of the other generator. Content needs none: the maps are then those of records.
        num_images: samples on a picture, of as many classes.
        seed: of the samples.
    """

    every_steps: int | None = positive(None)
    tokenizer: str = ""
    partner: str = ""
    num_images: int = positive(6)
    seed: int = at_least(0, 0)

    def __post_init__(self) -> None:
        check_fields(self, "samples")
        if self.every_steps is not None and not self.tokenizer:
            raise UserError("samples.every_steps is set and samples.tokenizer empty; name the tokenizer's run")


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
        decay_start: share of `total_images` at which the linear decay begins.
        decay_shape: "linear" or "cosine" (with `decay_start` 0 the tokenizer's schedule).
        final_factor: factor at the end.
        ema_half_life_images: half-life of the parameters' moving average, in images.
        ema_ramp: early on the half-life is at most this share of the images seen, so that short trainings forget their
            first weights; 0 keeps it constant, as published.
        global_batch: images per optimizer step over all ranks.
        micro_batch: images per forward pass of one rank; null takes the rank's whole share at once.

    DEVIATION: `lr_factors` is ours; the demo multiplies the token head's learning rate (docs/experiments.md), the
    published presets do not.

    Paper: App. A.5; Release: betas, weight decay, clipping
    """

    lr: float = positive(1e-4)
    lr_factors: dict[str, float] = positive({})
    betas: list[float] = between(0, 1, [0.9, 0.95])
    eps: float = positive(1e-8)
    weight_decay: float = at_least(0, 0.05)
    gradient_clipping: float = at_least(0, 1.0)
    total_images: int = positive(256_000)
    warmup_images: int = at_least(0, 0)
    warmup_factor: float = between(0, 1, 0.005)
    decay_start: float = between(0, 1, 0.8)
    decay_shape: Literal["linear", "cosine"] = "linear"
    final_factor: float = between(0, 1, 0.1)
    ema_half_life_images: float = positive(1_774_000.0)
    ema_ramp: float = between(0, 1, 0.1)
    global_batch: int = positive(256)
    micro_batch: int | None = positive(None)

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise refuse("optimizer.betas", list(self.betas), "two numbers in [0, 1)")
        if self.warmup_images >= self.total_images:
            raise refuse(
                "optimizer.warmup_images", self.warmup_images, f"fewer than optimizer.total_images={self.total_images}"
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training (the last one may pass `total_images`)."""
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

    zero_stage: Literal[0, 1, 2, 3] = 1
    bucket_elements: int = positive(50_000_000)
    offload_optimizer: bool = False
    file: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "deepspeed")
        if self.offload_optimizer and self.zero_stage == 0:
            raise UserError(
                "deepspeed.offload_optimizer=true at deepspeed.zero_stage=0 has nothing to offload; choose 1, 2 or 3"
            )


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The training loop around the engine.

    Attributes:
        engine: "plain" (one process, no DeepSpeed) or "deepspeed".
        precision: "fp32"; "tf32": on a GPU, fp32 with convolutions and matrix products rounded to TF32; or "bf16": bf16
            matrix products over fp32 weights (autocast).
        device: "auto" takes the rank's own GPU where there is one, under Ray where `launch.gpus_per_worker` is above 0.
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
        hang_timeout_s: a rank of which nothing is heard for so long writes its stack and ends; also the time that ranks
            wait for each other in a collective; null waits for ever.
        accept_changed: settings, by their dotted names in the refusal, with which a run may go on although its
            checkpoint was made with others; noted in the checkpoints from then on.
        tensorboard: write event files to `tensorboard/` in the run folder.
    """

    engine: Literal["plain", "deepspeed"] = "deepspeed"
    precision: Precision = "fp32"
    device: Device = "auto"
    seed: int = at_least(0, 0)
    threads_per_rank: int | None = positive(None)
    log_every_steps: int = positive(50)
    checkpoint_every_steps: int = positive(1000)
    keep_last: int = positive(2)
    keep_every_steps: int | None = positive(None)
    validate_every_steps: int | None = positive(None)
    max_validation_images: int = positive(1024)
    stop_after_steps: int | None = positive(None)
    max_skipped_steps: int = at_least(0, 10)
    hang_timeout_s: float | None = positive(3600.0)
    accept_changed: list[str] = field(default_factory=list)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "loop")


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

    launcher: Literal["process", "ray"] = "process"
    num_workers: int = positive(1)
    cpus_per_worker: float = positive(1.0)
    gpus_per_worker: float = at_least(0, 0.0)
    address: str | None = None
    max_failures: int = at_least(0, 1)

    def __post_init__(self) -> None:
        check_fields(self, "launch")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the configuration of every training has.

    Attributes:
        run_folder: outputs; starting again with the same folder resumes.
        optimizer, loop, deepspeed, launch: see their classes.
    """

    run_folder: str
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    @property
    def last_step(self) -> int:
        """The step that this session ends after."""
        return min(self.optimizer.num_steps, self.loop.stop_after_steps or self.optimizer.num_steps)

    def check_ranks(self, world_size: int) -> None:
        """Raises UserError unless engine and batch fit so many ranks."""
        if self.loop.engine == "plain" and world_size > 1:
            raise UserError(
                f"loop.engine=plain runs one rank, found {world_size} in WORLD_SIZE; set loop.engine=deepspeed, or "
                "without a launcher: unset WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE"
            )
        self.optimizer.accumulation_steps(world_size)

    @property
    def engine_name(self) -> str:
        """Engine as written into trainer.json: its states are not exchangeable."""
        return "plain" if self.loop.engine == "plain" else f"deepspeed-zero{self.deepspeed.zero_stage}"
