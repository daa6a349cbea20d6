"""What a training shows besides metrics.jsonl."""

from dataclasses import dataclass

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
