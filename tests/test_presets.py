"""Every file below configs/: a header that says where it comes from, the schema of its folder, the paper's numbers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_vectors import FOLDER as VECTORS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from nvg.models import ContentGenerator, StructureGenerator
from nvg.sampling import SamplingConfig
from nvg.tokenizer import Tokenizer
from pipelines.ablate.plan import AblateConfig
from pipelines.cli.main import app
from pipelines.configuration import ConfigError, load_config
from pipelines.demo import DemoConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.table import PublishedConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sample import SampleConfig
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.tokenizer import TokenizerRunConfig

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
SCHEMAS: dict[str, type] = {
    "ablate": AblateConfig,
    "ablations": GeneratorRunConfig,
    "content": GeneratorRunConfig,
    "demo": DemoConfig,
    "eval": EvaluateConfig,
    "precompute": PrecomputeConfig,
    "published": PublishedConfig,
    "sampling": SamplingConfig,
    "structure": GeneratorRunConfig,
    "tokenizer": TokenizerRunConfig,
}
IMAGENET = 1_281_167
# depth: parameters of content and structure, epochs, images a step, share of training before the decay
GENERATORS = {
    12: (108_421_408, 27_469_064, 40, 768, 0.8),
    16: (255_183_904, 64_369_672, 200, 768, 0.8),
    20: (496_602_912, 124_972_808, 250, 720, 0.8),
    24: (856_271_392, 215_176_712, 350, 864, 200 / 350),
}
TRAININGS = [(kind, f"{kind}/d{depth}.yaml", depth) for kind in ("content", "structure") for depth in GENERATORS]


def header(name: str) -> dict[str, str]:
    """The file's first comment block: entries `Name: text`, continued by indented lines."""
    entries, key = {}, ""
    for line in (CONFIGS / name).read_text().splitlines():
        if not line.startswith("#") or line == "#":
            break
        if found := re.match(r"# (Paper|Command|GPU-hours|Expected|Status|Missing): +(.+)", line):
            key = found[1]
            entries[key] = found[2]
        elif key:
            entries[key] += " " + line.removeprefix("#").strip()
    return entries


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def check_stated_work(name: str, work: float, *, flops_per_s: float) -> None:
    """FLOP and hours of the header, the hours at 40 % of what the GPU can do."""
    text = header(name)["GPU-hours"]
    assert float(re.findall(r"([\d.]+e\d+) FLOP", text)[0]) == pytest.approx(work, rel=0.02)
    hours = float(re.findall(r"about ([\d,]+) hours", text)[0].replace(",", ""))
    assert hours == pytest.approx(work / (0.4 * flops_per_s) / 3600, rel=0.03, abs=0.5)


def test_published_presets_are_there():
    expected = {f"{kind}/d{depth}.yaml" for kind in ("content", "structure") for depth in (12, 16, 20, 24)}
    assert {*expected, "tokenizer/f16.yaml", "sampling/paper.yaml", "sampling/release.yaml"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_file_starts_with_its_provenance(name):
    needed = {"Command", "Expected"}
    if not name.startswith(("demo/", "ablate/")):  # those run in minutes on digits and claim nothing of the paper's
        needed |= {"Paper", "GPU-hours", "Status"}
    assert needed <= header(name).keys()


@pytest.mark.parametrize("name", FILES)
def test_file_loads_with_the_schema_of_its_folder(name):
    schema = SCHEMAS[name.split("/")[0]]
    assert isinstance(load_config(schema, name), schema)


@pytest.mark.parametrize(("kind", "name", "depth"), TRAININGS)
def test_generator_has_the_papers_parameters(kind, name, depth):
    config = load_config(GeneratorRunConfig, name)
    assert config.kind == kind
    with torch.device("meta"):
        network = ContentGenerator(config.model) if kind == "content" else StructureGenerator(config.model)
    expected = GENERATORS[depth][0 if kind == "content" else 1]
    assert num_parameters(network) == expected
    assert f"{expected:,} parameters" in header(name)["Expected"]


@pytest.mark.parametrize(("kind", "name", "depth"), TRAININGS)
def test_generator_trains_as_published(kind, name, depth):
    config = load_config(GeneratorRunConfig, name)
    _, _, epochs, batch, decay_start = GENERATORS[depth]
    optimizer = config.optimizer
    assert optimizer.global_batch == batch
    assert optimizer.total_images == epochs * IMAGENET
    assert optimizer.lr == pytest.approx(1e-4 * batch / 256)
    assert optimizer.warmup_images == 1000 * batch
    assert (optimizer.warmup_factor, optimizer.final_factor) == (0.005, 0.1)
    assert optimizer.decay_start == pytest.approx(decay_start)
    assert optimizer.ema_half_life_images == pytest.approx(batch * math.log(2) / -math.log(0.9999), abs=batch)
    assert (optimizer.betas, optimizer.weight_decay, optimizer.gradient_clipping) == ([0.9, 0.95], 0.05, 1.0)
    assert optimizer.lr_factors == {}
    assert (config.loss.class_dropout_prob, config.loss.stages_per_image) == (0.1, None)
    assert config.loop.precision == "bf16"
    assert optimizer.accumulation_steps(config.launch.num_workers) >= 1


@pytest.mark.parametrize(("kind", "name", "depth"), TRAININGS)
def test_stated_work_is_counted(kind, name, depth):
    """Three times the forward pass (backward counts twice) of all stages of every image."""
    config = load_config(GeneratorRunConfig, name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        maps, stages = torch.empty(9, 256, dtype=torch.int64), torch.arange(9)
        canvas, classes = torch.empty(9, 256, 32), torch.zeros(9, dtype=torch.int64)
        if kind == "content":
            ContentGenerator(config.model)(canvas, maps, stages, classes)
        else:
            noisy, time = torch.empty(7, 256, 8), torch.empty(7)
            StructureGenerator(config.model)(noisy, canvas[:7], maps[:7], stages[:7], time, classes[:7])
    work = 3 * counter.get_total_flops() * config.optimizer.total_images
    check_stated_work(name, work, flops_per_s=989e12)


def test_steps_are_those_of_table_1():
    steps = [load_config(GeneratorRunConfig, f"content/d{depth}.yaml").optimizer.num_steps for depth in (16, 20, 24)]
    assert [step // 1000 for step in steps] == [333, 444, 518]


def test_tokenizer_has_the_release_tensors():
    config = load_config(TokenizerRunConfig, "tokenizer/f16.yaml")
    with torch.device("meta"):
        network = Tokenizer(config.model)
    shapes = json.loads((VECTORS / "release_checkpoint_keys.json").read_text())["autoencoder"]
    assert num_parameters(network) == sum(math.prod(shape) for shape in shapes.values())
    assert f"{num_parameters(network):,} parameters" in header("tokenizer/f16.yaml")["Expected"]
    optimizer = config.optimizer
    assert (optimizer.global_batch, optimizer.total_images, optimizer.lr) == (256, 100 * IMAGENET, 1e-4)
    assert (optimizer.decay_shape, optimizer.decay_start, optimizer.final_factor) == ("cosine", 0.0, 0.0)
    loss, judges = config.loss, config.judges
    assert (loss.perceptual_weight, loss.adversarial_weight, loss.codebook_weight) == (1.0, 0.1, 1.0)
    assert loss.soft_assignment_images == IMAGENET
    assert (judges.lr, judges.weight_decay, judges.gradient_clipping) == (1e-4, 5e-4, 1.0)


def test_stated_work_of_tokenizer_and_records_is_counted():
    with torch.device("meta"):
        tokenizer = Tokenizer(load_config(TokenizerRunConfig, "tokenizer/f16.yaml").model)
        with FlopCounterMode(display=False) as encoder:
            latent = tokenizer.encode(torch.empty(1, 3, 256, 256))
        with FlopCounterMode(display=False) as decoder:
            tokenizer.decode(latent)
    encoding, decoding = encoder.get_total_flops(), decoder.get_total_flops()
    check_stated_work("precompute/imagenet.yaml", encoding * 16 * IMAGENET, flops_per_s=495e12)
    check_stated_work("tokenizer/f16.yaml", 3 * (encoding + decoding) * 100 * IMAGENET, flops_per_s=495e12)


def test_records_are_what_the_presets_say():
    config = load_config(PrecomputeConfig, "precompute/imagenet.yaml")
    assert f"{IMAGENET * config.source.num_views:,} records" in header("precompute/imagenet.yaml")["Expected"]
    assert (config.source.view_policy, config.source.image_size, config.source.split) == ("random_crop", 256, "all")
    trained_on = load_config(TokenizerRunConfig, "tokenizer/f16.yaml").source
    assert replace(trained_on, view_policy="random_crop", num_views=16) == config.source
    assert trained_on.view_policy == "fresh_crop"
    small = load_config(PrecomputeConfig, "precompute/imagenet_one_view.yaml")
    assert f"{IMAGENET * small.source.num_views:,} records" in header("precompute/imagenet_one_view.yaml")["Expected"]
    assert replace(small, source=config.source, output=config.output) == config


@pytest.mark.parametrize(("kind", "name", "depth"), TRAININGS)
def test_an_epoch_of_the_presets_reads_one_view_of_each_image_in_turn(kind, name, depth):
    assert load_config(GeneratorRunConfig, name).data.views_per_epoch == "in_turn"


def test_sampling_presets_reach_the_published_ends():
    paper, release = (load_config(SamplingConfig, f"sampling/{name}.yaml") for name in ("paper", "release"))
    for config in (paper, release):
        assert [config.content_scale(stage, 8) for stage in (0, 8)] == [1.0, 3.5]
        assert [config.top_p(stage, 8) for stage in (0, 8)] == [1.0, pytest.approx(0.5)]
        assert config.structure_scale(0, 8) == 1.0
        assert config.num_flow_steps == 25
    assert (paper.structure_scale(6, 8), paper.gumbel_split) == (2.5, True)
    assert (release.structure_scale(6, 8), release.gumbel_split) == (2.125, False)


@pytest.mark.parametrize("schema", [SampleConfig, EvaluateConfig])
def test_sampling_preset_fills_the_section_and_yields_to_the_command_line(schema, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("sampling: {gumbel_split: true, num_flow_steps: 7}\n")
    folders = [] if schema is SampleConfig else ["tokenizer=a", "content=b", "structure=c", "output=d"]
    overrides = [*folders, "sampling.num_flow_steps=3"]
    config = load_config(schema, own, overrides, sections={"sampling": "sampling/release.yaml"})
    assert (config.sampling.gumbel_split, config.sampling.num_flow_steps) == (False, 3)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train content --config content/d16.yaml", "333638 steps of 768 images"),
        ("train structure --config structure/d24.yaml", "518992 steps of 864 images"),
        # What would be refused is refused here as well: weights of the judges that are not there, for one.
        (
            "train tokenizer --config tokenizer/f16.yaml loss.perceptual_weight=0 loss.adversarial_weight=0",
            "500456 steps of 256 images",
        ),
        ("precompute --config precompute/imagenet.yaml", "encode 16 view(s)"),
        ("sample --sampling release", "gumbel_split: false"),
        ("eval generator --sampling paper tokenizer=a content=b structure=c output=d", "structure_guidance: 3.0"),
    ],
)
def test_commands_take_the_presets(command, says):
    done = CliRunner().invoke(app, [*command.split(), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert says in done.output


def test_unknown_sampling_preset_is_refused_by_name():
    done = CliRunner().invoke(app, ["sample", "--sampling", "relase", "--dry-run"])
    assert isinstance(done.exception, ConfigError)
    assert "Did you mean 'sampling/release.yaml'?" in str(done.exception)


def test_the_evaluation_of_published_tables_samples_as_the_release_does():
    config = load_config(EvaluateConfig, "eval/imagenet256.yaml")
    assert config.sampling == load_config(SamplingConfig, "sampling/release.yaml")
    assert (config.pool.num_samples, config.rounding, config.weights) == (50_000, "release", "ema")
    assert config.extractor_kind == "inception-v3-compat"
