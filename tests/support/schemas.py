"""Every schema of the command line, with what its required keys need, and its keys one by one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from pipelines.written import walk_schema

# Where a schema lives; settings without which it does not load.
SCHEMAS: dict[str, tuple[str, list[str]]] = {
    "ImportReleaseConfig": ("pipelines.release", ["output=o", "autoencoder=a"]),
    "ExportReleaseConfig": ("pipelines.release", ["run=r", "output=o"]),
    "ExperimentConfig": (
        "pipelines.experiment.steps",
        [f"{key}=x" for key in ("precompute.tokenizer", "precompute.output")]
        + [f"evaluation.{key}=x" for key in ("tokenizer", "content", "output")],
    ),
    "PrecomputeConfig": ("pipelines.precompute.config", ["tokenizer=t", "output=o"]),
    "SampleConfig": ("pipelines.sample", []),
    "AblateConfig": ("pipelines.ablate.plan", []),
    "InspectConfig": ("pipelines.inspect", []),
    "JobConfig": ("cluster.submit", []),
    "EvaluateConfig": ("pipelines.evaluate.config", ["tokenizer=t", "content=c", "output=o"]),
    "EvaluateImagesConfig": (
        "pipelines.evaluate.config",
        ["samples=s", "reference=r", "extractor_path=e", "output=o"],
    ),
    "ReferenceRunConfig": ("pipelines.evaluate.reference", ["extractor_path=e", "output=o"]),
    "SweepConfig": ("pipelines.evaluate.series", ["tokenizer=t", "content=c", "output=o", "reference=r"]),
    "FollowConfig": ("pipelines.evaluate.series", ["tokenizer=t", "content=c", "output=o", "reference=r"]),
    "ReportConfig": ("pipelines.evaluate.table", ["results=[r]", "output=o"]),
    "EvaluateTokenizerConfig": ("pipelines.evaluate.tokenizer", ["tokenizer=t", "output=o"]),
    "TokenizerRunConfig": ("pipelines.train.tokenizer", []),
    "PairRunConfig": ("pipelines.train.drivers", []),
    "ContentRun": ("pipelines.train.generator", []),
    "StructureRun": ("pipelines.train.generator", []),
}


def schema_of(name: str) -> tuple[type, list[str]]:
    """The schema of that name, and the settings that it needs."""
    module, needed = SCHEMAS[name]
    return getattr(importlib.import_module(module), name), needed


def every_key() -> Iterator[tuple[str, str, Any]]:
    """Name of the schema, dotted key and type of every key there is."""
    for name in SCHEMAS:
        for key, kind in walk_schema(schema_of(name)[0]):
            yield name, key, kind
