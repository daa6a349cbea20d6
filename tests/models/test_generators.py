from typing import Any

import pytest
import torch
from reference_vectors import tiny_generators

from nvg.errors import UserError
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig


def structures(num, num_positions=16):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(num_positions, generator=generator) for _ in range(num)])


@torch.no_grad()
def test_mixed_stages_equal_one_stage_at_a_time():
    content, structure, _ = tiny_generators()
    canvas, maps, labels = torch.randn(5, 16, 4), structures(5), torch.tensor([0, 1, 2, 3, 0])
    stages = torch.arange(5)
    mixed = content(canvas, maps, stages, labels)
    for row in range(5):
        alone = content(canvas[row : row + 1], maps[row : row + 1], stages[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone)
    noisy, time = torch.randn(5, 16, 4), torch.rand(5)
    mixed = structure(noisy, canvas, maps, stages % 3, time, labels)
    alone = structure(noisy[3:4], canvas[3:4], maps[3:4], stages[3:4] % 3, time[3:4], labels[3:4])
    torch.testing.assert_close(mixed[3:4], alone)


@torch.no_grad()
def test_stage_0_sees_the_start_canvas_only():
    content, _, _ = tiny_generators()
    maps, stage, label = structures(1), torch.tensor([0]), torch.tensor([1])
    first = content(torch.randn(1, 16, 4), maps, stage, label)
    assert torch.equal(first, content(torch.zeros(1, 16, 4), maps, stage, label))


@torch.no_grad()
def test_future_splits_are_invisible():
    content, structure, _ = tiny_generators()
    maps, canvas, label, stage = (
        structures(2),
        torch.randn(2, 16, 4),
        torch.tensor([0, 1]),
        torch.tensor([2, 2]),
    )
    known = (maps >> 2) << 2
    assert torch.equal(content(canvas, maps, stage, label), content(canvas, known, stage, label))
    noisy, time = torch.randn(2, 16, 4), torch.rand(2)
    assert torch.equal(
        structure(noisy, canvas, maps, stage, time, label),
        structure(noisy, canvas, known, stage, time, label),
    )


@torch.no_grad()
def test_canvas_scales_normalise_input_and_estimate():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "depth": 1,
        "width": 64,
        "num_classes": 2,
        "num_positions": 16,
        "latent_channels": 4,
        "codebook_size": 8,
    }
    plain = ContentGenerator(ContentGeneratorConfig(**sizes))
    scaled = ContentGenerator(ContentGeneratorConfig(canvas_scales=[1.0, 2.0, 2.0, 2.0, 2.0, 4.0], **sizes))
    scaled.load_state_dict({**plain.state_dict(), "canvas_scales": scaled.canvas_scales})
    canvas, maps, stage, label = torch.randn(1, 16, 4), structures(1), torch.tensor([3]), torch.tensor([0])
    torch.testing.assert_close(scaled(canvas / 2, maps, stage, label), plain(canvas, maps, stage, label) / 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ContentGeneratorConfig(width=100), "model width of 100"),
        (lambda: StructureGeneratorConfig(depth=3), "model width of 96"),
        (lambda: ContentGeneratorConfig(num_positions=100), "num_positions is 100"),
        (lambda: ContentGeneratorConfig(num_classes=0), "num_classes is 0"),
        (lambda: ContentGeneratorConfig(canvas_scales=[1.0]), "canvas_scales has 1 entries"),
    ],
)
def test_impossible_configs_are_refused_by_name(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_published_widths():
    with torch.device("meta"):
        assert ContentGenerator(ContentGeneratorConfig(depth=3)).canvas_in.out_features == 192
        assert StructureGenerator(StructureGeneratorConfig(depth=4)).canvas_in.out_features == 128
