"""`nvg.load` and `Model`: the samples of `nvg sample` to the bit, from plain arrays, with PyTorch alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import save_generators, save_tokenizer

import nvg
from nvg.checkpoints import load_network
from nvg.class_names import number_samples
from nvg.errors import UserError
from nvg.granularity import spatial_structure
from nvg.pixels import to_model_range, to_uint8
from nvg.tokenizer import Tokenizer
from pipelines.sample import SampleConfig, sample_images
from pipelines.structure_control import ControlConfig

ROOT = Path(__file__).parents[1]
FEW_STEPS = nvg.SamplingConfig(num_flow_steps=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    return root


@pytest.fixture(scope="module")
def model(run: Path) -> nvg.Model:
    return nvg.load(run, settings=FEW_STEPS)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files to follow, as the command line takes them."""
    folder, random = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / "picture.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    labels = np.zeros((40, 24), np.uint8)
    labels[10:], labels[25:] = 1, 2
    Image.fromarray(labels).save(folder / "labels.png")
    np.save(folder / "map.npy", spatial_structure(16).view(4, 4).numpy())
    keep = np.zeros((80, 60), np.uint8)
    keep[:, :33] = 255
    Image.fromarray(keep).save(folder / "keep.png")
    return {file.stem: file for file in folder.iterdir()}


def commands_images(run: Path, output: Path, classes: list[int], **control: object) -> np.ndarray:
    """What `nvg sample` writes, in the order of the classes."""
    config = SampleConfig(
        run=str(run),
        classes=classes,
        num_per_class=2,
        seed=3,
        sampling=FEW_STEPS,
        output=str(output),
        control=ControlConfig(**control),  # pyright: ignore[reportArgumentType]
    )
    sample_images(config)
    labels, numbers, _ = number_samples(classes, 2, 10)
    files = [output / f"{label}-{number:03d}.png" for label, number in zip(labels, numbers, strict=True)]
    return np.stack([np.asarray(Image.open(file)) for file in files])[..., None]


@pytest.mark.parametrize(
    "control",
    [
        {},
        {"structure_from": "picture", "stages": 2},
        {"structure_from": "picture"},
        {"structure_from": "map", "stages": 3},
        {"structure_mask": "mask"},
        {"structure_mask": "mask", "stages": 3, "mask_foreground": 0},
        {"structure_labels": "labels"},
        {"fix_content_from": "picture", "stages": 2},
    ],
    ids=lambda control: "-".join(map(str, control.values())) or "free",
)
def test_samples_are_those_of_the_command_to_the_bit(run, model, given, tmp_path, control):
    files = {key: str(given.get(value, value)) if isinstance(value, str) else value for key, value in control.items()}
    arrays = {
        key: value
        if not isinstance(value, str)
        else np.load(value)
        if value.endswith(".npy")
        else np.asarray(Image.open(value))
        for key, value in files.items()
    }
    expected = commands_images(run, tmp_path / "out", [3, 7, 3], **files)
    drawn = model.sample(["3", 7, "3"], per_class=2, seed=3, **arrays)
    assert np.array_equal(drawn.images, expected)
    assert drawn.labels.tolist() == [3, 3, 7, 7, 3, 3]
    assert drawn.indices.tolist() == [3, 13, 7, 17, 23, 33]
    assert np.array_equal(drawn.decode(), drawn.images)


def test_edits_are_those_of_the_command_to_the_bit(run, model, given, tmp_path):
    files = {"edit_from": str(given["picture"]), "keep": str(given["keep"])}
    expected = commands_images(run, tmp_path / "out", [3, 7, 3], **files)
    picture, keep = (np.asarray(Image.open(file)) for file in files.values())
    drawn = model.edit(picture, keep=keep, classes=["3", 7, "3"], per_class=2, seed=3)
    assert np.array_equal(drawn.images, expected)
    assert drawn.indices.tolist() == [3, 13, 7, 17, 23, 33]
    assert np.array_equal(drawn.decode(), drawn.images)
    again = model.edit(Image.open(given["picture"]), keep=keep > 0, classes=7, per_class=2, seed=3)
    assert np.array_equal(again.images, expected[2:4])


def test_an_edit_keeps_the_canvas_outside_and_draws_inside(model, given):
    """The mask's white is 33 of 60 columns: the left half of the grid, whose third column black touches."""
    picture, keep = (np.asarray(Image.open(given[name])) for name in ("picture", "keep"))
    own, drawn = model.encode(picture), model.edit(picture, keep=keep, per_class=2)
    canvases, expected = (part.canvases.view(-1, 5, 4, 4, 4) for part in (drawn, own))
    assert len(drawn) == 20
    assert torch.equal(canvases[..., :2, :], expected[..., :2, :].expand(20, -1, -1, -1, -1))
    assert not (canvases[:, -1, :, 2:] == expected[:, -1, :, 2:]).all(-1).any()
    assert (drawn.structure.sort(1).values == torch.arange(16)).all()


@pytest.mark.parametrize("structure", ["granularity", "spatial"])
def test_edits_need_no_structure_of_their_own(tmp_path, given, structure):
    save_tokenizer(tmp_path / "tokenizer", structure=structure)
    save_generators(tmp_path)
    model = nvg.load(tmp_path, settings=FEW_STEPS)
    picture, keep = (np.asarray(Image.open(given[name])) for name in ("picture", "keep"))
    canvases, own = model.edit(picture, keep=keep).canvases, model.encode(picture).canvases
    assert torch.equal(
        canvases.unflatten(2, (4, 4))[..., :2, :], own.unflatten(2, (4, 4))[..., :2, :].expand(10, -1, -1, -1, -1)
    )


def test_what_is_drawn_is_plain_and_whole(model):
    drawn = model.sample(["3", 7], per_class=3)
    assert (len(drawn), drawn.num_stages, model.num_stages) == (6, 5, 5)
    assert drawn.images.dtype == np.uint8
    assert drawn.images.shape == (6, 16, 16, 1)
    assert drawn.content_ids.shape == (6, 31)
    assert drawn.canvases.shape == (6, 5, 16, 4)
    assert not drawn.canvases.is_inference()
    for stage in range(5):
        assert drawn.maps(stage).shape == (6, 4, 4)
        counts = [np.bincount(one.flatten(), minlength=2**stage) for one in drawn.maps(stage)]
        assert (np.array(counts) == 16 // 2**stage).all()
    assert np.array_equal(np.hstack([drawn.ids(stage) for stage in range(5)]), drawn.content_ids)
    assert drawn.grid().shape == (2 * 64 + 3 * 5, 3 * 64 + 4 * 5, 1)
    assert drawn.stages(5).shape == (2 * 64 + 3 * 5, 5 * 64 + 6 * 5, 3)
    assert np.array_equal(drawn.grid()[5:69, 5:69], drawn.images[0].repeat(4, 0).repeat(4, 1))
    assert repr(drawn) == "<nvg.Samples: 6 of 5 stages>"
    assert repr(model) == "<nvg.Model: 10 classes, 16×16 grey, 5 stages, unscored, cpu>"
    assert model.sample(8).images.shape == (1, 16, 16, 1)
    assert model.sample().labels.tolist() == list(range(10))
    assert model.sample(np.int64(8)).labels.tolist() == [8]


def test_encode_and_decode_are_the_tokenizers_own(run, model):
    pictures = [np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8) for seed in range(3)]
    tokenizer, images = load_network(Tokenizer, run / "tokenizer"), np.stack(pictures)[..., None]
    parts = model.encode(pictures)
    ids, structure = tokenizer.tokenize(to_model_range(images))
    assert torch.equal(parts.content_ids, ids)
    assert torch.equal(parts.structure, structure)
    with torch.no_grad():
        assert np.array_equal(parts.decode(), to_uint8(tokenizer.reconstruct(to_model_range(images)), "round"))
        third = tokenizer.decode(tokenizer.dequantizer.canvases(ids, structure)[:, 3])
    assert np.array_equal(parts.decode(stage=3), to_uint8(third, "round"))
    assert np.array_equal(parts.decode(stage=-2), parts.decode(stage=3))
    assert np.array_equal(model.encode(Image.fromarray(pictures[0])).decode(), parts.decode()[:1])


def test_all_contents_of_a_picture_are_its_reconstruction(model):
    picture = np.random.default_rng(5).integers(0, 256, (16, 16), dtype=np.uint8)
    drawn = model.sample([1, 2], fix_content_from=picture, stages=5)
    assert np.array_equal(drawn.images, model.encode(picture).decode().repeat(2, axis=0))


def test_a_spatial_tokenizer_needs_no_structure_generator(tmp_path):
    save_tokenizer(tmp_path / "tokenizer", structure="spatial")
    save_generators(tmp_path)
    model = nvg.load(tmp_path, settings=FEW_STEPS)
    assert model.structure is None
    assert (model.sample(8).structure == spatial_structure(16)).all()
    with pytest.raises(UserError, match="there is no structure to give"):
        model.sample(8, structure_mask=np.eye(8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "30"}, r"classes is '30'; expected the name of one of 10 classes \(did you mean '3'"),
        ({"classes": ["cat"]}, r"classes is 'cat'; expected the name of one of 10 classes \(0, 1, 2"),
        ({"classes": 10}, "classes is 10; expected a label from 0 to 9, or a name"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": True}, "classes is True"),
        ({"classes": 1.5}, "classes is 1.5"),
        ({"classes": []}, "at least one class"),
        ({"classes": 1, "per_class": 0}, "per_class is 0; expected 1 or more"),
        ({"classes": 1, "seed": -1}, "seed is -1; expected 0 or more"),
        (
            {"classes": 1, "stages": 2},
            "stages is 2; expected None where nothing is followed; give one of structure_from",
        ),
        ({"structure_from": np.zeros((4, 4))}, "structure_from: found float64 array"),
        ({"structure_from": "digit.png"}, "structure_from: found a str; .*read the file"),
        ({"structure_from": np.zeros((8, 8), np.uint8), "stages": 5}, "stages is 5.*1 to 4 splits"),
        ({"structure_from": np.zeros((4, 4), np.int64)}, "no balanced hierarchy"),
        (
            {"structure_from": np.eye(8, dtype=np.uint8), "structure_mask": np.eye(8)},
            "structure_from and structure_mask",
        ),
        ({"structure_mask": np.ones((8, 8))}, "all one colour"),
        ({"structure_mask": np.eye(8)[:5]}, r"\(5, 8\) \(rows, columns\); a square one"),
        ({"structure_mask": np.eye(8) > 0, "mask_foreground": 2}, "mask_foreground is 2"),
        ({"structure_mask": "mask.png"}, "structure_mask: found a str"),
        ({"structure_labels": np.zeros((8, 8))}, "structure_labels: found float64"),
        ({"structure_labels": np.zeros((8, 8), np.int64)}, "one label"),
        ({"fix_content_from": np.zeros((8, 8), np.uint8)}, "stages is None; expected how many stages"),
        (
            {"structure_from": Image.new("P", (8, 8))},
            r"a picture of mode P; expected L, RGB, RGBA; convert\('RGB'\) it",
        ),
        ({"structure_from": np.eye(8, dtype=np.uint8), "cut": "left"}, "cut is 'left'; expected one of center"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.sample(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": np.ones((8, 8))}, r"keep: found one colour \(1\) all over"),
        ({"keep": np.zeros((8, 8), bool)}, r"keep: found one colour \(0\) all over"),
        ({"keep": np.eye(8) == 0, "picture": np.zeros((8, 4), np.uint8)}, "8x8 pixels over a picture of 4x8"),
        ({"keep": np.array([[0.0, np.nan]] * 2)}, "keep: found values that are not finite"),
        ({"keep": np.arange(64).reshape(8, 8) % 2}, "keep: found white on no whole position of the 4×4 latent grid"),
        ({"keep": np.eye(8)[None]}, r"keep: found a?.*float64 array of shape \(1, 8, 8\)"),
        ({"keep": "mask.png"}, "keep: found a str"),
        ({"keep": None}, "keep: found a NoneType"),
        ({"keep": np.eye(8) == 0, "picture": "digit.png"}, "picture: found a str"),
        ({"keep": np.eye(8) == 0, "classes": "cat"}, "classes is 'cat'"),
        ({"keep": np.eye(8) == 0, "seed": -1}, "seed is -1"),
        ({"keep": np.eye(8) == 0, "cut": "left"}, "cut is 'left'"),
    ],
)
def test_what_cannot_be_edited_is_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.edit(**{"picture": np.zeros((8, 8), np.uint8), **arguments})


def test_black_outside_the_square_that_is_cut_leaves_nothing_to_draw(model):
    keep = np.ones((8, 24), bool)
    keep[:, :4] = False
    with pytest.raises(UserError, match="keep: found white all over"):
        model.edit(np.zeros((8, 24), np.uint8), keep=keep)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda model: model.encode([]), "at least one picture"),
        (lambda model: model.encode("digit.png"), "picture: found a str"),
        (lambda model: model.sample(1).decode(5), "stage is 5; expected 0 to 4, or -5 to -1"),
        (lambda model: model.sample(1).maps(5), "stage is 5"),
        (lambda model: model.sample(1).ids(5), "stage is 5"),
        (lambda model: model.sample(1).stages(1), "row is 1; expected 0 to 0, one of the 1 images"),
    ],
)
def test_what_cannot_be_shown_is_refused(model, what, message):
    with pytest.raises(UserError, match=message):
        what(model)


def test_names_that_several_classes_share_need_a_label(run, model, tmp_path):
    names = ["crane", "dog", "crane", *"3456789"]
    shared = nvg.Model(
        tokenizer=model.tokenizer,
        content=model.content,
        structure=model.structure,
        class_names=names,
        sampling=FEW_STEPS,
    )
    with pytest.raises(UserError, match=r"classes is 'crane'; .*labels \[0, 2\] are all called so; give a label"):
        shared.sample("crane")
    with pytest.raises(UserError, match=r"classes is 'dogs'.*did you mean 'dog'"):
        shared.sample("dogs")
    assert shared.sample("dog").labels.tolist() == [1]
    with pytest.raises(UserError, match="put together in memory"):
        shared.save_pretrained(tmp_path / "out")


def test_a_decoder_that_has_diverged_is_named_with_the_samples(run):
    broken = nvg.load(run, settings=FEW_STEPS)
    with torch.no_grad():
        broken.tokenizer.decoder.state_dict()[next(iter(broken.tokenizer.decoder.state_dict()))].fill_(float("nan"))
    with pytest.raises(UserError, match=rf"samples \[3, 13\].*{re.escape(str(run / 'content'))}"):
        broken.sample(3, per_class=2)


def test_it_needs_pytorch_alone_and_no_time(run):
    """Half a second here; the bar of one second stands in docs/python.md, machines under tests are slower."""
    program = (
        "import sys, time, torch; began = time.perf_counter(); import nvg; model = nvg.load(sys.argv[1])\n"
        "taken = time.perf_counter() - began; print(taken)\n"
        "model.sample(['3', 7]).stages(0); print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program, str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()
    assert float(seconds) < 3
    unwanted = {"PIL", "omegaconf", "matplotlib", "ray", "deepspeed", "huggingface_hub", "eval", "pipelines", "cluster"}
    assert not unwanted & set(modules.split())
    assert "no evaluation has scored these weights" in done.stderr
    assert "torch._dynamo" not in modules


def test_importing_the_package_imports_nothing(tmp_path):
    program = "import sys, nvg, nvg.errors; print('torch' in sys.modules, nvg.__all__); nvg.nothing"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("False")
    assert "module 'nvg' has no attribute 'nothing'" in done.stderr


def test_there_is_one_place_that_draws_samples():
    """`nvg.sampling.sample` is called in `Networks.draw`; benchmarks time it as it is."""
    callers = []
    for folder in ("nvg", "eval", "pipelines", "cluster", "tools"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            imported = {
                alias.asname or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nvg.sampling")
                for alias in node.names
                if alias.name == "sample"
            }
            if imported and not file.is_relative_to(ROOT / "nvg" / "sampling"):
                calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
                named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in imported]
                callers += [file.relative_to(ROOT).as_posix()] * len(named)
    assert callers == ["nvg/networks.py"]


def test_the_page_shows_what_works(run, given):
    """The first example of docs/python.md, on this run."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0].replace('"runs/demo"', repr(str(run)))
    names: dict[str, Any] = {name: np.asarray(Image.open(given[name])) for name in ("picture", "mask", "keep")}
    exec(program, names)
    assert names["drawn"].labels.tolist() == [3] * 4 + [7] * 4
    assert names["again"].labels.tolist() == names["mixed"].labels.tolist() == [8]
    assert json.dumps(names["parts"].content_ids.tolist())
