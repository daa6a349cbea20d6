"""docs/architecture.md is followed by running it, its figures hold, and every front door names its rooms."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from record_training import record_config
from tiny_networks import save_generators, save_tokenizer

from eval.features.extractors import SMALL_IMAGE, ExtractorSpec, build_extractor, extract
from eval.features.small_network import FeatureNetwork, FeatureNetworkConfig, save_feature_network
from eval.pool.jobs import SamplingJob
from eval.pool.samplers import GeneratorSpec
from eval.scores.metrics import frechet_distance
from nvg.checkpoints import load_network, weights_hash
from nvg.sampling import SamplingConfig
from nvg.tokenizer import Tokenizer
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.plan import DatasetFolder, make_plan
from pipelines.precompute.unit import encode_unit
from pipelines.sources import SourceConfig, load_images, open_source
from pipelines.train.generator import train_generator
from tools.house import HOUSES, ROOT, House
from tools.house_picture import picture_digest

HOUSE = House()
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "architecture.png"
BARS = {
    "modules of pipelines + eval, front doors not counted": 116,
    "rooms at the top of pipelines": 22,
    "modules in import circles": 0,
    "lines of pipelines + eval": 25_850,
    "code lines of pipelines + eval + cluster": 17_800,
}
MOST_FILES_IN_A_STEP = 8
ONCE_A_STEP = "nvg/training/generator_objectives.py:ContentObjective.forward"


# The three walks, small and in this process: what the page lists is what these enter.
def image_to_record(folder: Path) -> Path:
    config = PrecomputeConfig(
        source=SourceConfig(split="test"),
        tokenizer=str(save_tokenizer(folder / "tokenizer")),
        output=str(folder / "records"),
        images_per_unit=150,
    )
    source = open_source(config.source)
    tokenizer = load_network(Tokenizer, config.tokenizer)
    plan = make_plan(config, source, weights_hash(config.tokenizer, "ema"))
    records = DatasetFolder(Path(config.output))
    records.adopt(plan)
    for unit, indices in enumerate(plan.units):
        encode_unit(
            unit,
            indices,
            source=source,
            tokenizer=tokenizer,
            config=config,
            folder=records,
            plan_fingerprint=plan.fingerprint,
        )
    return merge_parts(records, plan, records.committed(plan), source=source, tokenizer=tokenizer)


def training_steps(records: Path, folder: Path) -> None:
    config = record_config(records, folder / "content")
    loop = replace(config.loop, engine="plain", log_every_steps=100, checkpoint_every_steps=100)
    train_generator(replace(config, loop=loop))


def sample_to_score(folder: Path) -> float:
    tokenizer = save_tokenizer(folder / "tokenizer")
    content, structure = save_generators(folder)
    network = FeatureNetwork(FeatureNetworkConfig(image_size=16, image_channels=1, num_classes=10, width=8))
    save_feature_network(network, folder / "features")
    extractor = ExtractorSpec(kind=SMALL_IMAGE, path=str(folder / "features"))
    spec = GeneratorSpec(
        tokenizer=str(tokenizer),
        content=str(content),
        structure=str(structure),
        num_classes=10,
        sampling=SamplingConfig(num_flow_steps=2),
    )
    chunk = SamplingJob(spec=spec, extractor=extractor).build("cpu", 20)(np.arange(20))
    real = load_images(open_source(SourceConfig(split="test"))).images
    return frechet_distance(chunk["features_BF"], extract(build_extractor(extractor), real).features_NF)


@contextmanager
def entered() -> Iterator[list[str]]:
    """Functions of the house that are entered in this block, in order, by whatever thread, as `file:function`."""
    found: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            file, _, inside = frame.f_code.co_filename.partition(f"{ROOT}/")
            if not file and inside.startswith(HOUSES):
                found.append(f"{inside}:{frame.f_code.co_qualname}")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Heading of each walk on the page to what running it enters."""
    folder = tmp_path_factory.mktemp("walks")
    with entered() as first:
        records = image_to_record(folder)
    with entered() as second:
        training_steps(records, folder)
    with entered() as third:
        assert sample_to_score(folder) > 0
    return {"An image becomes a record": first, "A training step": second, "A sample becomes a score": third}


def walk(heading: str) -> list[str]:
    """The functions that the page lists under a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    return re.findall(r"^\* `([\w/]+\.py:[\w.]+)`", section, re.MULTILINE)


@pytest.mark.parametrize("heading", ["An image becomes a record", "A training step", "A sample becomes a score"])
def test_a_walk_enters_what_the_page_lists_in_this_order(followed: dict[str, list[str]], heading: str) -> None:
    listed, first_entries = walk(heading), list(dict.fromkeys(followed[heading]))
    assert len(listed) >= 10
    assert [name for name in listed if name not in first_entries] == []
    wrong = [pair for pair in pairwise(listed) if first_entries.index(pair[0]) >= first_entries.index(pair[1])]
    assert wrong == []


def test_a_plain_step_enters_few_files_of_pipelines(followed: dict[str, list[str]]) -> None:
    steps = followed["A training step"]
    marks = [place for place, name in enumerate(steps) if name == ONCE_A_STEP]
    assert len(marks) == 6
    between = {name.split(":")[0] for name in steps[marks[2] : marks[3]]}  # a whole step, batch and bookkeeping with it
    files = sorted(name for name in between if name.startswith("pipelines/"))
    assert 3 <= len(files) <= MOST_FILES_IN_A_STEP, files


# What a process needs is what it imports: every rank, actor and command pays for it at its start.
LIGHT = {
    "pipelines.cli.main": {"torch", "numpy"},
    "pipelines.train.generator": {"eval", "matplotlib", "ray", "streaming", "transformers"},
    "pipelines.precompute.unit": {"matplotlib", "ray", "streaming", "transformers"},
    "eval.pool.jobs": {"matplotlib", "ray", "torchmetrics", "transformers"},
}


@pytest.mark.parametrize("entry", LIGHT)
def test_an_entry_imports_nothing_that_is_for_others(entry: str) -> None:
    program = f"import sys, {entry}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert LIGHT[entry] & set(done.stdout.split()) == set()


@pytest.mark.parametrize("what", BARS)
def test_the_house_stays_small(what: str) -> None:
    assert HOUSE.counts()[what] <= BARS[what]


@pytest.mark.parametrize("package", [name for name in HOUSE.modules if HOUSE.is_package(name)])
def test_a_front_door_names_its_rooms(package: str) -> None:
    text = HOUSE.modules[package].docstring
    rooms = [room for room in HOUSE.rooms(package) if not room.startswith("_")]
    assert [room for room in rooms if not re.search(rf"\b{room}\b", text)] == []


def test_the_picture_is_of_this_house() -> None:
    with Image.open(PICTURE) as picture:
        is_fresh = picture.info.get("Description") == picture_digest(HOUSE)
    assert is_fresh, "docs/architecture.png is stale: run `make docs`"


def test_files_that_the_guides_name_are_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
    folders = (*HOUSES, "tests", "tools", "benchmarks", "configs", "docs")
    files = {file.relative_to(ROOT).as_posix() for folder in folders for file in (ROOT / folder).rglob("*.*")}
    named = {
        (page.name, path) for page in pages for path in re.findall(r"`([\w/]+\.(?:py|md|sh))[:`]", page.read_text())
    }
    assert len(named) > 50
    files |= {file.name for file in ROOT.iterdir()}
    missing = [(page, path) for page, path in named if not any(f"/{file}".endswith(f"/{path}") for file in files)]
    assert sorted(missing) == []
