"""Scores against a reference file: of samples drawn here (`nvg eval generator reference=…`) or made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cluster.session import cluster_session
from eval.features.extractors import ExtractorSpec, feature_names, given_extractor, scores_of
from eval.image_files import check_sample_folder, open_images, write_npz, write_png_folder
from eval.pages.page import caveat_notes, dagger, distance_name
from eval.pool.jobs import IMAGES, FeatureJob, SamplingJob
from eval.pool.pool import PoolResult, run_chunks
from eval.pool.samplers import GeneratorSpec
from eval.reference import (
    LABELS,
    LOGITS,
    Reference,
    complete_reference,
    read_reference,
    require_images,
    results_against,
)
from eval.results import RESULTS_FILE, timed, write_results
from eval.scores.metrics import refuse_class_order
from nvg.bounds import refuse
from nvg.checkpoints import load_config
from nvg.checkpoints.networks import network_config
from nvg.granularity import StageLayout
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator
from nvg.tokenizer import Tokenizer
from pipelines.evaluate.config import EvaluateConfig, EvaluateImagesConfig, make_folder
from pipelines.evaluate.table import print_file, print_not_comparable, print_table, print_time


def plan_against(config: EvaluateConfig | EvaluateImagesConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    pool = config.pool
    if isinstance(config, EvaluateImagesConfig):
        samples, exports = f"compute the features of {config.samples}", []
    else:
        samples = f"draw {config.pool.num_samples} samples of {config.content}"
        exports = [f"write the samples to {path}" for path in (config.samples_file, config.samples_folder) if path]
    return [
        f"read the reference {config.reference}",
        f"{samples} on {pool.num_actors} worker(s), {pool.chunk_size} per chunk, {config.extractor_kind} from "
        f"{config.extractor_path or 'the installed package'}",
        "FID, sFID where there are spatial features, Inception score, precision, recall"
        if "fid" in scores_of(config.extractor_kind)
        else "FD, precision, recall",
        f"write {RESULTS_FILE} in {config.output}",
        *exports,
    ]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What an evaluation of generators against a reference works with, checked."""

    spec: GeneratorSpec
    content: ContentGeneratorConfig
    extractor: ExtractorSpec
    reference: Reference


def open_against(config: EvaluateConfig) -> Opened:
    """Read the reference and the descriptions of the networks, and make sure that they belong together.

    Args:
        config: its paths resolved.

    Raises:
        UserError: weights or reference are missing or do not belong together.
    """
    extractor, reference = given_reference(config)
    content = network_config(ContentGenerator, load_config(config.content, "content", config.weights), config.content)
    described = load_config(config.tokenizer, "tokenizer", config.tokenizer_weights)
    side = network_config(Tokenizer, described, config.tokenizer).image_size
    reference.check_size(side, side)
    spec = config.generator_spec(content.num_classes)
    spec.check()
    return Opened(spec=spec, content=content, extractor=extractor, reference=reference)


def draw_against(
    config: EvaluateConfig, opened: Opened, *, console: Console, title: str = "Sampling"
) -> tuple[PoolResult, dict[str, Any]]:
    """Draw samples and score them; Ray must be initialised, the paths of `config` resolved.

    Returns:
        The pool, and the content of a `results.json`.
    """
    output, extractor = Path(config.output), opened.extractor
    seconds: dict[str, float] = {}
    keep_images = bool(config.samples_file or config.samples_folder)
    with timed(seconds, "reference"):
        reference = complete_reference(
            opened.reference, extractor, pool=config.pool, folder=output / "reference", console=console
        )
    with timed(seconds, "sampling"):
        pool = run_chunks(
            SamplingJob(spec=opened.spec, extractor=extractor, keep_images=keep_images),
            config.pool.num_samples,
            config=config.pool,
            folder=output / "pool",
            title=title,
            console=console,
            wanted=(LABELS, *feature_names(extractor.kind)),
        )
    facts = {"rounding": config.rounding, **opened.spec.computed, "model": _model_facts(config, opened.content)}
    return pool, results_against(pool, reference, extractor, config=config.score, facts=facts, seconds=seconds)


def run_against(config: EvaluateConfig, *, console: Console) -> dict[str, Any]:
    """Draw samples, score them against a reference file, export them where asked for.

    Args:
        config: its paths resolved, its output folder there.
        console: where progress and scores are shown.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: weights or reference are missing or do not belong together.
    """
    opened = open_against(config)
    if config.samples_file:
        Path(config.samples_file).parent.mkdir(parents=True, exist_ok=True)
        if Path(config.samples_file).is_dir():
            raise refuse("samples_file", config.samples_file, "an npz file, it is a folder")
    if config.samples_folder:
        check_sample_folder("samples_folder", Path(config.samples_folder))
    with cluster_session(config.session):
        pool, results = draw_against(config, opened, console=console)
    _finish(Path(config.output), results, console)
    if config.samples_file:
        write_npz(Path(config.samples_file), {}, (pool.num_items, pool.stream(IMAGES)))
    if config.samples_folder:
        num_removed = write_png_folder(Path(config.samples_folder), pool.num_items, pool.stream(IMAGES))
        if num_removed:
            console.print(f"{config.samples_folder}: removed {num_removed} files of an earlier run", soft_wrap=True)
    return results


def run_evaluate_images(config: EvaluateImagesConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Score images made elsewhere against a reference file.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: images or reference are missing, damaged, of different size, or sorted by class.
    """
    console = console or Console()
    extractor, reference = given_reference(config)
    channels, pixels = reference.read_as
    images = open_images(config.samples, channels=channels, pixels=pixels)
    require_images(len(images), f"samples: {config.samples}")
    for line in images.remarks:
        console.print(f"samples: {line}", highlight=False, soft_wrap=True)
    reference.check_size(*images.identity()["shape"][1:3])
    output, seconds = make_folder(config.output), {}
    with cluster_session(config.session):
        with timed(seconds, "reference"):
            reference = complete_reference(
                reference, extractor, pool=config.pool, folder=output / "reference", console=console
            )
        with timed(seconds, "features"):
            job = FeatureJob(images=images, extractor=extractor)
            pool = run_chunks(
                job, len(images), config=config.pool, folder=output / "pool", title="Features", console=console
            )
    if not config.class_ordered and LOGITS in pool.arrays:
        refuse_class_order(pool.arrays[LOGITS])
    results = results_against(pool, reference, extractor, config=config, facts={}, seconds=seconds)
    results["left_out"] += images.remarks
    _finish(output, results, console)
    return results


def _finish(output: Path, results: dict[str, Any], console: Console) -> None:
    path = write_results(output, results)
    print_against(results, console)
    print_file(console, "results", path)


def print_against(results: dict[str, Any], console: Console) -> None:
    """Print the scores with their spreads, and what keeps them from being compared."""
    scores = results["scores"]["generated"]
    titles = {
        "fid": ("FID ↓", 3),
        "fd": (f"{distance_name(results)} ↓", 3),
        "sfid": ("sFID ↓", 3),
        "inception_score": ("IS ↑", 2),
        "precision": ("precision ↑", 4),
        "recall": ("recall ↑", 4),
    }
    rows = []
    for name, (title, digits) in titles.items():
        if name in scores:
            spread = f"± {scores[f'{name}_std']:.{digits}f}" if f"{name}_std" in scores else ""
            rows.append((title, f"{scores[name]:.{digits}f}{dagger(results, 'generated', name)}", spread))
    notes = caveat_notes(results)
    print_table(console, ("", "", ""), [*rows, ("images", f"{scores['num_images']:,}", "")], notes=notes)
    print_not_comparable(console, results)
    console.print()
    print_time(console, results)


def _model_facts(config: EvaluateConfig, content: ContentGeneratorConfig) -> dict[str, Any]:
    """What a model is, for tables and plots beside others.

    Returns:
        `parameters` of both generators, counted without building them, `stages`, and `evaluations`: passes through a
        generator per image, without those of guidance.
    """
    layout = StageLayout(content.num_positions)
    evaluations = layout.num_stages
    with torch.device("meta"):
        networks: dict[str, torch.nn.Module] = {"content": ContentGenerator(content)}
        if config.structure:
            described = load_config(config.structure, "structure", config.weights)
            structure = network_config(StructureGenerator, described, config.structure)
            networks["structure"] = StructureGenerator(structure)
            evaluations += layout.num_structure_stages * config.sampling.num_flow_steps
    parameters = {name: sum(part.numel() for part in network.parameters()) for name, network in networks.items()}
    return {"parameters": parameters, "stages": layout.num_stages, "evaluations": evaluations}


def given_reference(config: EvaluateConfig | EvaluateImagesConfig) -> tuple[ExtractorSpec, Reference]:
    """The extractor and the reference that a configuration names; no network or sample is needed.

    Raises:
        UserError: one of them is missing, or they do not belong together.
    """
    extractor = given_extractor(config)
    if extractor is None:
        raise refuse(
            "extractor_path",
            "",
            "the extractor the reference was made with: a weight file, or the folder of a feature network",
            "set extractor_path",
        )
    return extractor, read_reference(config.reference, extractor)
