"""What must be equal for a run to go on, of states written before a setting existed too."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nvg.errors import UserError
from nvg.training import GeneratorLossConfig, TokenizerLossConfig
from pipelines.train.config import OptimizerConfig
from pipelines.train.state import flatten, require_same

FOLDER = Path("step-00000001")


def settings(**optimizer):
    return flatten({"optimizer": asdict(replace(OptimizerConfig(), **optimizer))})


def before():
    """Settings as they were written before the ramp of the average could be set."""
    return {name: value for name, value in settings().items() if name != "optimizer.ema_ramp"}


def test_a_state_of_before_goes_on_as_it_was_trained():
    assert require_same(before(), settings(), "configuration", FOLDER) == []


def test_another_ramp_is_another_run():
    with pytest.raises(UserError, match=r"optimizer.ema_ramp: checkpoint 0.1, this run 0.0"):
        require_same(before(), settings(ema_ramp=0.0), "configuration", FOLDER)
    accepted = require_same(before(), settings(ema_ramp=0.0), "configuration", FOLDER, ["optimizer.ema_ramp"])
    assert accepted == ["optimizer.ema_ramp: checkpoint 0.1, this run 0.0"]


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (TokenizerLossConfig, "feature_weight"),
        (TokenizerLossConfig, "token_perturbation"),
        (TokenizerLossConfig, "foreign_regions"),
        (GeneratorLossConfig, "repa_target"),
        (GeneratorLossConfig, "self_correction"),
        (GeneratorLossConfig, "foreign_regions"),
    ],
)
def test_states_of_before_a_loss_existed_go_on_without_it(loss, name):
    now = flatten({"loss": asdict(loss())})
    saved = {key: value for key, value in now.items() if key != f"loss.{name}"}
    assert len(saved) == len(now) - 1
    assert require_same(saved, now, "configuration", FOLDER) == []
    other = {**now, f"loss.{name}": "efficientnet-lite0" if name == "repa_target" else 0.5}
    with pytest.raises(UserError, match=f"loss.{name}: checkpoint (0.0|'dinov2-vitb14'), this run"):
        require_same(saved, other, "configuration", FOLDER)
