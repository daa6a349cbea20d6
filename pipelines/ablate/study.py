"""`nvg ablate`: the ablations of the paper's Table 2 at demo scale, with one budget for all variants.

`run_ablate` trains, draws and scores: held-out losses of each variant's generators, and scores of what they draw.
Tokenizers, records, trainings and samples are files below one folder; whatever is finished is passed over, so that the
same command goes on where it was stopped.
Legend: N sequences, L positions, K structure channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from rich.console import Console
from rich.rule import Rule
from torch import Tensor

from cluster.files import write_atomically
from cluster.session import cluster_session
from eval.evaluation import EvaluationData, pool_images, prepare_extractor, reconstruct
from eval.features import ExtractorConfig, build_extractor, extract
from eval.image_sets import ImageSet
from eval.pool.jobs import run_pool
from eval.pool.samplers import GeneratorSpec
from eval.results import threads
from eval.scores import class_accuracy, frechet_distance, train_judge
from nvg.checkpoints import load_network, weights_hash
from nvg.checkpoints.runs import generators, require_tokenizer, resolve_checkpoint, weights_folder
from nvg.errors import UserError
from nvg.json_files import read_json
from nvg.models import ContentGenerator, StructureGenerator
from nvg.precision import resolve_precision
from nvg.records import RecordDataset
from nvg.tokenizer import Dequantizer
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from pipelines.ablate.plan import AblateConfig, AblationPlan, Cell, make_plan
from pipelines.ablate.report import Reference, write_result
from pipelines.evaluate.images import load_data
from pipelines.precompute.job import precompute
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.drivers import train_queue
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.tokenizer import TokenizerRunConfig

_HELD_OUT_FILE = "held-out.json"
_SCORING_BATCH = 99
_SCORING_SEED = 0
_ALL_STAGES = GeneratorLossConfig(class_dropout_prob=0.0)


class _HeldOut(TypedDict):
    weights: str
    scores: dict[str, float]


def _held_out_scores(run: GeneratorRunConfig) -> dict[str, float]:
    """Losses of a finished training on all held-out records and all stages, EMA weights, no drop path.

    Noise is the same for every run, so two runs differ by their networks alone. A velocity error counts the channels
    of splits not yet known, since the known ones are given to some networks and not to others.

    Args:
        run: a finished training; kept beside its checkpoints under the hash of its weights.

    Returns:
        cross_entropy and cross_entropy_0.. of content, velocity and velocity_0.. of structure; validation_rise, by how
        much the training's own validation loss ended above its lowest value.
    """
    checkpoint = resolve_checkpoint(run.run_folder)
    file, key = Path(run.run_folder) / _HELD_OUT_FILE, weights_hash(checkpoint, "ema")
    with suppress(UserError):  # none yet, or damaged: it is a matter of minutes
        known: Any = read_json(file, _HeldOut, "losses of an earlier start", "")
        if known["weights"] == key:
            return known["scores"]
    assert run.validation_path is not None
    records = RecordDataset.open(run.validation_path)
    dequantizer = load_network(Dequantizer, run.data.path, "dequantizer")
    with torch.no_grad():
        if run.kind == "content":
            objective = ContentObjective(load_network(ContentGenerator, checkpoint), dequantizer, _ALL_STAGES)
            scores = _cross_entropies(objective.eval(), records)
        else:
            network = load_network(StructureGenerator, checkpoint)
            scores = _velocity_errors(StructureObjective(network, dequantizer, _ALL_STAGES).eval(), records)
    losses = [
        row["validation_loss"] for row in read_metrics(Path(run.run_folder)) if row.get("validation_loss") is not None
    ]
    if losses:
        scores["validation_rise"] = losses[-1] - min(losses)
    write_atomically(file, json.dumps({"weights": key, "scores": scores}, indent=2).encode())
    return scores


def _cross_entropies(objective: ContentObjective, records: RecordDataset) -> dict[str, float]:
    names = [f"cross_entropy_{stage}" for stage in range(objective.network.layout.num_stages)]
    total = dict.fromkeys(names, 0.0)
    for batch, noise in _batches(objective, records):
        metrics = objective(batch, noise)[1]
        for name in names:
            total[name] += float(metrics[name][0])
    per_stage = {name: value / len(records) for name, value in total.items()}
    return {"cross_entropy": float(np.mean(list(per_stage.values()))), **per_stage}


def _velocity_errors(objective: StructureObjective, records: RecordDataset) -> dict[str, float]:
    stages = range(objective.network.layout.num_structure_stages)
    total = dict.fromkeys(stages, 0.0)
    for batch, noise in _batches(objective, records):
        error_NLK, stage_N = objective.squared_errors(batch, noise)
        for stage in stages:
            total[stage] += float(error_NLK[stage_N == stage][..., stage:].mean()) * len(batch["label"])
    per_stage = {f"velocity_{stage}": value / len(records) for stage, value in total.items()}
    return {"velocity": float(np.mean(list(per_stage.values()))), **per_stage}


def _batches(
    objective: ContentObjective | StructureObjective, records: RecordDataset
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """All records, each with its own fixed noise."""
    for step, start in enumerate(range(0, len(records), _SCORING_BATCH)):
        rows = np.arange(start, min(start + _SCORING_BATCH, len(records)))
        noise = objective.draw_noise(seed=_SCORING_SEED, step=step, global_batch=_SCORING_BATCH)
        batch = {name: torch.from_numpy(values) for name, values in records.batch(rows).items()}
        yield batch, {name: value[: len(rows)] for name, value in noise.items()}


class _SampleScores:
    """FID and class accuracy of samples: one feature network, one reference and one judge for all variants."""

    def __init__(self, config: AblateConfig, plan: AblationPlan, data: EvaluationData, console: Console) -> None:
        self.config, self.plan, self.data, self.console = config, plan, data, console
        self.output = Path(config.folder).absolute() / "samples"
        features = ExtractorConfig(output=str(self.output), feature_training=config.feature_training)
        self.extractor_spec = prepare_extractor(features, data)
        self.extractor = build_extractor(self.extractor_spec)
        self.reference_NF = extract(self.extractor, data.train.images).features_NF
        assert data.judge is not None  # see `_load_judged`
        self.judge = train_judge(data.judge.images, data.judge.labels, num_classes=len(data.class_names))

    def reference(self) -> Reference:
        """What samples can reach at best."""
        real = self.data.held_out
        copies = {
            kind: self._score(ImageSet(reconstruct(_weights(run), real.images), real.labels))
            for kind, run in self.plan.tokenizers.items()
        }
        return Reference(held_out=self._score(real), reconstructions=copies)

    def score(self, cell: Cell) -> dict[str, float]:
        """Draw the samples of a variant and seed (or take what an earlier start drew): `fid` and `class_accuracy`."""
        pool = run_pool(
            cell_spec(cell, self.plan, self.config, num_classes=len(self.data.class_names)),
            config=replace(self.config.pool, seed=cell.seed),
            extractor=self.extractor_spec,
            folder=self.output / "pool",
            title=f"{cell.variant}, seed {cell.seed}",
            console=self.console,
        )
        return self._score(pool_images(pool))

    def _score(self, images: ImageSet) -> dict[str, float]:
        features = extract(self.extractor, images.images) if images.features is None else images.features
        accuracy, _ = class_accuracy(self.judge.read(images.images), images.labels, len(self.data.class_names))
        return {"fid": frechet_distance(features.features_NF, self.reference_NF), "class_accuracy": accuracy}


def _load_judged(source: SourceConfig) -> EvaluationData:
    """The images that samples are scored by. Raises UserError where no judge can learn to read them."""
    data = load_data(source)
    if data.judge is None or data.no_judge:
        raise UserError(f"a study counts what a judge reads, but {data.no_judge}; give these classes more images")
    return data


def cell_spec(cell: Cell, plan: AblationPlan, config: AblateConfig, *, num_classes: int) -> GeneratorSpec:
    """The networks of a variant with one seed, everything trained, and how they are sampled."""
    spec = GeneratorSpec(
        tokenizer=_weights(plan.tokenizers[cell.structure_kind]),
        content=_weights(plan.trainings[cell.content]),
        structure=_weights(plan.trainings[cell.structure]) if cell.structure else "",
        num_classes=num_classes,
        sampling=config.sampling,
        seed=cell.seed,
        precision=resolve_precision(config.precision, config.pool.device),
        compile=config.compile,
    )
    require_tokenizer("folder", spec.tokenizer, spec.tokenizer_weights, generators(spec.content, spec.structure))
    return spec


def _weights(run: TokenizerRunConfig | GeneratorRunConfig) -> str:
    return str(weights_folder("folder", run.run_folder))


def _score_cell(cell: Cell, plan: AblationPlan, samples: _SampleScores) -> dict[str, Any]:
    """Numbers of both generators (those of structure absent where maps are spatial), `fid` and `class_accuracy`."""
    scores = _held_out_scores(plan.trainings[cell.content])
    if cell.structure is not None:
        structure = _held_out_scores(plan.trainings[cell.structure])
        scores = {**scores, **{name: value for name, value in structure.items() if name.startswith("velocity")}}
    return {**asdict(cell), "scores": {**scores, **samples.score(cell)}}


def run_ablate(config: AblateConfig, *, console: Console | None = None) -> Path:
    """Run what is not finished yet.

    Returns:
        The table, a Markdown file; numbers (JSON) and picture lie beside it.

    Raises:
        UserError: a step cannot be done; the message says what to change. Finished steps stay.
    """
    console = console or Console(stderr=True)
    plan, data = make_plan(config), _load_judged(config.precompute.source)
    folder = Path(config.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _headline(console, f"{len(plan.tokenizers)} tokenizer(s)")
    train_queue(plan.tokenizers, num_parallel=config.num_parallel, console=console)
    _headline(console, f"{len(plan.records)} record sets")
    with cluster_session(config.session):
        for job in plan.records.values():
            precompute(job, console=console)
    _headline(console, f"{len(plan.trainings)} generators")
    train_queue(plan.trainings, num_parallel=config.num_parallel, console=console)
    _headline(console, f"scores of {len(plan.cells)} variants and seeds")
    table = _score(config, plan, data, folder, console)
    console.print(table.read_text(), markup=False, highlight=False, soft_wrap=True)
    return table


def _score(config: AblateConfig, plan: AblationPlan, data: EvaluationData, folder: Path, console: Console) -> Path:
    with threads(config.pool.threads_per_actor):
        samples = _SampleScores(config, plan, data, console)
        with cluster_session(config.session):
            cells = []
            for number, cell in enumerate(plan.cells, start=1):
                console.print(f"{number}/{len(plan.cells)} {cell.variant}, seed {cell.seed}", highlight=False)
                cells.append(_score_cell(cell, plan, samples))
        return write_result(folder, cells, samples.reference(), _facts(config, plan))


def _facts(config: AblateConfig, plan: AblationPlan) -> dict[str, object]:
    content, structure, sampling = config.content, config.structure, config.sampling
    return {
        "images": f"{config.precompute.source.kind} {config.precompute.source.path or ''}".strip(),
        "seeds": ", ".join(map(str, config.seeds)),
        "content generators": f"depth {content.content.depth}, width {content.content.width}, "
        f"{content.optimizer.num_steps} steps of {content.optimizer.global_batch} images",
        "structure generators": f"depth {structure.structure.depth}, width {structure.structure.width}, "
        f"{structure.optimizer.num_steps} steps of {structure.optimizer.global_batch} images",
        "tokenizers": f"{' and '.join(plan.tokenizers)}, {config.tokenizer.optimizer.num_steps} steps each",
        "sampling": f"content guidance {sampling.content_guidance}, structure guidance {sampling.structure_guidance}"
        f"{', constant' if sampling.constant_guidance else ''}, top-p {sampling.top_p_last}, "
        f"{sampling.num_flow_steps} flow steps, {resolve_precision(config.precision, config.pool.device)}"
        f"{', compiled' if config.compile else ''}, {config.pool.num_samples} samples per variant and seed",
    }


def _headline(console: Console, text: str) -> None:
    console.print(Rule(text, align="left", style="dim"))
