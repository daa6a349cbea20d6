"""A training on so many devices: each formula of docs/scaling.md by hand, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from golden_training import GoldenRunConfig, build_task
from safetensors.torch import load_file

from nvg.checkpoints.runs import checkpoints_in
from nvg.errors import UserError
from nvg.models import ContentGeneratorConfig
from nvg.tokenizer import TokenizerConfig
from pipelines.checkpoints import folder_bytes
from pipelines.configuration import load_config
from pipelines.run_folder import CHECKPOINTS_FOLDER
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.costs import count_tokenizer, count_work
from pipelines.train.devices import Device, find_device
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.launch import run_training
from pipelines.train.scaling import Workload, checkpoint_size, communication, memory_by_stage, outlook, speed_on

PARAMETERS = 1_000_000_000
WORK = Workload(
    what="content",
    flops_per_image=3e12,
    precision="bf16",
    num_parameters=PARAMETERS,
    activation_bytes=1e9,
    pass_bytes=2e9,
    stream_elements=4e7,
)
DEVICE = Device(
    key="made",
    name="Made up",
    bf16_flops=1e15,
    tf32_flops=5e14,
    fp32_flops=6e13,
    memory_bytes=80e9,
    memory_speed=3e12,
    devices_per_node=8,
    link_speed=400e9,
    network_speed=50e9,
)
RUN = load_config(GeneratorRunConfig, "content/d16.yaml")


def test_the_largest_micro_batch_is_what_the_memory_leaves():
    rows = memory_by_stage(WORK, RUN, DEVICE, 8)
    # 76 GB are usable; 2 GB of weights in bf16, and twice a bucket of 50 million fp32 numbers where ZeRO has one.
    assert [row.largest_micro_batch for row in rows] == [
        int((76e9 - 20e9 - 2e9) / 1e9),
        int((76e9 - 14e9 - 0.4e9 - 2e9) / 1e9),
        int((76e9 - 10e9 - 0.4e9 - 2e9) / 1e9),
        int((76e9 - 6.5e9 - 0.4e9 - 2e9) / 1e9),
    ]


@pytest.mark.parametrize(("stage", "passes", "exchanges"), [(0, 3, 2), (1, 3, 2), (2, 3, 4), (3, 3, 10)])
def test_what_a_step_sends_by_hand(stage, passes, exchanges):
    zero = DeepSpeedConfig(zero_stage=stage)
    sent = communication(WORK, zero, DEVICE, 64, passes)
    assert sent.num_exchanges == exchanges
    assert sent.bytes_per_device == pytest.approx(exchanges * 4e9 * 63 / 64)
    inside, between = 7 / 8 * 4e9 / (0.8 * 400e9), 7 / 8 * 0.5e9 / (0.8 * 50e9)
    assert sent.seconds == pytest.approx(exchanges * (inside + between + 20 * 6 * 2e-5))


def test_one_device_sends_nothing_and_a_node_nothing_out_of_it():
    zero = DeepSpeedConfig(zero_stage=1)
    assert communication(WORK, zero, DEVICE, 1, 1).seconds == 0
    slow = replace(DEVICE, network_speed=1.0)
    assert communication(WORK, zero, slow, 8, 1) == communication(WORK, zero, DEVICE, 8, 1)
    assert communication(WORK, zero, slow, 16, 1).seconds > 1e6


def test_scaling_bends_where_communication_takes_a_tenth():
    found = outlook("content", WORK, RUN, DEVICE, 8)
    assert found.bends_at is not None
    bent = outlook("content", WORK, RUN, DEVICE, found.bends_at)
    assert bent.communication.seconds >= 0.1 * (bent.communication.seconds + bent.compute_s)
    below = max(number for number in range(1, found.bends_at) if 768 % number == 0)
    straight = outlook("content", WORK, RUN, DEVICE, below)
    assert straight.communication.seconds < 0.1 * (straight.communication.seconds + straight.compute_s)
    assert found.equals_at is None or found.equals_at > found.bends_at


def test_the_micro_batch_divides_the_share_and_what_changes_is_said():
    found = outlook("content", WORK, RUN, DEVICE, 64)
    assert (found.num_devices, found.zero_stage, found.micro_batch, found.passes) == (64, 1, 12, 1)
    assert found.changes == ["launch.num_workers=64", "optimizer.micro_batch=12"]
    assert found.notes == []
    seconds = 333_638 * (found.compute_s + found.communication.seconds) + 67 * found.checkpoint_s
    assert found.hours == pytest.approx(seconds / 3600)


def test_devices_that_do_not_divide_the_batch_are_left_out_and_said():
    found = outlook("content", WORK, RUN, DEVICE, 100)
    assert found.num_devices == 96
    assert "100 do not divide optimizer.global_batch=768: 96 work" in found.notes


def test_no_step_is_faster_than_its_kernels_start():
    slow = replace(WORK, num_kernels=10**6)
    found, usual = outlook("content", slow, RUN, DEVICE, 8), outlook("content", WORK, RUN, DEVICE, 8)
    assert found.compute_s == pytest.approx(10.0 * found.passes)
    assert found.hours > usual.hours


def test_a_deeper_network_and_a_tokenizer_start_more_kernels_compiled_blocks_fewer():
    shallow, deep, compiled = (
        count_work(
            ContentGeneratorConfig(depth=depth, width=64), stages_per_image=None, precision="bf16",
            recompute_activations=False, compiled=compiled,
        ).num_kernels
        for depth, compiled in ((1, False), (2, False), (2, True))
    )  # fmt: skip
    assert 1.1 * shallow < deep < 2 * shallow
    assert compiled < 0.5 * deep
    small, large = (count_tokenizer(TokenizerConfig(num_res_blocks=number)).num_kernels for number in (1, 2))
    assert 0 < small < large


def test_a_micro_batch_that_does_not_fit_is_named_with_the_largest():
    large = replace(RUN, optimizer=replace(RUN.optimizer, micro_batch=96))
    (note,) = outlook("content", WORK, large, DEVICE, 8).notes
    assert note == "optimizer.micro_batch=96 DOES NOT FIT: 59 images do at most; set optimizer.micro_batch=48"


def test_a_stage_that_does_not_fit_gives_way_to_one_that_does():
    replicated = replace(RUN, deepspeed=DeepSpeedConfig(zero_stage=0))
    found = outlook("content", WORK, replicated, replace(DEVICE, memory_bytes=21e9), 8)
    assert found.zero_stage == 1
    assert "ZeRO-0 DOES NOT FIT on Made up: deepspeed.zero_stage=1 does" in found.notes


def test_too_few_devices_are_refused_with_their_number():
    small = replace(DEVICE, memory_bytes=14e9)
    with pytest.raises(UserError, match=r"--devices is 1; expected 4 or more for content, .* at ZeRO-3; take more"):
        outlook("content", WORK, RUN, small, 1)
    with pytest.raises(UserError, match=r"--device is 'made'; expected one with more memory for content: one image"):
        outlook("content", WORK, RUN, replace(DEVICE, memory_bytes=6e9), 1)


@pytest.mark.parametrize(("kind", "most"), [("content", 0.08), ("structure", 0.22)])
def test_predicted_speeds_beside_measured_ones(kind, most):
    """On an H100, with its own rows left out; d20 in compiled blocks is known to be slower (results/scaling.md)."""
    slower = {"content d20, compiled": 0.12, "structure d20, compiled": 0.28}
    device = find_device("h100")
    for row in device.measured:
        if row.what != kind or row.note:
            continue
        depth = int(row.row.split()[1][1:3])
        config = load_config(GeneratorRunConfig, f"{kind}/d{depth}.yaml")
        options = {"stages_per_image": None, "precision": "bf16", "recompute_activations": False}
        work = count_work(config.model, **options)
        load = Workload(
            what=kind,
            flops_per_image=work.flops_per_image,
            precision="bf16",
            compiled=row.compiled,
            stream_elements=work.stream_elements,
        )
        measured, predicted = speed_on(load, device), speed_on(load, replace(device, measured=[]))
        assert (measured.basis, predicted.basis) == ("measured", "predicted")
        assert measured.images_per_s == row.images_per_s
        assert predicted.images_per_s == pytest.approx(measured.images_per_s, rel=slower.get(row.row, most))


def test_recomputed_blocks_take_a_third_longer():
    again = replace(WORK, recomputed=True)
    assert speed_on(again, DEVICE).images_per_s == pytest.approx(0.75 * speed_on(WORK, DEVICE).images_per_s)


def test_a_checkpoint_has_the_size_that_is_told(tmp_path):
    """Of the plain engine, as it writes it; DeepSpeed's parts by hand."""
    config = GoldenRunConfig(kind="content", run_folder=str(tmp_path), depth=4)
    run_training(replace(config, loop=replace(config.loop, stop_after_steps=1)), build_task)
    (folder,) = checkpoints_in(tmp_path / CHECKPOINTS_FOLDER)
    model = load_file(folder / "model.safetensors")
    number = sum(value.numel() for value in model.values())
    assert folder_bytes(folder) == pytest.approx(checkpoint_size(number, "plain", 0), rel=0.1)
    assert [checkpoint_size(1000, "deepspeed", stage) for stage in range(4)] == [20_000, 24_000, 24_000, 20_000]


def test_a_deeper_network_needs_more_of_everything():
    options = {"stages_per_image": None, "precision": "bf16", "recompute_activations": False}
    small, large = (count_work(ContentGeneratorConfig(depth=depth), **options) for depth in (4, 8))
    assert large.activation_bytes > small.activation_bytes
    assert large.pass_bytes > small.pass_bytes
