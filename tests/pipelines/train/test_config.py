"""Typed training settings and the DeepSpeed dictionary made from them."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from cluster.ranks import Ranks
from cluster.session import ClusterError
from nvg.errors import UserError
from nvg.models import ContentGeneratorConfig
from pipelines.configuration import ConfigError, dump_config, load_config
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig
from pipelines.train.deepspeed_settings import deepspeed_dict
from pipelines.train.drivers import PairRunConfig
from pipelines.train.generator import ContentRun, GeneratorRunConfig
from pipelines.train.tokenizer import TokenizerRunConfig


def derive(**deepspeed):
    return deepspeed_dict(
        optimizer=OptimizerConfig(global_batch=64, micro_batch=16, gradient_clipping=0.0),
        loop=LoopConfig(),
        deepspeed=DeepSpeedConfig(**deepspeed),
        world_size=2,
    )


def test_every_moved_default_is_written_out():
    found = derive(zero_stage=2)
    assert found["gradient_clipping"] == 0.0
    assert found["train_batch_size"] == 64
    assert found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * 2 == 64
    assert found["zero_optimization"]["stage"] == 2
    assert found["bf16"] == {"enabled": False}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_shipped_files_fit_their_stage(repository, stage):
    file = str(repository / "configs" / "deepspeed" / f"zero{stage}.json")
    assert derive(zero_stage=stage, file=file)["zero_optimization"]["stage"] == stage
    with pytest.raises(UserError, match=r"zero_optimization\.stage: the file says"):
        derive(zero_stage=(stage + 1) % 4, file=file)


@pytest.mark.parametrize("stage", [2, 3])
def test_shipped_files_with_offload_add_it_to_their_stage(repository, stage):
    file = str(repository / "configs" / "deepspeed" / f"zero{stage}_offload.json")
    found = derive(zero_stage=stage, file=file)
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found["zero_optimization"].items() >= derive(zero_stage=stage)["zero_optimization"].items()
    assert found["zero_force_ds_cpu_optimizer"] is False  # torch's fused AdamW, also on the host


def test_offload_needs_something_to_offload():
    with pytest.raises(ValueError, match=r"deepspeed.offload_optimizer=true at deepspeed.zero_stage=0"):
        DeepSpeedConfig(zero_stage=0, offload_optimizer=True)


def test_compile_and_zero_3_do_not_go_together():
    with pytest.raises(ConfigError, match=r"compute.compile=true at deepspeed.zero_stage=3"):
        load_config(GeneratorRunConfig, None, ["compute.compile=true", "deepspeed.zero_stage=3"])


def test_own_file_adds_sections_and_contradictions_are_named(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"comms_logger": {"enabled": True}, "gradient_clipping": "auto"}))
    assert derive(file=str(file))["comms_logger"] == {"enabled": True}
    file.write_text(json.dumps({"gradient_clipping": 0.5, "optimizer": {"type": "Adam"}}))
    with pytest.raises(UserError, match=r"gradient_clipping: the file says 0.5") as error:
        derive(file=str(file))
    assert "optimizer: " in str(error.value)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(3, None), (2, 5), (128, None)])
def test_batch_that_does_not_divide_is_refused(world_size, micro_batch):
    with pytest.raises(UserError, match="global_batch=64 does not divide"):
        OptimizerConfig(global_batch=64, micro_batch=micro_batch).accumulation_steps(world_size)


@pytest.mark.parametrize("schema", [TokenizerRunConfig, GeneratorRunConfig, PairRunConfig])
def test_run_configs_are_valid_schemas(schema):
    assert isinstance(load_config(schema, None), schema)


@pytest.mark.parametrize(
    "override",
    [
        "loop.engine=fast", "optimizer.lr=-1", "loop.warmup=3", "deepspeed.zero_stage=4", "optimizer.lr=.inf",
        "optimizer.betas=[0.9, 1.0]", "optimizer.warmup_images=256000", "launch.launcher=slurm", "loop.seed=-1",
    ],
)  # fmt: skip
def test_impossible_settings_name_the_key(override):
    with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[1]):
        load_config(GeneratorRunConfig, None, [override])


OLD_CONTENT = """
kind: content
content: {depth: 3}
structure: {depth: 12, structure_input: noise}
"""


@pytest.mark.parametrize("schema", [GeneratorRunConfig, ContentRun])
def test_file_that_holds_the_other_generators_section_is_read_as_before(tmp_path, schema):
    file = tmp_path / "old.yaml"
    file.write_text(OLD_CONTENT)
    run = load_config(schema, file)
    assert isinstance(run, ContentRun)
    assert run == ContentRun(content=ContentGeneratorConfig(depth=3))
    assert load_config(GeneratorRunConfig, file, ["kind=structure"]).model.depth == 12
    (tmp_path / "again.yaml").write_text(dump_config(run))
    assert load_config(GeneratorRunConfig, tmp_path / "again.yaml") == run
    pair = tmp_path / "pair.yaml"
    pair.write_text("content:" + OLD_CONTENT.replace("\n", "\n  "))
    assert load_config(PairRunConfig, pair).content.content == run.content


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("structure.depht=3", "structure.depht is an unknown key"),
        ("structure.depth=deep", "structure.depth is 'deep'"),
        ("kind=tokenizer", "kind is 'tokenizer'; expected content or structure"),
    ],
)
def test_what_a_generators_file_may_not_say(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(GeneratorRunConfig, None, [override])


def test_every_optimizer_field_is_compared_on_resume_or_is_the_micro_batch(tmp_path):
    from tiny_training import build_task, tiny_config

    from pipelines.train.launch import run_training

    config = tiny_config(tmp_path, stop_after_steps=1)
    optimizer = dataclasses.replace(config.optimizer, lr_factors={"2": 2.0})
    run_training(dataclasses.replace(config, optimizer=optimizer), build_task)
    saved = json.loads((tmp_path / "checkpoints" / "step-00000001" / "trainer.json").read_text())["config"]
    compared = {name.split(".")[1] for name in saved if name.startswith("optimizer.")}
    assert compared == {item.name for item in dataclasses.fields(OptimizerConfig)} - {"micro_batch"}


def test_launchers_name_the_ranks_of_a_node_differently():
    launcher = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    place = Ranks.read(launcher)
    assert (place.rank, place.local_world_size) == (3, 2)
    assert launcher["LOCAL_WORLD_SIZE"] == "2"
    with pytest.raises(ClusterError, match="LOCAL_WORLD_SIZE"):
        Ranks.read({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    with pytest.raises(ClusterError, match="same number of ranks"):
        Ranks.read({**launcher, "WORLD_SIZE": "5"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number; without a launcher: unset WORLD_SIZE"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''; expected a whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'; expected a whole number"),
        ({"WORLD_SIZE": "0"}, "expected rank < world size"),
        ({"RANK": "1.5"}, "RANK is '1.5'; expected a whole number"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "all"}, "LOCAL_WORLD_SIZE is 'all'; expected a whole number"),
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "½"}, "LOCAL_SIZE is '½'; expected a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without a launcher: unset WORLD_SIZE RANK"),
        ({"LOCAL_RANK": "3"}, "without a launcher: unset LOCAL_RANK"),
    ],
)
def test_variables_that_a_launcher_left_are_named(environment, message):
    with pytest.raises(ClusterError) as caught:
        Ranks.read(environment)
    assert message in str(caught.value)


def test_a_plain_run_with_left_over_variables_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    from tiny_training import tiny_config

    from pipelines.train.launch import run_training

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"found 2 in WORLD_SIZE; .* without a launcher: unset WORLD_SIZE RANK"):
        run_training(tiny_config(tmp_path / "run"), lambda _: pytest.fail("a task was built"))
    assert not (tmp_path / "run").exists()


def test_ranks_that_cannot_meet_are_told_so():
    """In a process of its own: this one may have joined a group before."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    program = "from cluster.ranks import Ranks; Ranks(world_size=2, local_world_size=2).join()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "rank 0 waits at None:None for the other 1" in done.stderr
    assert re.search(r"ClusterError: The 2 ranks did not find each other: .*MASTER_ADDR", done.stderr)
