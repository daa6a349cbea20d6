"""Upload to and download from the hub, against a stand-in of its HTTP API on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_stand_in import READER, WRITER, hub_stand_in, taken_for_the_hub
from tiny_networks import save_generators, save_tokenizer

import nvg
from nvg.errors import UserError
from nvg.sampling import SamplingConfig

FEW = SamplingConfig(num_flow_steps=2)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> nvg.Model:
    root = tmp_path_factory.mktemp("run")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    return nvg.load(root, settings=FEW)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, which this process takes for the hub; no token is known, the cache is empty."""
    monkeypatch.chdir(tmp_path)
    with taken_for_the_hub(monkeypatch, tmp_path) as running:
        yield running


def test_pushed_and_loaded_it_draws_the_same(model, hub):
    url = model.push_to_hub("me/digits", token=WRITER)
    assert url.startswith(f"{hub.url}/me/digits/commit/")
    repository = hub.repositories["me/digits"]
    assert repository.private
    assert {"README.md", "model.json", "weights/content/ema.safetensors"} <= set(repository.files)
    loaded = nvg.load("me/digits", token=READER)
    assert np.array_equal(loaded.sample([3, 7], seed=4).images, model.sample([3, 7], seed=4).images)
    assert any("nvg" in agent for agent in hub.user_agents)
    assert np.array_equal(nvg.load("me/digits", revision="main", token=READER).sample(3).images, model.sample(3).images)


def test_a_second_push_leaves_nothing_of_the_first(model, hub, tmp_path):
    model.push_to_hub("me/digits", token=WRITER, private=False)
    assert not hub.repositories["me/digits"].private
    save_tokenizer(tmp_path / "spatial" / "tokenizer", structure="spatial")
    save_generators(tmp_path / "spatial")
    nvg.load(tmp_path / "spatial", settings=FEW).push_to_hub("me/digits", token=WRITER)
    assert not [file for file in hub.repositories["me/digits"].files if "structure" in file]
    assert nvg.load("me/digits").structure is None


def test_only_json_and_safetensors_are_fetched(model, hub, tmp_path):
    model.push_to_hub("me/digits", token=WRITER, private=False)
    hub.repositories["me/digits"].files["evil.pkl"] = b"boom"
    nvg.load("me/digits")
    assert not list((tmp_path / "cache").rglob("*.pkl"))


def test_what_was_fetched_serves_without_a_connection(model, hub, monkeypatch):
    model.push_to_hub("me/digits", token=WRITER, private=False)
    nvg.load("me/digits")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert nvg.load("me/digits").class_names == model.class_names


def test_no_token_no_right_no_repository(model, hub):
    with pytest.raises(UserError, match=r"push_to_hub: found no token to write to me/digits with; expected token="):
        model.push_to_hub("me/digits")
    with pytest.raises(UserError, match=r"refuses \(403\) what was asked about me/digits.*a token with the right"):
        model.push_to_hub("me/digits", token=READER)
    with pytest.raises(UserError, match=r"found no folder .*me/none, and http://.* shows no repository me/none; check"):
        nvg.load("me/none")
    model.push_to_hub("me/digits", token=WRITER)
    with pytest.raises(UserError, match="shows no repository me/digits; check the name; if it is private, give token="):
        nvg.load("me/digits")
    with pytest.raises(UserError, match="has no revision 'v9'; change revision"):
        nvg.load("me/digits", revision="v9", token=READER)
    with pytest.raises(UserError, match="is no name of a repository"):
        model.push_to_hub("me/too/deep", token=WRITER)


def test_a_hub_that_cannot_be_reached(model, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 cannot be reached for me/digits, .*HF_ENDPOINT"):
        nvg.load("me/digits")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 cannot be reached for me/digits"):
        model.push_to_hub("me/digits", token=WRITER)


def test_repositories_that_are_no_model_or_half_of_one(model, hub):
    model.push_to_hub("me/digits", token=WRITER, private=False)
    files = hub.repositories["me/digits"].files
    weights = files.pop("weights/content/ema.safetensors")
    hub.repositories["me/digits"].commits += 1
    with pytest.raises(UserError, match=r"content/ema\.safetensors is missing"):
        nvg.load("me/digits")
    files["weights/content/ema.safetensors"] = weights[:-4] + b"\0\0\0\1"
    hub.repositories["me/digits"].commits += 1
    with pytest.raises(UserError, match="it is damaged, or of another model"):
        nvg.load("me/digits")
    files.clear()
    files["README.md"] = b"no model"
    hub.repositories["me/digits"].commits += 1
    with pytest.raises(UserError, match=r"me/digits holds no model\.json: it is no NVG model"):
        nvg.load("me/digits")


def test_without_the_library_a_folder_works_and_a_name_says_what_is_missing(model, tmp_path, monkeypatch):
    folder = model.save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert nvg.load(folder).class_names == model.class_names
    with pytest.raises(UserError, match=r"huggingface_hub is not installed, .* load me/digits; `pip install"):
        nvg.load("me/digits")


def test_the_environment_names_hub_and_token(model, tmp_path):
    """In a process of its own, which reads HF_ENDPOINT and HF_TOKEN as a user sets them."""
    folder = model.save_pretrained(tmp_path / "model")
    program = (
        "import sys, nvg; nvg.load(sys.argv[1]).push_to_hub('me/digits'); "
        "print(nvg.load('me/digits').sample(3).images.sum())"
    )
    with hub_stand_in() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home"), "PATH": ""}
        command = [sys.executable, "-c", program, str(folder)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) == model.sample(3).images.sum()
        assert hub.repositories["me/digits"].private


def test_a_mistyped_folder_is_one_message(tmp_path):
    """In a process of its own, where nothing else has imported a part of the library."""
    program = "import nvg\ntry: nvg.load('runs/demmo')\nexcept ValueError as error: print(error)"
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(
        f"found no folder {tmp_path}/runs/demmo, and http://127.0.0.1:9 cannot be reached for"
    )
    assert done.returncode == 0, done.stderr
