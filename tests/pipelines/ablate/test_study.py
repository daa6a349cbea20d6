"""The ablation study: what it plans, what it concludes, and a microscopic one run, stopped and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from record_training import record_config
from rich.console import Console
from tiny_networks import CODEBOOK_SIZE, save_generators, save_tokenizer

from eval.pool.samplers import GeneratorSpec
from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.granularity import spatial_structure
from nvg.models import ContentGenerator, StructureGenerator
from nvg.records import RecordDataset
from nvg.sampling import SamplingConfig
from pipelines.ablate.plan import AblateConfig, describe_plan, make_plan
from pipelines.ablate.report import judge_orderings, summarise
from pipelines.ablate.study import run_ablate
from pipelines.configuration import CONFIG_FOLDER, load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.generator import run_evaluate
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.sources import SourceConfig
from pipelines.train import drivers
from pipelines.train.config import LaunchConfig
from pipelines.train.generator import GeneratorRunConfig, train_generator

ABLATIONS = sorted(path.stem for path in (CONFIG_FOLDER / "ablations").glob("*.yaml"))


def digits(*overrides: str) -> AblateConfig:
    return load_config(AblateConfig, "ablate/digits.yaml", overrides)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_has_a_header_and_is_a_run_of_both_commands(name):
    text = (CONFIG_FOLDER / "ablations" / f"{name}.yaml").read_text()
    for word in ("# Paper:", "# Command:", "# GPU-hours:", "# Expected:", "# Status:"):
        assert word in text
    run = load_config(GeneratorRunConfig, f"ablations/{name}.yaml")
    assert run.optimizer.num_steps == 66_728  # 40 epochs
    assert run.model.depth == 12


def test_digits_study_trains_every_network_once():
    config = digits()
    assert set(config.variants) == set(ABLATIONS)
    plan = make_plan(config)
    kinds = [run.kind for run in plan.trainings.values()]
    assert (kinds.count("content"), kinds.count("structure")) == (18, 9)
    assert len(plan.cells) == 3 * len(config.variants)
    assert len({run.run_folder for run in plan.trainings.values()}) == 27
    budgets = {(run.kind, run.optimizer.total_images) for run in plan.trainings.values()}
    assert len(budgets) == 2
    cells = {(cell.variant, cell.seed): cell for cell in plan.cells}
    assert cells["structure_pure_noise", 1].content == "content-base-seed1"
    assert cells["content_noised", 2].structure == "structure-base-seed2"
    row = cells["content_noised_pure_noise", 0]
    assert (row.content, row.structure) == ("content-content_noised-seed0", "structure-structure_pure_noise-seed0")
    assert cells["spatial", 0].structure is None
    spatial = plan.trainings[cells["spatial", 0].content]
    assert "records-spatial" in spatial.data.path
    assert plan.trainings["content-next_content-seed1"].model.prediction == "next_content"
    assert plan.trainings["content-next_content-seed1"].loop.seed == 1
    assert any("18 content" in line and "9 structure" in line for line in describe_plan(config, plan))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeds=[0, 0]"], "seeds is"),
        (["variants.base=spatial"], "expected 'base': granularity"),
        (["variants.next_content=temporal"], "expected one of granularity, spatial"),
        (["num_parallel=0"], "num_parallel is 0"),
        (["content.kind=structure"], "content.kind is 'structure'"),
        (["variants.next_contents=granularity"], "next_contents cannot be read"),
    ],
)
def test_impossible_studies_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        make_plan(digits(*overrides))


def cell(variant, seed, **scores):
    return {"variant": variant, "seed": seed, "scores": scores}


def test_orderings_are_compared_seed_by_seed():
    cells = [cell("base", seed, fid=2.0 + seed, cross_entropy=3.0) for seed in range(3)]
    cells += [cell("structure_pure_noise", seed, fid=2.5 + seed, cross_entropy=3.0) for seed in range(3)]
    cells += [cell("no_structure_rope", seed, fid=1.0 + seed, cross_entropy=3.0) for seed in range(3)]
    cells += [cell("spatial", seed, fid=3.0, cross_entropy=3.0) for seed in range(3)]
    found = {ordering["worse"]: ordering for ordering in judge_orderings(cells)}
    assert set(found) == {"structure_pure_noise", "no_structure_rope", "spatial"}
    assert found["structure_pure_noise"]["verdict"] == "as in the paper"
    assert found["no_structure_rope"]["verdict"] == "the other way round"
    assert found["spatial"]["verdict"] == "undecided"
    assert found["structure_pure_noise"]["differences"] == pytest.approx([0.5] * 3)
    assert summarise(cells)["base"]["fid"] == {"mean": 3.0, "spread": 1.0}
    assert summarise(cells[:1])["base"]["fid"] == {"mean": 2.0, "spread": None}


def make_spatial(folder: Path) -> Path:
    """Turns a saved tokenizer into one of spatial structure."""
    file = folder / "config.json"
    description = json.loads(file.read_text())
    description["config"]["structure"] = "spatial"
    file.write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def spaces(ray_session, tmp_path_factory) -> dict[str, Path]:
    """Held-out digits as records of one autoencoder on both kinds of structure."""
    root = tmp_path_factory.mktemp("spaces")
    found = {}
    for kind in ("granularity", "spatial"):
        tokenizer = save_tokenizer(root / f"tokenizer-{kind}")
        if kind == "spatial":
            make_spatial(tokenizer)
        found[f"tokenizer-{kind}"] = tokenizer
        found[kind] = precompute(
            PrecomputeConfig(source=SourceConfig(split="test"), tokenizer=str(tokenizer), output=str(root / kind))
        )
    return found


@pytest.mark.cluster
def test_spatial_records_have_one_map_and_decode_to_what_was_quantised(spaces):
    records = RecordDataset.open(spaces["spatial"])
    assert records.manifest["structure"] == "spatial"
    assert "structure" not in RecordDataset.open(spaces["granularity"]).manifest
    stored = np.concatenate(records.shards)
    assert (stored["structure"] == spatial_structure(16).numpy()).all()
    assert int(stored["content_ids"].max()) < CODEBOOK_SIZE


@pytest.mark.cluster
def test_spatial_records_are_refused_where_structure_is_learned_or_compared(spaces, tmp_path):
    run = record_config(spaces["spatial"], tmp_path / "run", "structure")
    with pytest.raises(UserError, match="nothing for a structure generator to learn"):
        train_generator(run)
    run = record_config(spaces["granularity"], tmp_path / "run", validation_path=str(spaces["spatial"]))
    with pytest.raises(UserError, match=r"\(spatial structure\).*\(granularity\)"):
        train_generator(replace(run, loop=replace(run.loop, validate_every_steps=2)))


SWITCHES = [
    ("content", {"content_input": "noised_canvas"}),
    ("content", {"content_input": "mixed_canvas"}),
    ("content", {"prediction": "next_content"}),
    ("content", {"structure_rope": False}),
    ("structure", {"structure_input": "noise"}),
    ("structure", {"structure_rope": False}),
]


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "switches"), SWITCHES)
def test_a_training_with_a_switch_resumes_bit_for_bit(spaces, tmp_path, kind, switches):
    finals = {}
    for name, stops in (("straight", [None]), ("stopped", [3, None])):
        for stop in stops:
            run = record_config(spaces["granularity"], tmp_path / name, kind)
            run = replace(
                run,
                **{kind: replace(getattr(run, kind), **switches)},
                loop=replace(run.loop, engine="plain", stop_after_steps=stop),
            )
            finals[name] = train_generator(run)
    network_type = ContentGenerator if kind == "content" else StructureGenerator
    straight, stopped = (load_network(network_type, finals[name]) for name in ("straight", "stopped"))
    for name, value in switches.items():
        assert getattr(straight.config, name) == value
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, stopped.state_dict()[key]), key
    name = next(iter(switches))
    plain = replace(run, **{kind: replace(getattr(run, kind), **{name: getattr(type(straight.config)(), name)})})
    with pytest.raises(UserError, match=rf"model\.{name}"):
        train_generator(plain)


@pytest.mark.cluster
def test_spatial_samples_need_no_structure_generator(spaces, tmp_path):
    save_generators(tmp_path)
    spec = GeneratorSpec(
        tokenizer=str(spaces["tokenizer-spatial"]),
        content=str(tmp_path / "content"),
        structure="",
        num_classes=10,
        sampling=SamplingConfig(num_flow_steps=2),
    )
    spec.check()
    labels = torch.arange(6)
    sequences = spec.build().draw_sequences(labels, labels)
    assert torch.equal(sequences.structure_BL, spatial_structure(16).expand(6, -1))
    assert torch.equal(spec.build().draw_sequences(labels[4:], labels[4:]).content_ids_BT, sequences.content_ids_BT[4:])
    with pytest.raises(UserError, match="has granularity structure; give its generator"):
        replace(spec, tokenizer=str(spaces["tokenizer-granularity"])).check()
    with pytest.raises(UserError, match="has spatial structure; its maps are known"):
        replace(spec, structure=str(tmp_path / "structure")).build()


@pytest.mark.cluster
@pytest.mark.slow
def test_eval_command_scores_spatial_samples(spaces, tmp_path):
    save_generators(tmp_path)
    config = load_config(
        EvaluateConfig,
        None,
        [
            f"tokenizer={spaces['tokenizer-spatial']}",
            f"content={tmp_path / 'content'}",
            f"output={tmp_path / 'evaluation'}",
            "guidance_one=false",
            "pool={num_samples: 40, chunk_size: 20, batch_size: 20}",
            "feature_training.num_steps=20",
        ],
    )
    results = run_evaluate(config)
    assert results["scores"]["generated"]["num_images"] == 40
    assert next(iter(results["protocol"]["pools"].values()))["sampler"]["structure_sha256"] is None


def tiny_study(folder: Path) -> AblateConfig:
    config = digits(
        f"folder={folder}",
        "seeds=[0]",
        "tokenizer.source={num_views: 1, view_policy: center}",
        "tokenizer.model.base_width=8",
        "tokenizer.optimizer={total_images: 320, warmup_images: 0}",
        "content.content={depth: 1, width: 64}",
        "structure.structure={depth: 1, width: 64}",
        "content.optimizer={total_images: 256, warmup_images: 0}",
        "structure.optimizer={total_images: 256, warmup_images: 0}",
        "content.loop={checkpoint_every_steps: 2, validate_every_steps: 2, log_every_steps: 1}",
        "structure.loop={checkpoint_every_steps: 2, validate_every_steps: null, log_every_steps: 1}",
        "sampling.num_flow_steps=2",
        "pool={num_samples: 60, chunk_size: 60, batch_size: 60, num_actors: 1}",
        "feature_training.num_steps=20",
    )
    kept = ("base", "structure_pure_noise", "spatial")
    return replace(config, variants={name: config.variants[name] for name in kept})


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_microscopic_study_stopped_and_gone_on_with(ray_session, tmp_path, monkeypatch, capsys):
    config = tiny_study(tmp_path / "study")
    plan = make_plan(config)
    assert len(plan.trainings) == 4
    finished = drivers._Display.finished

    def stop_after_the_first_generator(self, name):
        finished(self, name)
        if name in plan.trainings:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drivers._Display, "finished", stop_after_the_first_generator)
        with pytest.raises(KeyboardInterrupt):
            run_ablate(config)
    done = [name for name, run in plan.trainings.items() if drivers.is_finished(run)]
    assert done
    assert len(done) < 4
    files = {name: Path(plan.trainings[name].run_folder) / "provenance.json" for name in done}
    sessions = {name: file.read_bytes() for name, file in files.items()}

    table = run_ablate(config)
    assert {name: file.read_bytes() for name, file in files.items()} == sessions  # finished ones were left alone
    text = table.read_text()
    for name in config.variants:
        assert f"| {name} |" in text
    assert "37.89" in text
    assert "## Orderings of the paper" in text
    result = json.loads((table.parent / "ablation.json").read_text())
    assert [found["variant"] for found in result["cells"]] == list(config.variants)
    scores = {found["variant"]: found["scores"] for found in result["cells"]}
    assert {f"cross_entropy_{stage}" for stage in range(5)} | {"fid", "class_accuracy"} <= set(scores["base"])
    assert {"velocity_0", "velocity_2", "validation_rise"} <= set(scores["base"])
    assert "velocity" not in scores["spatial"]
    assert set(result["reference"]["reconstructions"]) == {"granularity", "spatial"}
    assert (table.parent / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "finished" in capsys.readouterr().err

    cells = result["cells"]
    monkeypatch.setattr(drivers, "training_process", None)  # nothing is left to train
    run_ablate(config)
    assert json.loads((table.parent / "ablation.json").read_text())["cells"] == cells


@pytest.mark.cluster
@pytest.mark.slow
def test_a_training_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    config = tiny_study(tmp_path)
    run = replace(config.content, run_folder=str(tmp_path / "run"), launch=LaunchConfig())
    with pytest.raises(UserError, match=r"(?s)training alone failed \(exit code 2\).*manifest.*start the same command"):
        drivers.train_queue({"alone": run}, num_parallel=1, console=Console(stderr=True))


def test_classes_that_no_judge_can_learn_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    folder = tmp_path / "images" / "one"
    folder.mkdir(parents=True)
    for number in range(40):
        Image.fromarray(np.full((16, 16), number, np.uint8)).save(folder / f"{number}.png")
    config = tiny_study(tmp_path / "study")
    source = SourceConfig(kind="folder", path=str(folder.parent))
    monkeypatch.setattr(drivers, "training_process", None)
    with pytest.raises(UserError, match="there is one class only"):
        run_ablate(replace(config, precompute=replace(config.precompute, source=source)))
    assert not (tmp_path / "study").exists()
