"""Every file below configs/: a header that says where it comes from, the schema of its folder, the paper's numbers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_vectors import FOLDER as VECTORS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from nvg.models import ContentGenerator, StructureGenerator
from nvg.records import FeatureLayout, RecordLayout
from nvg.sampling import SamplingConfig
from nvg.tokenizer import Tokenizer
from pipelines.ablate.plan import AblateConfig
from pipelines.cli.main import app
from pipelines.configuration import ConfigError, load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.table import PublishedConfig
from pipelines.evaluate.tokenizer import EvaluateTokenizerConfig
from pipelines.experiment.forecast import load_steps, workload_of
from pipelines.experiment.forecast_page import headers
from pipelines.experiment.steps import ExperimentConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sample import SampleConfig
from pipelines.sources.views import make_view
from pipelines.train.devices import DeviceTable
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.plan import plan_alignment
from pipelines.train.tokenizer import TokenizerRunConfig

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
SCHEMAS: dict[str, type] = {
    "eval/tokenizer256.yaml": EvaluateTokenizerConfig,
    "ablate": AblateConfig,
    "ablations": GeneratorRunConfig,
    "content": GeneratorRunConfig,
    "demo": ExperimentConfig,
    "devices.yaml": DeviceTable,
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
    expected |= {f"sampling/{name}.yaml" for name in ("paper", "release", "table2")}
    expected |= {"tokenizer/f16.yaml", "eval/tokenizer256.yaml", "published/tokenizers256.yaml"}
    assert expected <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_file_starts_with_its_provenance(name):
    needed = {"Command", "Expected"}
    if not name.startswith(("demo/", "ablate/", "devices")):  # of digits, in minutes, and of machines: not the paper's
        needed |= {"Paper", "GPU-hours", "Status"}
    assert needed <= header(name).keys()


@pytest.mark.parametrize("name", FILES)
def test_file_loads_with_the_schema_of_its_folder(name):
    schema = SCHEMAS.get(name) or SCHEMAS[name.split("/")[0]]
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
    assert optimizer.ema_ramp == 0  # 0.9999 from the first step on
    assert (config.loss.repa_weight, config.loss.repa_block) == ((0.5, 8) if kind == "content" else (0.0, None))
    assert config.model.drop_path_rate == 0.1
    assert config.model.structure_rope
    if kind == "content":
        assert (config.model.prediction, config.model.content_input) == ("final_canvas", "canvas")
    else:
        assert config.model.structure_input == "partial"
    assert config.loop.precision == "bf16"
    assert optimizer.accumulation_steps(config.launch.num_workers) >= 1


@pytest.mark.parametrize(("kind", "name", "depth"), TRAININGS)
def test_stated_work_is_counted(kind, name, depth):
    """By torch: three times the forward pass (backward counts twice) of all stages of every image."""
    config = load_config(GeneratorRunConfig, name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        maps, stages = torch.empty(9, 256, dtype=torch.int64), torch.arange(9)
        canvas, classes = torch.empty(9, 256, 32), torch.zeros(9, dtype=torch.int64)
        if kind == "content":
            ContentGenerator(config.model)(canvas, maps, stages, classes)
        else:
            noisy, time = torch.empty(7, 256, 8), torch.empty(7)
            StructureGenerator(config.model)(noisy, canvas[:7], maps[:7], stages[:7], time, classes[:7])
    work = 3 * counter.get_total_flops()
    planned = workload_of(load_steps([name]), kind).flops_per_image
    assert planned == pytest.approx(work, rel=0.02)
    check_stated_work(name, work * config.optimizer.total_images, flops_per_s=989e12)


def test_a_decoder_that_keeps_to_its_place_costs_a_pass_of_the_encoder():
    """By torch: the digits' tokenizer, forward and backward, and the turned pictures' way to their canvas."""
    name = "demo/digits.yaml"
    config = load_steps([name])["tokenizer"]
    assert isinstance(config, TokenizerRunConfig)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tokenizer = Tokenizer(config.model)
        latent = tokenizer.encode(torch.empty(1, 1, 16, 16))
        encoder = counter.get_total_flops()
        tokenizer.decode(latent)
    planned, without = (
        workload_of(load_steps([name], [f"tokenizer.loss.foreign_regions={share}"]), "tokenizer").flops_per_image
        for share in (0.15, 0.0)
    )
    assert without == pytest.approx(3 * counter.get_total_flops(), rel=0.02)
    assert planned - without == pytest.approx(encoder, rel=0.02)


@pytest.mark.parametrize(
    "name", [*(name for _, name, _ in TRAININGS), "tokenizer/f16.yaml", "precompute/imagenet.yaml"]
)
def test_the_header_is_what_the_plan_writes(name):
    steps = load_steps([name, *(["tokenizer/f16.yaml"] if "precompute" in name else [])])
    lines = headers(steps, IMAGENET)[name.split("/")[0]]
    assert "\n".join(lines) + "\n" in (CONFIGS / name).read_text()


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
    assert optimizer.ema_ramp == 0
    assert optimizer.ema_half_life_images == pytest.approx(256 * math.log(2) / -math.log(0.9999), abs=256)
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
    check_stated_work("precompute/imagenet.yaml", encoding * 16 * IMAGENET, flops_per_s=67e12)
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


@pytest.mark.parametrize("last_stage", [4, 6, 8, 10])
def test_the_papers_sampling_ends_at_its_scales_on_any_grid(last_stage):
    paper = load_config(SamplingConfig, "sampling/paper.yaml")
    assert paper.structure_scale(last_stage - 2, last_stage) == 2.5
    assert paper.content_scale(last_stage, last_stage) == 3.5


def test_the_ablations_are_sampled_without_schedule_and_nucleus():
    config = load_config(SamplingConfig, "sampling/table2.yaml")
    assert {config.content_scale(stage, 8) for stage in range(9)} == {1.5}
    assert {config.structure_scale(stage, 8) for stage in range(7)} == {1.5}
    assert {config.top_p(stage, 8) for stage in range(9)} == {1.0}
    assert config.num_flow_steps == 25
    study = load_config(AblateConfig, "ablate/digits.yaml").sampling
    assert replace(study, num_flow_steps=25) == config


def test_tokenizers_are_scored_on_the_centre_of_the_larger_image():
    """Table 3: the centre 256 of the image whose shorter side is 288, not of one of 256."""
    config = load_config(EvaluateTokenizerConfig, "eval/tokenizer256.yaml")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    found = make_view(picture, config=config.source, key="", view=0)
    resized = np.asarray(picture.resize((384, 288), Image.Resampling.LANCZOS))
    assert np.array_equal(found, resized[16:272, 64:320])
    assert (config.source.kind, config.source.split) == ("imagenet", "test")
    assert (config.extractor_kind, config.rounding, list(config.lpips)) == ("inception-v3-compat", "release", ["vgg"])
    cut = load_config(TokenizerRunConfig, "tokenizer/f16.yaml").source
    assert (cut.image_size, cut.image_channels) == (config.source.image_size, config.source.image_channels)


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
        (
            "train content --config content/d12.yaml",
            "run `nvg precompute` with repa.store=jpeg and have dinov2_weights",
        ),
        ("train structure --config structure/d24.yaml", "518992 steps of 864 images"),
        # What would be refused is refused here as well: weights of the judges that are not there, for one.
        (
            "train tokenizer --config tokenizer/f16.yaml loss.perceptual_weight=0 loss.adversarial_weight=0",
            "500456 steps of 256 images",
        ),
        ("precompute --config precompute/imagenet.yaml", "encode 16 view(s)"),
        ("precompute --config precompute/imagenet.yaml", "store each view as a JPEG beside its record (about 40 kB"),
        ("precompute --config precompute/imagenet.yaml repa.store=nothing", "will need loss.repa_weight=0"),
        ("eval tokenizer --config eval/tokenizer256.yaml", "LPIPS: vgg"),
        ("sample --sampling table2", "constant_guidance: true"),
        ("sample --sampling release", "gumbel_split: false"),
        ("eval generator --sampling paper tokenizer=a content=b structure=c output=d", "guidance_at: last_split"),
    ],
)
def test_commands_take_the_presets(command, says):
    done = CliRunner().invoke(app, [*command.split(), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert says in done.output


def test_each_of_the_published_commands_finds_what_the_one_before_it_wrote():
    tokenizer = load_config(TokenizerRunConfig, "tokenizer/f16.yaml")
    for name in ("imagenet", "imagenet_one_view"):
        records = load_config(PrecomputeConfig, f"precompute/{name}.yaml")
        assert records.tokenizer == tokenizer.run_folder
        assert records.repa.store == "jpeg"
    records = load_config(PrecomputeConfig, "precompute/imagenet.yaml")
    for kind, name, _ in TRAININGS:
        config = load_config(GeneratorRunConfig, name)
        assert config.data.path == records.output
        assert config.data.loader != "streaming"  # which reads nothing beside the records
        assert bool(config.dinov2_weights) == (kind == "content")
    assert load_config(EvaluateTokenizerConfig, "eval/tokenizer256.yaml").tokenizer == tokenizer.run_folder


@pytest.mark.parametrize(
    ("repa", "says"),
    [
        (
            None,
            "with repa.store=jpeg and have dinov2_weights='data/weights/dinov2_vitb14_pretrain.pth'",
        ),
        ({}, "WILL BE REFUSED, nothing lies beside the records; run `nvg precompute` with repa.store=jpeg"),
        ({"store": "jpeg"}, "with the JPEGs beside the records and dinov2_weights="),
        ({"store": "features"}, "with the features beside the records"),
    ],
)
def test_the_plan_says_what_the_alignment_needs_and_what_is_missing(tmp_path, monkeypatch, repa, says):
    config = load_config(GeneratorRunConfig, "content/d12.yaml", [{"data": {"path": str(tmp_path)}}])
    if repa is not None:
        (tmp_path / "manifest.json").touch()
        monkeypatch.setattr("pipelines.train.plan.read_manifest", lambda folder: {"repa": repa})
    (line,) = plan_alignment(config)
    assert says in line
    assert ("NOT THERE yet" in line) == (repa != {"store": "features"})
    small = replace(config, loss=replace(config.loss, repa_target="efficientnet-lite0"), efficientnet_weights="here")
    (line,) = plan_alignment(small)
    assert "align hidden tokens with EfficientNet-Lite0" in line
    assert ("efficientnet_weights='here' (NOT THERE yet)" in line) == (repa != {"store": "features"})
    assert plan_alignment(replace(config, loss=replace(config.loss, repa_weight=0.0))) == []
    assert plan_alignment(load_config(GeneratorRunConfig, "structure/d12.yaml")) == []


def test_sizes_on_disk_are_those_of_the_formats():
    """A record and its entry in the shard's table; a feature row; a JPEG of about 40 kB with 13 bytes around it."""
    views = IMAGENET * load_config(PrecomputeConfig, "precompute/imagenet.yaml").source.num_views
    text = (CONFIGS / "precompute/imagenet.yaml").read_text()
    record = RecordLayout(256).bytes_per_record
    assert f"{record:,} bytes, {views * record / 1e9:.0f} GB" in text
    assert f"{views * FeatureLayout().bytes_per_record / 1e12:.1f} TB" in text
    assert f"about {views * 40_013 / 1e9:.0f} GB" in text
    questions = (CONFIGS.parent / "docs" / "faq.md").read_text()
    assert f"{RecordLayout(1024).bytes_per_record:,} bytes" in questions


@pytest.mark.parametrize("command", ["sample run=RUN", "eval generator --model RUN", "eval sweep --model RUN"])
def test_imported_weights_are_sampled_as_the_release_does(tmp_path, command):
    """Without a preset and a file; either of them wins."""
    for name in ("tokenizer", "content", "structure"):
        (tmp_path / name).mkdir()
    arguments = [*command.replace("RUN", str(tmp_path)).split(), "output=o", "--dry-run"]
    if "sweep" in command:
        arguments += ["content_guidance=[2, 3]", "reference=r.npz", "extractor_path=i.pth"]
    assert "gumbel_split: true" in CliRunner().invoke(app, arguments).output
    (tmp_path / "content" / "release.json").write_text("{}")
    assert "gumbel_split: false" in CliRunner().invoke(app, arguments).output
    assert "gumbel_split: true" in CliRunner().invoke(app, [*arguments, "--sampling", "paper"]).output
    assert "gumbel_split: true" in CliRunner().invoke(app, [*arguments, "sampling.gumbel_split=true"]).output


def test_unknown_sampling_preset_is_refused_by_name():
    done = CliRunner().invoke(app, ["sample", "--sampling", "relase", "--dry-run"])
    assert isinstance(done.exception, ConfigError)
    assert "Did you mean 'sampling/release.yaml'?" in str(done.exception)


def test_the_evaluation_of_published_tables_samples_as_the_release_does():
    config = load_config(EvaluateConfig, "eval/imagenet256.yaml")
    assert config.sampling == load_config(SamplingConfig, "sampling/release.yaml")
    assert (config.pool.num_samples, config.rounding, config.weights) == (50_000, "release", "ema")
    assert config.extractor_kind == "inception-v3-compat"
