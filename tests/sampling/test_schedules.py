import math
from itertools import pairwise

import pytest
import torch

from nvg.errors import UserError
from nvg.sampling import SamplingConfig, draw_by_gumbels, draw_tokens, flow_times, guide, gumbel_scores, top_p_filter
from nvg.sampling.noise import coupled_gumbels


def test_published_schedules():
    config = SamplingConfig()
    assert [config.content_scale(i, 8) for i in (0, 4, 8)] == [1.0, 2.25, 3.5]
    assert config.structure_scale(6, 8) == 2.125
    assert config.top_p(0, 8) == 1.0
    assert config.top_p(8, 8) == pytest.approx(0.5)
    assert config.top_p(4, 8) == pytest.approx(0.5 + 0.5 * (8 - math.sqrt(8)) / 7)


@pytest.mark.parametrize("last_stage", [4, 6, 8, 10])
def test_structure_guidance_ends_at_the_last_predicted_split_of_any_grid(last_stage):
    paper = SamplingConfig(structure_guidance_at="last_split")
    scales = [paper.structure_scale(stage, last_stage) for stage in range(last_stage - 1)]
    assert (scales[0], scales[-1]) == (1.0, 2.5)
    steps = [after - before for before, after in pairwise(scales)]
    assert steps == pytest.approx([1.5 / (last_stage - 2)] * len(steps))
    release = SamplingConfig()
    assert release.structure_scale(last_stage - 2, last_stage) == 1 + 1.5 * (last_stage - 2) / last_stage


def test_a_grid_with_one_predicted_split_has_no_guidance_to_raise():
    assert SamplingConfig(structure_guidance_at="last_split").structure_scale(0, 2) == 1.0


def test_sixteen_by_sixteen_has_the_scales_it_had():
    """The schedule of the preset `paper` was 3.0 divided by K."""
    new, before = SamplingConfig(structure_guidance_at="last_split"), SamplingConfig(structure_guidance=3.0)
    assert [new.structure_scale(stage, 8) for stage in range(7)] == [before.structure_scale(i, 8) for i in range(7)]


def test_constant_guidance_of_the_ablations():
    config = SamplingConfig(content_guidance=1.5, structure_guidance=1.5, constant_guidance=True, top_p_last=1.0)
    assert {config.content_scale(i, 8) for i in range(9)} == {1.5}
    assert {config.top_p(i, 8) for i in range(9)} == {1.0}


def test_flow_times_fall_from_one_to_zero_and_are_shifted_towards_noise():
    times = flow_times(25, 256)
    assert len(times) == 26
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert all(a > b for a, b in pairwise(times))
    e = math.exp(0.5)
    assert times[5] == pytest.approx(e / (e + 1 / 0.8 - 1))


def test_guidance_extrapolates():
    c, u = torch.tensor([2.0]), torch.tensor([1.0])
    assert guide(c, u, 1.0).item() == 2.0
    assert guide(c, u, 3.0).item() == 4.0
    assert guide(c, u, 0.0).item() == 1.0


def test_top_p_keeps_the_token_that_crosses():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None, None]
    torch.testing.assert_close(top_p_filter(logits, 0.6)[0, 0], torch.tensor([0.625, 0.375, 0.0, 0.0]))
    torch.testing.assert_close(top_p_filter(logits, 1.0)[0, 0], torch.tensor([0.5, 0.3, 0.15, 0.05]))
    torch.testing.assert_close(top_p_filter(logits, 0.01)[0, 0], torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_tokens_are_the_inverse_cdf():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).expand(1, 4, 5)
    uniform = torch.tensor([[0.0, 0.2499, 0.25, 1.0 - 2**-53]], dtype=torch.float64)
    assert draw_tokens(probabilities, uniform).tolist() == [[1, 1, 3, 3]]


def test_token_frequencies_follow_the_probabilities():
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)[None, :-1]
    probabilities = torch.tensor([0.1, 0.6, 0.3]).expand(1, 10_000, 3)
    counts = torch.bincount(draw_tokens(probabilities, uniform)[0], minlength=3)
    torch.testing.assert_close(counts / 10_000, torch.tensor([0.1, 0.6, 0.3]), rtol=0, atol=2e-4)


def test_gumbel_scores_are_finite_at_the_edges_and_prefer_likely_positions():
    channel = torch.tensor([[-5.0, -1.0, 1.0, 5.0]])
    for uniform in (0.0, 0.5, 1.0 - 2**-53):
        assert bool(torch.isfinite(gumbel_scores(channel, torch.full((1, 4), uniform, dtype=torch.float64))).all())
    uniform = torch.rand(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = gumbel_scores(torch.tensor([[0.5, -0.5]]).expand(20_000, 2), uniform)  # p = 1.5 : 0.5
    assert float((scores[:, 0] > scores[:, 1]).float().mean()) == pytest.approx(0.75, abs=0.015)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p_last": 0.0}, "top_p_last"),
        ({"num_flow_steps": 0}, "num_flow_steps"),
        ({"top_p_last": float("nan")}, "top_p_last is nan"),
        ({"top_p_last": 1.5}, "top_p_last is 1.5"),
        ({"content_guidance": -1.0}, "sampling.content_guidance is -1.0; expected 0 or more"),
        ({"content_guidance": float("nan")}, "content_guidance is nan"),
        ({"structure_guidance": float("inf")}, "structure_guidance is inf"),
        ({"structure_guidance_at": "last"}, "structure_guidance_at is 'last'; expected one of last_split, last_stage"),
    ],
)
def test_impossible_configs_are_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**values)


def coupled_draws(probabilities_UV: torch.Tensor, share: float, count: int) -> torch.Tensor:
    """Ids (count, U) of many samples of one stage."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, num_codes = probabilities_UV.shape
    shared, own = (torch.randn(count, rows, num_codes, generator=generator) for rows in (1, num_tokens))
    return draw_by_gumbels(probabilities_UV.expand(count, -1, -1), coupled_gumbels(shared, own, share))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_noise_in_common_leaves_each_token_its_own_probabilities(share: float) -> None:
    probabilities = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.05, 0.9, 0.05, 0.0]])
    count = 20_000
    ids = coupled_draws(probabilities, share, count)
    for token, expected in enumerate(probabilities):
        found = torch.bincount(ids[:, token], minlength=4) / count
        assert found[3] == 0, "a code of probability 0 was drawn"
        assert (found - expected).abs().max() < 4 * (0.25 / count) ** 0.5


def test_the_more_noise_in_common_the_more_often_like_tokens_are_one_code() -> None:
    """By themselves two tokens of eight equal codes agree in one of eight draws; with all noise in common, always."""
    even = torch.full((2, 8), 1 / 8)
    drawn = [coupled_draws(even, share, 20_000) for share in (0.0, 0.5, 0.9, 1.0)]
    agree = [float((ids[:, 0] == ids[:, 1]).double().mean()) for ids in drawn]
    assert agree[0] == pytest.approx(1 / 8, abs=0.01)
    assert agree[0] < agree[1] - 0.1 < agree[2] - 0.2
    assert agree[3] == 1
