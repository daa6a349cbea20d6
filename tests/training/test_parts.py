"""EMA, schedule, plain engine and parameter groups."""

import pytest
import torch
from torch import nn

from nvg.errors import UserError
from nvg.training import Ema, PlainEngine, WsdSchedule, parameter_groups


def test_ema_half_life_is_in_images_whatever_the_batch():
    results = []
    for batch in (10, 50):
        network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(network.weight)
        ema = Ema(network, half_life_images=100)
        ema.images_seen = 100_000  # past the ramp
        nn.init.ones_(network.weight)
        for _ in range(100 // batch):
            ema.update(network, num_images=batch)
        results.append(float(ema.tensors["weight"].detach()))
    assert results == pytest.approx([0.5, 0.5])


def test_ema_without_a_ramp_has_its_half_life_from_the_first_step():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = Ema(network, half_life_images=100, ramp=0.0)
    nn.init.ones_(network.weight)
    for _ in range(4):
        ema.update(network, num_images=25)
    assert float(ema.tensors["weight"].detach()) == pytest.approx(0.5)


@pytest.mark.parametrize("ramp", [-0.1, 1.5, float("nan")])
def test_a_ramp_that_is_no_share_is_refused(ramp):
    with pytest.raises(UserError, match="ema_ramp is"):
        Ema(nn.Linear(1, 1), half_life_images=1.0, ramp=ramp)


def test_ema_forgets_the_start_and_resumes_exactly():
    network = nn.Linear(2, 2)
    ema = Ema(network, half_life_images=1e9)
    for _ in range(50):
        nn.init.constant_(network.weight, 3.0)
        ema.update(network, num_images=8)
    torch.testing.assert_close(ema.tensors["weight"], torch.full((2, 2), 3.0))
    twin = Ema(network, half_life_images=1e9)
    twin.load_state_dict(ema.state_dict())
    nn.init.constant_(network.weight, 5.0)
    ema.update(network, num_images=8)
    twin.update(network, num_images=8)
    assert torch.equal(ema.tensors["weight"], twin.tensors["weight"])
    with pytest.raises(UserError, match="another network"):
        Ema(nn.Linear(2, 2, bias=False), half_life_images=1.0).load_state_dict(ema.state_dict())


def test_warm_up_stable_decay():
    schedule = WsdSchedule(total_images=1000, warmup_images=100)
    assert schedule.factor(0) == pytest.approx(0.005)
    assert schedule.factor(50) == pytest.approx(0.5025)
    assert schedule.factor(100) == schedule.factor(800) == 1.0
    assert schedule.factor(900) == pytest.approx(0.55)
    assert schedule.factor(1000) == schedule.factor(2000) == pytest.approx(0.1)
    cosine = WsdSchedule(total_images=1000, decay_start=0.0, final_factor=0.0, shape="cosine")
    assert [round(cosine.factor(x), 6) for x in (0, 500, 1000)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total_images": 0}, "total_images is 0"),
        ({"total_images": 10, "warmup_images": 11}, "warmup_images 11"),
        ({"total_images": 10, "decay_start": 1.5}, "decay_start is 1.5"),
        ({"total_images": 10, "shape": "step"}, "'step'"),
    ],
)
def test_impossible_schedules_are_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        WsdSchedule(**values)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1)

    def forward(self, x):
        return self.network(x).square().mean()


def test_accumulation_equals_one_large_batch():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    weights = []
    for parts in (1, 4):
        module = Quadratic()
        engine = PlainEngine(
            module,
            torch.optim.SGD(module.parameters(), lr=0.1),
            gradient_clipping=0.5,
            accumulation_steps=parts,
        )
        for chunk in x.chunk(parts):
            engine.backward(engine(chunk))
            engine.step()
        assert engine.global_steps == 1
        assert engine.was_step_applied()
        weights.append(module.network.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("share", [0.5, 1.0, 1 + 5e-7, 1 + 1e-5, 2.0])
def test_clipping_is_that_of_torch_to_the_bit(share):
    """Far below, about and above the norm; what is not clipped is not multiplied."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = Quadratic(), Quadratic()
    theirs(x).backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None]))
    assert float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), share * norm)) == norm
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    engine = PlainEngine(ours, torch.optim.SGD(ours.parameters(), lr=0.1), gradient_clipping=share * norm)
    engine.backward(engine(x))
    engine.step()
    assert engine.get_global_grad_norm() == norm
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_non_finite_gradient_changes_nothing():
    module = Quadratic()
    before = module.network.weight.detach().clone()
    engine = PlainEngine(module, torch.optim.SGD(module.parameters(), lr=0.1))
    engine.backward(engine(torch.full((1, 3), float("inf"))))
    engine.step()
    assert not engine.was_step_applied()
    assert torch.equal(module.network.weight, before)


def test_decay_acts_on_matrices_only():
    groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.Embedding(4, 2)), 0.05)
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.05, 2), (0.0, 1)]


def test_learning_rate_factors_follow_the_longest_prefix():
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2, bias=False)})
    groups = parameter_groups(network, 0.0, {"a": 3.0, "ab": 5.0})
    sizes = {(group["lr_factor"], len(group["params"])) for group in groups}
    assert sizes == {(3.0, 1), (5.0, 1)}
    assert len(groups) == 3
    with pytest.raises(UserError, match=r"lr_factors names .'head'.*a, ab"):
        parameter_groups(network, 0.0, {"head": 2.0})
