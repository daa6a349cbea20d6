"""The model card of an exported folder: what is known of a model, from its run's own JSON and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from nvg.checkpoints import load_config
from nvg.folders.run import Parts, Settings

# Scores in the order of a table, with the direction in which they improve.
_SCORES = {
    "fid": "FID ↓",
    "fd": "FD ↓",
    "sfid": "sFID ↓",
    "inception_score": "Inception score ↑",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "class_accuracy": "read as the class asked for ↑",
}
_SETS = {
    "generated": "samples",
    "generated_guidance_1": "samples at guidance 1",
    "reconstructions": "reconstructions",
    "held_out": "real held-out images",
}
_DATA = {
    "source_kind": "source",
    "source_split": "split",
    "num_images": "images",
    "num_views": "views of each",
    "source_fingerprint": "fingerprint",
}
_MOST_NAMES = 50
_MARK = "†"


def model_card(parts: Parts, settings: Settings) -> str:
    """The card as Markdown with the header that the hub reads.

    Args:
        parts: the networks.
        settings: how they are sampled, with the results that the scores are taken from.
    """
    sections = [
        _header(parts),
        _use(parts),
        _section("The model", _facts(parts)),
        _section("Training images", _data(parts)),
        _section("Sampling", _sampling(settings)),
        _section("Scores", _scores(settings)),
        _section("Licence", _licence(parts)),
    ]
    return "\n\n".join(sections) + "\n"


def _header(parts: Parts) -> str:
    licence = ["license: other"] if parts.licences else []
    tags = ["library_name: nvg", "pipeline_tag: unconditional-image-generation", "tags: [nvg, image-generation]"]
    return "\n".join(["---", *licence, *tags, "---"])


def _use(parts: Parts) -> str:
    name = json.dumps(parts.class_names[0], ensure_ascii=False)
    return (
        "# An NVG model\n\n"
        "It draws images by Next Visual Granularity generation: stage by stage the canvas is painted with 1, 2, 4, … "
        "unique tokens, structure first, then content.\n\n"
        "```python\n"
        "import nvg\n\n"
        'model = nvg.load("THIS FOLDER OR ITS ID ON THE HUB")\n'
        f"drawn = model.sample([{name}], per_class=4, seed=0)\n"
        "drawn.images, drawn.grid(), drawn.stages(0)\n"
        "```"
    )


def _facts(parts: Parts) -> str:
    config = load_config(parts.tokenizer, "tokenizer", parts.tokenizer_weights)
    colour = "grey" if config.get("image_channels") == 1 else "colour"
    names = ", ".join(parts.class_names[:_MOST_NAMES])
    more = f" and {len(parts.class_names) - _MOST_NAMES} more" if len(parts.class_names) > _MOST_NAMES else ""
    lines = [
        f"images: {config.get('image_size')}×{config.get('image_size')}, {colour}",
        f"classes ({len(parts.class_names)}): {names}{more}",
        f"structure: {config.get('structure', 'granularity')}",
    ]
    for kind in ("content", "structure"):
        if kind in parts.by_name:
            folder, name = parts.by_name[kind]
            network = load_config(folder, kind, name)
            lines.append(
                f"{kind} generator: depth {network.get('depth')}, width {network.get('width')}, {name} weights"
            )
    lines += [f"SHA-256 of the {kind}'s weights: `{digest}`" for kind, digest in parts.hashes().items()]
    return _listed(lines)


def _data(parts: Parts) -> str:
    if not parts.data:
        return "Nothing here says on which images it was trained."
    lines = [f"{words}: {parts.data[key]}" for key, words in _DATA.items() if key in parts.data]
    cuts = {
        "center": "the centre square, resized",
        "crop": "the centre of the image, its shorter side resized to 1.125 sides",
        "pad": "on the middle of a black square, pixels kept",
    }
    return _listed([*lines, f"cut: {cuts[parts.cut]}"])


def _sampling(settings: Settings) -> str:
    lines = [f"`{name}`: {json.dumps(value)}" for name, value in asdict(settings.sampling).items()]
    scored = "with which it was scored" if settings.scored_by is not None else "which no evaluation has scored"
    return f"Settings {scored}:\n\n{_listed(lines)}"


def _scores(settings: Settings) -> str:
    if settings.results is None:
        return "No evaluation has scored these weights."
    results = settings.results
    scores: dict[str, dict[str, Any]] = {name: row for name, row in results["scores"].items() if name in _SETS}
    shown = [key for key in _SCORES if any(isinstance(row.get(key), (int, float)) for row in scores.values())]
    caveats: list[dict[str, Any]] = results.get("caveats", [])
    doubtful = {(name, key) for caveat in caveats for name in caveat["sets"] for key in caveat["scores"]}
    table = [["", "images", *(_SCORES[key] for key in shown)]]
    for name, row in scores.items():
        cells = [_number(row.get(key)) + (_MARK if (name, key) in doubtful else "") for key in shown]
        table.append([_SETS[name], f"{row.get('num_images', 0):,}", *cells])
    reasons = [f"{_MARK} {', '.join(caveat['scores'])}: {caveat['reason']}" for caveat in caveats]
    reasons += [f"not comparable with published scores: {why}" for why in results.get("not_comparable_because", [])]
    return "\n\n".join(filter(None, [_table(table), _listed(reasons), _listed(_protocol(results))]))


def _protocol(results: dict[str, Any]) -> list[str]:
    protocol: dict[str, Any] = results["protocol"]
    extractor, reference = protocol.get("extractor", {}), protocol.get("reference", {})
    lines = []
    if extractor:
        what = f"{extractor.get('kind')}, SHA-256 `{extractor.get('sha256', 'unknown')}`"
        lines.append(f"features: {what}; scores compare with those in the same features alone")
    if reference:
        what = reference.get("file") or f"{reference.get('images')} images, split {reference.get('split')}"
        lines.append(f"reference: {what}, SHA-256 `{reference.get('sha256')}`")
    for key in ("rounding", "precision", "compile"):
        if key in protocol:
            lines.append(f"{key}: {json.dumps(protocol[key])}")
    return [*lines, "everything else a score depends on: `results.json`, `protocol`"]


def _licence(parts: Parts) -> str:
    if parts.licences:
        return "\n\n".join(parts.licences)
    return (
        "The code is Apache-2.0. Nothing is imported; under which licence these weights are, whoever trained them says."
    )


def _number(value: Any) -> str:
    return "–" if not isinstance(value, (int, float)) else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _listed(lines: list[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
