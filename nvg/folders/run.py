"""A run folder: which networks lie in it, whether they belong together, and what it says of itself in JSON.

RUN/tokenizer, content, structure    trainings, checkpoints or weights; without structure where it is spatial
RUN/records/manifest.json            class names, which weights of the tokenizer made the records, the images' cut
RUN/*/results.json                   evaluations, each with the sampling settings that it scored
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from nvg.bounds import refuse
from nvg.checkpoints import load_config, weights_hash
from nvg.checkpoints.networks import network_config
from nvg.checkpoints.runs import RELEASE_FILE, TRAINER_FILE, generators, require_tokenizer, weights_folder
from nvg.errors import UserError
from nvg.json_files import Count, check_form, make, read_json
from nvg.models import ContentGenerator
from nvg.pictures import Cut
from nvg.records import read_manifest
from nvg.sampling import SamplingConfig
from nvg.tokenizer.tokenizer import SPATIAL

RESULTS_FILE, RECORDS_FOLDER = "results.json", "records"
Weights = Literal["ema", "model"]
# Of weights of the authors' release: `configs/sampling/release.yaml`.
_RELEASE_SAMPLING = SamplingConfig(gumbel_split=False)
_HOW = "nvg app takes the name as evaluation="
_OF_RECORDS = (
    "source_kind", "source_split", "num_images", "num_records", "num_views", "image_size", "image_channels",
    "source_fingerprint",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Networks on disk that are known to fit; none is loaded yet.

    Attributes:
        folder: where they were found.
        tokenizer, content: folders of their weights.
        structure: likewise; None for a tokenizer of spatial structure.
        weights: which weights of the generators.
        tokenizer_weights: which of the tokenizer, those that the records were made with.
        class_names: by label; numbers where nothing names them.
        cut: how the images were cut that the networks know.
        licences: notices of imported weights, each once.
        data: what is known of the training images, JSON values.
    """

    folder: Path
    tokenizer: Path
    content: Path
    structure: Path | None
    weights: str
    tokenizer_weights: str
    class_names: list[str]
    cut: Cut = "center"
    licences: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, tuple[Path, str]]:
        """Kind of each network to its folder and which weights of it."""
        found = {"tokenizer": (self.tokenizer, self.tokenizer_weights), "content": (self.content, self.weights)}
        return found if self.structure is None else {**found, "structure": (self.structure, self.weights)}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each network's weights; every file is read."""
        return {kind: weights_hash(folder, name) for kind, (folder, name) in self.by_name.items()}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is sampled, and who says so.

    Attributes:
        sampling: guidance, top-p, flow steps.
        scored_by: folder of the evaluation that scored them; None where none has.
        results: its `results.json`.
        note: what a user should know of the choice; may be empty.
    """

    sampling: SamplingConfig
    scored_by: str | None = None
    results: dict[str, Any] | None = None
    note: str = ""


class _Images(TypedDict):
    view_policy: NotRequired[str]
    fit: NotRequired[str]


class _Trained(TypedDict):
    """How the images of a tokenizer's training were cut."""

    data: NotRequired[_Images]


class _Release(TypedDict):
    licence: NotRequired[str]


class _Scores(TypedDict):
    num_images: NotRequired[Count]


class _Caveat(TypedDict):
    scores: list[str]
    sets: list[str]
    reason: str


class _Protocol(TypedDict):
    extractor: NotRequired[dict[str, Any]]
    reference: NotRequired[dict[str, Any]]


class _Results(TypedDict):
    """What is read of the results of an evaluation of generators."""

    scores: dict[str, _Scores]
    protocol: _Protocol
    caveats: NotRequired[list[_Caveat]]
    not_comparable_because: NotRequired[list[str]]


def find_run(run: Path, weights: Weights = "ema") -> Parts:
    """The networks of a run folder, each of its newest whole checkpoint.

    Args:
        run: see above.
        weights: which weights of the generators.

    Raises:
        UserError: networks are missing or damaged, or were made with another tokenizer.
    """
    manifest = read_manifest(run / RECORDS_FOLDER) if (run / RECORDS_FOLDER).is_dir() else None
    content = weights_folder("run", str(run / "content"))
    if manifest is None:
        config = network_config(ContentGenerator, load_config(content, "content", weights), content)
        class_names, tokenizer_weights = [str(label) for label in range(config.num_classes)], "ema"
    else:
        class_names, tokenizer_weights = list(manifest["class_names"]), manifest.get("tokenizer_weights", "ema")
    tokenizer = weights_folder("run", str(run / "tokenizer"))
    spatial = load_config(tokenizer, "tokenizer", tokenizer_weights).get("structure") == SPATIAL
    structure = None if spatial else weights_folder("run", str(run / "structure"))
    made_with = generators(content, structure or "")
    if manifest is not None and "tokenizer_hash" in manifest:
        made_with[f"the records in {run / RECORDS_FOLDER}"] = manifest["tokenizer_hash"]
    require_tokenizer("run", tokenizer, tokenizer_weights, made_with)
    return Parts(
        folder=run,
        tokenizer=tokenizer,
        content=content,
        structure=structure,
        weights=weights,
        tokenizer_weights=tokenizer_weights,
        class_names=class_names,
        cut=cut_of(tokenizer, manifest),
        licences=_licences(tokenizer, content, structure),
        data={} if manifest is None else {name: manifest[name] for name in _OF_RECORDS if name in manifest},
    )


def cut_of(tokenizer: Path, manifest: dict[str, Any] | None = None) -> Cut:
    """How view 0 of the images was cut that networks know: by the records, else by the tokenizer's training.

    Args:
        tokenizer: folder of its weights, as its training or an import left it.
        manifest: of the records; None where there are none.

    Raises:
        UserError: what the training left is damaged.
    """
    advice = "restore it, or set how pictures are cut (cut=, control.view_policy=)"
    images: Any = manifest
    if images is None and (tokenizer / RELEASE_FILE).is_file():
        return "crop"
    if images is None and (tokenizer / TRAINER_FILE).is_file():
        trained: Any = read_json(tokenizer / TRAINER_FILE, _Trained, "where a training stands", advice)
        images = trained.get("data", {})
    images = images or {}
    if images.get("fit") == "pad":
        return "pad"
    return "center" if images.get("view_policy", "center") in ("center", "shift") else "crop"


def scored_settings(parts: Parts, wanted: str | None = None) -> Settings:
    """The sampling settings by which these very weights were scored.

    Args:
        parts: the networks.
        wanted: folder name of the evaluation, where several differ.

    Returns:
        Where nothing scored them, the defaults (of imported weights the release's) and a note that says so.

    Raises:
        UserError: several evaluations differ and none was named, or there is none of that name.
    """
    found = evaluations(parts.folder)
    hashes = parts.hashes() if found else {}
    these = {name: results for name, results in found.items() if _of_weights(results, hashes)}
    settings = {name: _sampling_of(results, parts.folder / name) for name, results in these.items()}
    if wanted is not None:
        if wanted not in settings:
            scored = ", ".join(settings) or "nothing has scored these weights"
            raise refuse("settings", wanted, f"an evaluation of these weights in {parts.folder} ({scored})", _HOW)
        return Settings(sampling=settings[wanted], scored_by=wanted, results=these[wanted])
    if not settings:
        return _unscored(parts, sorted(found))
    if len({repr(sampling) for sampling in settings.values()}) > 1:
        listed = "".join(f"\n  {name}: {_differing(sampling)}" for name, sampling in settings.items())
        raise UserError(
            f"settings is None, and {parts.folder} was scored with {len(settings)} settings:{listed}\n"
            f"name one of these evaluations, settings={next(iter(settings))!r}, or give a SamplingConfig; {_HOW}"
        )
    name = next(iter(settings))
    return Settings(sampling=settings[name], scored_by=name, results=these[name])


def evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """Evaluations of generators below a run: folder name to `results.json`, in order of names.

    Raises:
        UserError: one is damaged.
    """
    read = {path.parent.name: read_evaluation(path) for path in sorted(run.glob(f"*/{RESULTS_FILE}"))}
    return {name: results for name, results in read.items() if results is not None}


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """The results of an evaluation of generators; None for those of something else. Raises UserError for damage."""
    advice = "evaluate again, or remove it"
    results = read_json(path, dict[str, Any], "the results of an evaluation", advice)
    if _sampler(results) is None:
        return None
    check_form(results, _Results, str(path), advice)
    return results


def _sampler(results: dict[str, Any]) -> dict[str, Any] | None:
    """What drew the scored samples, as `eval.pool` notes it; None in results of other kinds."""
    place: Any = results.get("protocol")
    for names in (("pools", "generated", "sampler"), ("samples", "sampler")):
        here = place
        for name in names:
            here = here.get(name) if isinstance(here, dict) else None
        if isinstance(here, dict) and "sampling" in here:
            return here
    return None


def _of_weights(results: dict[str, Any], hashes: dict[str, str]) -> bool:
    sampler = _sampler(results) or {}
    return all(sampler.get(f"{kind}_sha256") == hashes.get(kind) for kind in ("tokenizer", "content", "structure"))


def _sampling_of(results: dict[str, Any], folder: Path) -> SamplingConfig:
    sampler = _sampler(results) or {}
    return make(SamplingConfig, sampler["sampling"], f"{folder / RESULTS_FILE}: sampling", "evaluate again")


def _unscored(parts: Parts, of_others: list[str]) -> Settings:
    imported = (parts.content / RELEASE_FILE).is_file()
    which = "the release's" if imported else "the defaults of nvg.SamplingConfig"
    others = f" ({', '.join(of_others)}: of other weights)" if of_others else ""
    note = f"{parts.folder}: no evaluation has scored these weights{others}; sampled with {which}; give settings="
    return Settings(sampling=_RELEASE_SAMPLING if imported else SamplingConfig(), note=note)


def _differing(sampling: SamplingConfig) -> str:
    """What is not as by default, in words."""
    default = asdict(SamplingConfig())
    changed = {name: value for name, value in asdict(sampling).items() if value != default[name]}
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "the defaults"


def _licences(*folders: Path | None) -> list[str]:
    """What imports wrote beside the weights about their licence, each notice once."""
    files = [folder / RELEASE_FILE for folder in folders if folder is not None and (folder / RELEASE_FILE).is_file()]
    cards: list[Any] = [
        read_json(file, _Release, "what the import wrote beside the weights", "import again") for file in files
    ]
    return list(dict.fromkeys(card["licence"] for card in cards if "licence" in card))
