"""What an ablation study trains, records and draws: everything once, however many variants use it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.session import SessionConfig
from eval.features.small_network import FeatureTrainingConfig
from eval.pool.pool import PoolConfig
from nvg.bounds import at_least, check_fields, refuse
from nvg.errors import UserError
from nvg.precision import Precision, resolve_precision
from nvg.sampling import SamplingConfig
from nvg.tokenizer.tokenizer import GRANULARITY, STRUCTURES
from pipelines.configuration import load_config
from pipelines.precompute.config import PrecomputeConfig
from pipelines.train.generator import ContentRun, GeneratorRunConfig, StructureRun
from pipelines.train.tokenizer import TokenizerRunConfig

_BASE = "base"
_SPLITS = ("train", "test")
_CONTENT_SWITCHES = ("content_input", "prediction", "structure_rope")
_STRUCTURE_SWITCHES = ("structure_input", "structure_rope")


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """An ablation study: one budget, several switches, several seeds.

    Attributes:
        folder: where everything goes.
        seeds: of the generators' trainings and samples; tokenizer and records are shared by all.
        variants: name of a file in configs/ablations, whose switches are taken, to the structure of its tokenizer,
            "granularity" or "spatial"; one of them is "base".
        num_parallel: trainings at the same time.
        tokenizer, precompute: of which `run_folder`, `tokenizer`, `output`, structure and split are filled in.
        content, structure: the budget of every training of that kind; folder, records, seed and switches are filled in.
        sampling: of all variants; by default that of Table 2.
        precision, compile: of the sampling, as in `nvg eval generator`.
        pool: samples of every variant and seed; its seed is the variant's.
        feature_training: of the network whose features FID compares; one for all variants.
        session: the Ray cluster of precompute and sampling.

    Paper: Table 2, §3.2
    """

    folder: str = "runs/ablate"
    seeds: list[int] = at_least(0, [0, 1, 2])
    variants: dict[str, str] = field(default_factory=lambda: {_BASE: GRANULARITY})
    num_parallel: int = at_least(1, 2)
    tokenizer: TokenizerRunConfig = field(default_factory=TokenizerRunConfig)
    precompute: PrecomputeConfig = field(
        default_factory=lambda: PrecomputeConfig(tokenizer="runs/ablate", output="runs/ablate")
    )
    content: ContentRun = field(default_factory=ContentRun)
    structure: StructureRun = field(default_factory=StructureRun)
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(
            content_guidance=1.5, structure_guidance=1.5, constant_guidance=True, top_p_last=1.0
        )
    )
    precision: Precision | None = None
    compile: bool = False
    pool: PoolConfig = field(default_factory=PoolConfig)
    feature_training: FeatureTrainingConfig = field(default_factory=FeatureTrainingConfig)
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        resolve_precision(self.precision, self.pool.device)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise refuse("seeds", list(self.seeds), "at least one number, all different")
        if self.variants.get(_BASE) != GRANULARITY:
            raise refuse("variants", dict(self.variants), f"{_BASE!r}: {GRANULARITY} among them")
        if odd := {name: kind for name, kind in self.variants.items() if kind not in STRUCTURES}:
            raise refuse("variants", odd, f"one of {', '.join(STRUCTURES)} for each")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant with one seed: the names of its trainings (structure None where maps are spatial)."""

    variant: str
    seed: int
    structure_kind: str
    content: str
    structure: str | None


@dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """Everything by name, in the order of work.

    Attributes:
        tokenizers: structure kind to training.
        records: (structure kind, split) to precompute job.
        trainings: name to generator training, seed after seed.
        cells: what is drawn and scored.
    """

    tokenizers: dict[str, TokenizerRunConfig]
    records: dict[tuple[str, str], PrecomputeConfig]
    trainings: dict[str, GeneratorRunConfig]
    cells: list[Cell]


def make_plan(config: AblateConfig) -> AblationPlan:
    """Find out what has to be trained; a generator that no switch of a variant touches is the base's.

    Raises:
        UserError: a variant has no file below configs/ablations, or a file that is wrong.
    """
    kinds = [kind for kind in STRUCTURES if kind in config.variants.values()]
    tokenizers = {kind: _tokenizer(config, kind) for kind in kinds}
    records = {(kind, split): _records(config, kind, split) for kind in kinds for split in _SPLITS}
    switches = {name: _switches(name) for name in sorted(config.variants, key=lambda name: name != _BASE)}
    trainings: dict[str, GeneratorRunConfig] = {}
    cells: list[Cell] = []
    for seed in config.seeds:
        names: dict[str, str] = {}  # of the trainings of this seed, by what they switch
        for variant, (content, structure) in switches.items():
            kind = config.variants[variant]
            runs: dict[str, GeneratorRunConfig] = {
                "content": replace(config.content, content=replace(config.content.content, **content))
            }
            if kind == GRANULARITY:
                runs["structure"] = replace(
                    config.structure, structure=replace(config.structure.structure, **structure)
                )
            chosen: dict[str, str] = {}
            for part, run in runs.items():
                chosen[part] = names.setdefault(repr((kind, run)), f"{part}-{variant}-seed{seed}")
                trainings.setdefault(chosen[part], _training(config, run, chosen[part], kind, seed))
            cells.append(
                Cell(
                    variant=variant,
                    seed=seed,
                    structure_kind=kind,
                    content=chosen["content"],
                    structure=chosen.get("structure"),
                )
            )
    return AblationPlan(tokenizers=tokenizers, records=records, trainings=trainings, cells=cells)


def _switches(variant: str) -> tuple[dict[str, object], dict[str, object]]:
    """Switches of the content and of the structure generator in a variant's file."""
    try:
        file = f"ablations/{variant}.yaml"  # for both commands
        content = load_config(ContentRun, file, ["kind=content"]).content
        structure = load_config(StructureRun, file, ["kind=structure"]).structure
    except UserError as error:
        raise UserError(f"variants: {variant} cannot be read from configs/ablations/{variant}.yaml: {error}") from error
    return (
        {name: getattr(content, name) for name in _CONTENT_SWITCHES},
        {name: getattr(structure, name) for name in _STRUCTURE_SWITCHES},
    )


def _tokenizer(config: AblateConfig, kind: str) -> TokenizerRunConfig:
    """The spatial one has the budget and the seed of the other: a codebook learned on other maps would not be fair."""
    model = replace(config.tokenizer.model, structure=kind)
    return replace(config.tokenizer, model=model, run_folder=str(Path(config.folder) / f"tokenizer-{kind}"))


def _records(config: AblateConfig, kind: str, split: str) -> PrecomputeConfig:
    return replace(
        config.precompute,
        tokenizer=str(Path(config.folder) / f"tokenizer-{kind}"),
        output=str(_records_folder(config, kind, split)),
        source=replace(config.precompute.source, split=split),
        session=config.session,
    )


def _records_folder(config: AblateConfig, kind: str, split: str) -> Path:
    """Where the records of a split lie, made with the tokenizer of a kind of structure."""
    return Path(config.folder) / f"records-{kind}" / split


def _training(config: AblateConfig, run: GeneratorRunConfig, name: str, kind: str, seed: int) -> GeneratorRunConfig:
    return replace(
        run,
        run_folder=str(Path(config.folder) / "trainings" / name),
        data=replace(run.data, path=str(_records_folder(config, kind, "train"))),
        validation_path=str(_records_folder(config, kind, "test")),
        loop=replace(run.loop, seed=seed),
    )


def describe_plan(config: AblateConfig, plan: AblationPlan) -> list[str]:
    """The steps, for a dry run: one line each."""
    parts = {part: sum(run.kind == part for run in plan.trainings.values()) for part in ("content", "structure")}
    steps = {
        part: run.optimizer.num_steps for part, run in (("content", config.content), ("structure", config.structure))
    }
    kinds = " and ".join(plan.tokenizers)
    return [
        f"train {len(plan.tokenizers)} tokenizer(s) ({kinds}) of {config.tokenizer.optimizer.num_steps} steps",
        f"precompute {len(plan.records)} record sets ({', '.join(f'{kind} {split}' for kind, split in plan.records)})",
        f"train {len(plan.trainings)} generators, {config.num_parallel} at a time: {parts['content']} content of "
        f"{steps['content']} steps, {parts['structure']} structure of {steps['structure']} steps",
        *(
            f"  seed {seed}: " + ", ".join(name for name, run in plan.trainings.items() if run.loop.seed == seed)
            for seed in config.seeds
        ),
        f"score all on held-out records; draw and score {config.pool.num_samples} samples for each of "
        f"{len(plan.cells)} variants and seeds",
        f"write ablation.md, ablation.json and ablation.png in {config.folder}",
    ]
