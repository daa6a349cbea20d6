"""Every field of every JSON file that we read, and text files beside images: what is bad is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from damaged_files import Damage, json_damages, put, random_damages
from made_records import NUM_IMAGES, write_records
from robustness import Tally
from tiny_networks import save_generators, save_tokenizer
from torch import nn

import nvg
from eval.features.small_network import FeatureNetwork, FeatureNetworkConfig, load_feature_network, save_feature_network
from eval.image_files import check_sample_folder
from eval.pages.published import markdown_table
from nvg.checkpoints import load_network, runs
from nvg.folders import cut_of, find_model, find_run, scored_settings
from nvg.folders.card import model_card
from nvg.models import ContentGenerator, StructureGenerator
from nvg.networks import load_networks
from nvg.records import RecordDataset
from nvg.sampling import SamplingConfig
from nvg.tokenizer import Tokenizer
from pipelines import checkpoints
from pipelines.ablate import study
from pipelines.batches import streaming
from pipelines.evaluate import series, table
from pipelines.evaluate.generator import _curve
from pipelines.experiment.run import _StepTimes
from pipelines.precompute import merge, plan
from pipelines.precompute.verify import verify_records
from pipelines.release import _import_card
from pipelines.run_folder import _read_sessions, read_metrics, trim_metrics
from pipelines.sources import SkippedInput, SourceConfig
from pipelines.sources.class_names import class_names_of, class_names_of_labels
from pipelines.sources.folders import _read_label_file
from pipelines.sources.tars import _expected_counts
from pipelines.train.deepspeed_settings import _merge_user_file
from pipelines.train.state import TrainerState

DONE_AGAIN = "done again, since what is left of it cannot be told"
COUNTED = ("class_histogram", "num_images")  # compared with the records by `nvg verify` alone
HASHES = ("shards.raw_data.hashes", "shards.raw_data.hashes.sha256")  # likewise
ABSENT = "a folder of that name is no such file"
FIRST = "nothing has been written yet"
BEFORE = "what was made before there was such a file"
AS_WRITTEN = "a text that means what it says"


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def records(tmp_path) -> Path:
    """A data set that `nvg verify` finds whole."""
    folder = write_records(tmp_path / "records", skipped=[{"key": "a/b.png", "reason": "empty file"}])
    labels = RecordDataset.open(folder).label
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"class_histogram": np.bincount(labels, minlength=10).tolist(), "library_versions": {"torch": "2.11"}}
    manifest |= {"changed": {"turned": 1}, "tokenizer_weights": "ema"}
    write(folder / "manifest.json", manifest)
    (folder / "sources.txt").write_text("".join(f"{image}.png\n" for image in range(NUM_IMAGES)))
    return folder


def open_all(folder: Path) -> None:
    for mapped in (False, True):
        RecordDataset.open(folder, mapped=mapped).batch([0, NUM_IMAGES - 1])
    RecordDataset.open_description(folder)


def test_manifests_and_indices_of_records(records, tally: Tally):
    manifest = json.loads((records / "manifest.json").read_text())
    free = (
        "tokenizer_hash", "image_size", "image_channels", "class_names", "view_policy", "source_fingerprint",
        "canvas_scales", "codebook_usage", "skipped", "skipped.key", "skipped.reason", "library_versions",
        "library_versions.torch", "changed", "changed.turned", "tokenizer_weights", "plan", "codebook_size",
        "num_inputs", "num_views",
    )  # fmt: skip
    lack = ("plan", "tokenizer_weights", "changed", "library_versions.torch", "changed.turned")
    lack_all = (*lack, "num_inputs")
    for damages, run in (
        (json_damages(manifest, may_be=free, may_lack=lack), partial(verify_records, str(records))),
        (json_damages(manifest, may_be=(*free, *COUNTED), may_lack=lack_all), partial(open_all, records)),
    ):
        tally.expect_refusals("manifests", records / "manifest.json", damages, run, names=str(records))
    index = json.loads((records / "index.json").read_text())
    unread = (
        "shards.column_sizes",
        "shards.compression",
        "shards.hashes",
        "shards.size_limit",
        "shards.version",
        "shards.zip_data",
    )
    for damages, run in (
        (json_damages(index, unread=unread), partial(verify_records, str(records))),
        (json_damages(index, unread=unread, may_be=HASHES, may_lack=HASHES), partial(open_all, records)),
    ):
        tally.expect_refusals("MDS indices", records / "index.json", damages, run, names=str(records))
    tally.check("manifests", at_least=800)
    tally.check("MDS indices", at_least=400)


def test_manifests_of_units_and_plans(records, tally: Tally):
    part = {
        "plan": "f" * 64, "unit": 0, "num_images": NUM_IMAGES, "num_records": NUM_IMAGES, "changed": {"turned": 2},
        "skipped": [{"key": "a", "reason": "b"}], "canvas_count": 64, "canvas_total": [1.0, 2.0],
        "canvas_square": [3.0, 4.0], "library_versions": {"torch": "2.11"},
        "shards": [{"basename": "shard.00000.mds", "bytes": (records / "shard.00000.mds").stat().st_size}],
    }  # fmt: skip
    path = write(records / plan.PART_MANIFEST, part)

    def go_on() -> None:
        found = plan.read_part(records, "f" * 64)
        if found is not None:
            assert [SkippedInput(**item).heading for item in found["skipped"]] or not found["skipped"]
            merge._canvas_scales([found, part])
            merge._versions([found, part])
            assert found["num_images"] + found["num_records"] >= 0

    tally.expect_refusals("manifests of units", path, json_damages(part), go_on, names="", tolerated=DONE_AGAIN)
    description = {"source_split": "all", "split_rule": "x", "num_inputs": 3, "class_names": ["a"], "seed": 7}
    job = plan.Plan(description, [np.arange(3)])
    folder = plan.DatasetFolder(records.parent / "made")
    folder.adopt(job)
    path = folder.parts / "plan.json"
    tally.expect_refusals("plans", path, json_damages(description), partial(folder.adopt, job), missing=FIRST)
    tally.check("manifests of units", at_least=400)
    tally.check("plans", at_least=150)


ROW = {"step": 3, "images": 24, "loss": 0.5, "validation_loss": 1.5, "step_s": 0.1, "images_per_s": 80.0}


def test_metrics_and_what_a_run_folder_holds(tmp_path, tally: Tally):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(ROW) + "\n")

    def read() -> None:
        rows = read_metrics(tmp_path)
        assert all(isinstance(row["step"], int) for row in rows)
        for row in _curve(tmp_path):
            assert f"{row['loss']:.4f} {row['images']:,}"
        trim_metrics(tmp_path, 10)

    aside = "a line that is no row of numbers is set aside and said"
    tally.expect_refusals("metrics", path, json_damages(ROW), read, names="", tolerated=aside)
    sessions = {"sessions": [{"time": "now", "command": ["nvg"], "commit": None}]}
    path = write(tmp_path / "provenance.json", sessions)
    aside = "set aside and said: it decides nothing"
    tally.expect_refusals(
        "metrics", path, json_damages(sessions), partial(_read_sessions, path), names="", tolerated=aside
    )
    tally.check("metrics", at_least=150)


def trainer_state() -> TrainerState:
    return TrainerState(
        step=3, images=24, epoch=0, images_in_epoch=24, ema_images=24, world_size=1, engine="plain",
        seeds={"order": 1}, config={"optimizer.lr": 0.1}, data={"tokenizer_hash": "1" * 64}, accepted=["a"],
        init_from={"init_from": "x", "weights": "y", "hash": "z"},
    )  # fmt: skip


def test_checkpoints(tmp_path, tally: Tally):
    folder = checkpoints.begin(tmp_path / "checkpoints", 3)
    trainer_state().write(folder)
    (folder / "plain.pt").write_bytes(b"weights")
    folder = checkpoints.commit(folder)
    marker = json.loads((folder / "COMPLETE").read_text())
    run = partial(runs.resolve_checkpoint, folder)
    unread = "a file that the marker does not name is not part of the checkpoint"
    left_out = re.compile(r"files = {}|files\.[a-z]+\.(pt|json) = missing")
    damages = [
        damage._replace(tolerated=unread if left_out.fullmatch(damage.name) else "") for damage in json_damages(marker)
    ]
    tally.expect_refusals("checkpoints", folder / "COMPLETE", damages, run, names=str(folder))
    for name in ("plain.pt", "trainer.json"):
        damages = random_damages((folder / name).read_bytes(), "the same bytes", 20)
        changed = [damage for damage in damages if damage.content != (folder / name).read_bytes()]
        tally.expect_refusals("checkpoints", folder / name, changed, run, names=name)
    state = json.loads((folder / "trainer.json").read_text())
    path = folder / "trainer.json"

    def read() -> None:
        TrainerState.read(folder)
        series.images_seen(folder)
        runs.require_tokenizer("tokenizer", tokenizer, "ema", runs.generators(folder))

    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    state["data"]["tokenizer_hash"] = runs.weights_hash(tokenizer, "ema")
    put(path, json.dumps(state).encode())
    counts = ("step", "images", "epoch", "images_in_epoch", "ema_images", "world_size")
    free = (*counts, "engine", "seeds.order", "config", "config.optimizer.lr", "accepted", "init_from.init_from")
    free += ("init_from.weights", "init_from.hash", "seeds", "data", "init_from")
    lack = ("init_from", "seeds", "config", "data", "accepted", "data.tokenizer_hash", "config.optimizer.lr")
    lack += ("seeds.order", "init_from.init_from", "init_from.weights", "init_from.hash")
    unsaid = "a generator that does not say its tokenizer is taken as it is, which is said"
    damages = [
        damage._replace(tolerated=unsaid) if damage.name.startswith("data.tokenizer_hash") else damage
        for damage in json_damages(state, may_be=free, may_lack=lack, unread=("config.", "accepted."))
    ]
    tally.expect_refusals("checkpoints", path, damages, read, names=str(folder))
    keys_file = tmp_path / "training_keys.bin"
    keys_file.write_bytes(np.arange(9, dtype="<u8").tobytes())
    cuts = [Damage(f"{end} bytes", bytes(end), "" if end % 8 or not end else "whole names") for end in range(80)]
    tally.expect_refusals("checkpoints", keys_file, cuts, partial(runs.training_keys, tmp_path), missing=BEFORE)
    card = {"licence": "text", "rope_ids_dtype": "float32", "tokenizer_hash": "1" * 64, "bytes": 5}
    path = write(tmp_path / "imported" / "release.json", card)

    def read_card() -> None:
        found = _import_card(path.parent)
        assert getattr(torch, found.get("rope_ids_dtype") or "float32")
        runs.tokenizer_of(path.parent)

    lack = ("licence", "rope_ids_dtype", "tokenizer_hash", "bytes")
    damages = json_damages(card, unread=("bytes",), may_lack=lack, may_be=("licence", "tokenizer_hash"))
    tally.expect_refusals("checkpoints", path, damages, read_card, missing=BEFORE)
    tally.check("checkpoints", at_least=600)


def test_descriptions_of_networks(tmp_path, tally: Tally):
    save_tokenizer(tmp_path / "tokenizer")
    save_generators(tmp_path)
    network = FeatureNetwork(FeatureNetworkConfig(image_size=8, image_channels=1, num_classes=2, width=4))
    save_feature_network(network, tmp_path / "features")
    readers: dict[str, Callable[[Path], nn.Module]] = {
        "tokenizer": partial(load_network, Tokenizer),
        "content": partial(load_network, ContentGenerator),
        "structure": partial(load_network, StructureGenerator),
        "features": load_feature_network,
    }
    for name, read in readers.items():
        path = tmp_path / name / "config.json"
        document = json.loads(path.read_text())
        settings = tuple(f"config.{key}" for key in document["config"])
        free = ("norm_groups", "drop_path_rate", "structure_rope", "canvas_scales", "num_positions", "image_size")
        damages = json_damages(document, may_lack=settings, may_be=tuple(f"config.{key}" for key in free))
        tally.expect_refusals(
            "descriptions of networks", path, damages, partial(read, path.parent), names=str(path.parent)
        )
    tally.check("descriptions of networks", at_least=800)


def test_results_and_references(tmp_path, tally: Tally):
    generated = {
        "scores": {"generated": {"num_images": 50, "fid": 2.5, "sfid": 3.0, "inception_score": 20.0, "precision": 0.5,
                                 "recall": 0.25}},
        "caveats": [{"scores": ["fid"], "sets": ["generated"], "reason": "few"}],
        "not_comparable_because": ["few"],
        "protocol": {"model": {"parameters": {"content": 5}, "stages": 9}},
    }  # fmt: skip
    tokenizer = {
        "scores": {"rfid": 0.5, "lpips_vgg": 0.1, "num_images": 5, "codebook": {
            "size": 16, "usage": 0.5, "stages": [{"tokens_per_image": 1, "usage": 0.5}]}},
        "protocol": {"reference": {"view": "0 (crop)", "image_size": 256}, "extractor": {"kind": "x"}},
    }  # fmt: skip
    free = ("num_images", "fid", "sfid", "inception_score", "precision", "recall")
    free = (*tuple(f"scores.generated.{name}" for name in free), "caveats.reason", "caveats.scores", "caveats.sets")
    free += ("not_comparable_because", "protocol.model.parameters.content", "protocol.model.stages", "caveats")
    lack = ("scores.generated.fid", "scores.generated.sfid", "scores.generated.inception_score", "protocol.model")
    lack += ("scores.generated.precision", "scores.generated.recall", "protocol.model.parameters.content")
    lack += ("protocol.model.parameters", "protocol.model.stages", "caveats", "not_comparable_because")
    free += ("protocol", "protocol.model", "protocol.model.parameters")
    of_tokenizer = ("rfid", "lpips_vgg", "num_images", "codebook.size", "codebook.usage", "codebook.stages.usage")
    of_tokenizer = tuple(f"scores.{name}" for name in (*of_tokenizer, "codebook.stages.tokens_per_image"))
    of_tokenizer += ("protocol.reference.view", "protocol.reference.image_size", "protocol.extractor.kind")
    for document, damages in (
        (generated, json_damages(generated, may_be=free, may_lack=lack)),
        (tokenizer, json_damages(tokenizer, may_be=of_tokenizer, may_lack=("scores.lpips_vgg",))),
    ):
        path = write(tmp_path / "results.json", document)

        def read(path: Path = path) -> None:
            assert markdown_table([table._read_row(path, "ours")])  # type: ignore[list-item]

        tally.expect_refusals("results", path, damages, read)
    tally.check("results", at_least=600)


def test_lists_and_notes_of_commands(tmp_path, tally: Tally, monkeypatch):
    """samples.json, scores.jsonl, times of the demo, DeepSpeed's file, notes of segments, configurations of runs."""
    area = "lists and notes"
    (tmp_path / "0.txt").touch()
    listing = write(tmp_path / "samples.json", {"files": ["0.txt"]})
    nothing = "nothing is taken for a sample that may be removed"
    run: Any = partial(check_sample_folder, "output", tmp_path)
    tally.expect_refusals(area, listing, json_damages({"files": ["0.txt"]}), run, tolerated=nothing)
    scored = {"content_images": 5, "scores": {"fid": 1.0}}
    path = write(tmp_path / "scores.jsonl", scored)

    def due() -> None:
        rows = series.read_scores(tmp_path)
        assert not rows or rows[-1]["content_images"] >= 0

    damages = [
        damage._replace(tolerated="no line yet") if not damage.content else damage
        for damage in json_damages(scored, unread=("scores",), may_be=("content_images",))
    ]
    tally.expect_refusals(area, path, damages, due, missing=FIRST)
    times = {"tokenizer": {"seconds": 5.0, "finished": True}}
    path = write(tmp_path / "times.json", times)
    lack = ("tokenizer",)
    damages = json_damages(times, may_be=("tokenizer.seconds", "tokenizer.finished"), may_lack=lack)
    tally.expect_refusals(area, path, damages, lambda: _StepTimes(path, None).seconds, missing=FIRST)  # type: ignore[arg-type]
    given = {"zero_optimization": {"stage": 1}, "autotuning": {"enabled": True}}
    file = write(tmp_path / "deepspeed.json", given)
    run = partial(_merge_user_file, {"zero_optimization": {"stage": 1}}, file)
    damages = json_damages(given, unread=("autotuning",), may_lack=("zero_optimization",))
    tally.expect_refusals(area, file, damages, run, names="deepspeed", tolerated="what DeepSpeed itself has to know")
    note = {"prefix": "000001", "locks": str(tmp_path / "locks"), "pid": 1 << 30, "started": 1.0, "inode": 5}
    claim = write(tmp_path / "claims" / "000001.json", note)
    passed = "a note of segments that cannot be told is removed"

    def clean() -> None:
        streaming.remove_dead(claim.parent, tmp_path)

    for name, content, _ in json_damages(note):
        put(claim, content)
        tally.expect_refusal(area, f"claim: {name}", clean, tolerated=passed)
    trained = tmp_path / "run" / "trainer.json"
    trained.parent.mkdir(parents=True)
    for content in (
        b"",
        b"[",
        b'{"data": 5}',
        b'{"data": {"fit": 1}}',
        b"\xff",
        b"[]",
        b'{"data": {"view_policy": {}}}',
    ):
        put(trained, content)
        tally.expect_refusal(area, f"trainer.json: {content!r}", partial(cut_of, trained.parent), names=str(trained))
    monkeypatch.setattr(study, "resolve_checkpoint", lambda folder: folder)
    save_tokenizer(tmp_path)
    known = {"weights": runs.weights_hash(tmp_path, "ema"), "scores": {"velocity": 0.5}}
    path = write(tmp_path / study._HELD_OUT_FILE, known)
    ended: Any = SimpleNamespace(run_folder=str(tmp_path), validation_path=str(tmp_path / "nowhere"))
    damages = json_damages(known, may_be=("scores", "scores.velocity"), may_lack=("scores.velocity",))
    tally.expect_refusals(area, path, damages, partial(study._held_out_scores, ended), names="nowhere")  # scored again
    tally.check(area, at_least=500)


def test_class_names_labels_and_counts(tmp_path, tally: Tally):
    area = "class names and labels"
    folders = ["a", "b"]
    classes = {"a": "Apple", "b": "Bear"}
    path = write(tmp_path / "classes.json", classes)
    run = partial(class_names_of, str(tmp_path), folders, None)
    tally.expect_refusals(area, path, json_damages(classes, may_be=("a", "b")), run, names=str(tmp_path), absent=ABSENT)
    path.unlink()
    path = tmp_path / "classes.txt"
    path.write_text("a Apple\nb Bear\n")
    damages = [*random_damages(path.read_bytes(), AS_WRITTEN, 200), Damage("empty", b""), Damage("zeros", bytes(50))]
    damages += [
        Damage(f"{text!r}", text) for text in (b"a\xe9 b\n", b"\xff\xfea", b"a A\na B\n", b"c\n", b"a \x07\nb\n")
    ]
    tally.expect_refusals(area, path, damages, run, names=str(tmp_path), absent=ABSENT)
    tars = SourceConfig(kind="webdataset", path=str(tmp_path))
    names_of_labels = partial(class_names_of_labels, tars, str(tmp_path), [0, 1], "the shards")
    damages = random_damages(path.read_bytes(), AS_WRITTEN, 200, seed=1)
    for name, content, reason in [*damages, Damage("empty", b""), Damage("one", b"a"), Damage("gap", b"a\n\nb")]:
        put(path, content)
        tally.expect_refusal(area, name, names_of_labels, names=str(path), tolerated=reason)
    path = tmp_path / "val.csv"
    path.write_text("ImageId,PredictionString\nx_1,a 1 2 3 4\nx_2,b 1 2 3 4\n")
    label_of = {"a": 0, "b": 1}
    damages = [*random_damages(path.read_bytes(), AS_WRITTEN, 300, seed=2), Damage("empty", b"", AS_WRITTEN)]
    tally.expect_refusals(area, path, damages, partial(_read_label_file, str(path), label_of))
    counts = {"shardlist": [{"url": "a.tar", "nsamples": 3}]}
    path = write(tmp_path / "index.json", counts)
    lack = ("shardlist.url", "shardlist.nsamples")
    damages = json_damages(counts, may_be=(*lack, "shardlist"), unread=())
    run = partial(_expected_counts, str(tmp_path))
    tally.expect_refusals(area, path, damages, run, tolerated="compared with what shards hold")
    tally.check(area, at_least=900)


def test_models_to_hand_on(tally: Tally, tmp_path):
    """`model.json`, and the results that sampling settings and model cards are made of."""
    area = "exported models"
    save_tokenizer(tmp_path / "run" / "tokenizer")
    save_generators(tmp_path / "run")
    parts = find_run(tmp_path / "run")
    hashes = {f"{kind}_sha256": digest for kind, digest in parts.hashes().items()}
    sampler = {**hashes, "sampling": {"num_flow_steps": 2, "edit_guidance": 3.0}}
    results = {
        "scores": {"generated": {"num_images": 200, "fid": 1.5, "precision": 0.5}},
        "caveats": [{"scores": ["fid"], "sets": ["generated"], "reason": "few images"}],
        "not_comparable_because": ["other features"],
        "protocol": {
            "extractor": {"kind": "small", "sha256": "0"},
            "reference": {"images": 5, "split": "train", "sha256": "1"},
            "samples": {"sampler": sampler},
            "rounding": "release",
        },
    }
    path = write(tmp_path / "run" / "evaluation" / "results.json", results)
    folder = nvg.load(tmp_path / "run").save_pretrained(tmp_path / "model")
    model = json.loads((folder / "model.json").read_text())
    lack = ("scored_by", "networks.structure", "data", *(f"sampling.{key}" for key in model["sampling"]))
    free = (
        "scored_by",
        "class_names",
        "licences",
        "data",
        "sampling",
        *(f"sampling.{key}" for key in model["sampling"]),
    )
    damages = json_damages(model, may_lack=lack, may_be=free, unread=("data.",))

    def load() -> None:
        load_networks(find_model(folder)[0], sampling=SamplingConfig(), device="cpu", precision="fp32")

    tally.expect_refusals(area, folder / "model.json", damages, load, names="")
    other = "the weights count as unscored, which is said"
    unread = ("scores.generated.fid", "scores.generated.precision", "protocol.rounding", "protocol.extractor.")
    unread += ("protocol.reference.",)
    damages = [
        damage if damage.tolerated else damage._replace(tolerated=other)
        for damage in json_damages(
            results,
            may_lack=("caveats", "not_comparable_because", "protocol.extractor", "protocol.reference"),
            may_be=("caveats.reason", "scores", "caveats.scores", "caveats.sets", "scores.generated.num_images"),
            unread=unread,
        )
    ]

    def read() -> None:
        model_card(parts, scored_settings(parts))

    tally.expect_refusals(area, path, damages, read, names="", missing=other)
    tally.check(area, at_least=300)
