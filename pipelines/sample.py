"""`nvg sample`: images of chosen classes, as single files, a grid, and the stages they were painted in."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from cluster.files import write_atomically
from cluster.manifest import read_manifest
from eval.pictures.paintings import paint_samples
from eval.pictures.sheets import painting_rows, sample_grid
from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from nvg.checkpoints import load_config
from nvg.errors import UserError
from nvg.sampling import SamplingConfig
from nvg.tokenizer.tokenizer import SPATIAL
from pipelines.checkpoints import weights_folder
from pipelines.sample_control import ADHERENCE_FILE, CONTROL_FILE, STAGES_FILE, sample_controlled
from pipelines.structure_control import ControlConfig, plan_control

GRID_FILE = "grid.png"
EVALUATION_FILE = "configs/evaluation.yaml"
STAGES_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn, and from which networks.

    Attributes:
        run: folder of a demo (or of one's own trainings) with tokenizer, content, structure and records below it;
            imported weights have no records, their classes are numbers; with a tokenizer of spatial structure there is
            no structure generator.
        classes: class ids; empty draws all.
        num_per_class: images of each.
        sampling: guidance, top-p, flow steps; the command takes those of `run_sampling` where nothing else is given.
        control: what the samples shall follow: maps of an image, a drawn mask, first contents of an image.
        seed: of all samples; the image of a class and number depends on it alone.
        weights: "ema" or "model".
        rounding: "round" or "release" (cut off), from network output to bytes.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        output: folder for the images, the grid and the stages of the first few.
    """

    run: str = "runs/demo"
    classes: list[int] = field(default_factory=list)
    num_per_class: int = 8
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    seed: int = 0
    weights: str = "ema"
    rounding: str = "round"
    device: str = "auto"
    output: str = "samples"

    def __post_init__(self) -> None:
        if self.num_per_class < 1:
            raise ValueError(f"num_per_class: found {self.num_per_class}, expected at least 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: found {self.device!r}, expected auto, cpu or cuda")


def run_sampling(run: str) -> list[str]:
    """The sampling settings that a run was scored with, as an override `sampling={…}`.

    Args:
        run: folder of a demo.

    Returns:
        One override; none where the run keeps no `configs/evaluation.yaml`.
    """
    file = Path(run) / EVALUATION_FILE
    if not file.is_file():
        return []
    sampling = yaml.safe_load(file.read_text()).get("sampling")
    return [f"sampling={json.dumps(sampling)}"] if sampling else []


def plan_sample(config: SampleConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    classes = ", ".join(map(str, config.classes)) or "all classes"
    controlled = config.control.active
    files = [GRID_FILE, STAGES_FILE, *([CONTROL_FILE, ADHERENCE_FILE] if controlled else [])]
    return [
        f"load tokenizer, content and structure generator below {config.run} ({config.weights} weights)",
        *([plan_control(config.control)] if controlled else []),
        f"draw {config.num_per_class} image(s) of {classes}, seed {config.seed}",
        *(["draw as many free ones and measure how well both follow what was given"] if controlled else []),
        f"write images, {', '.join(files)} in {config.output}",
    ]


def sample_images(config: SampleConfig) -> Path:
    """Draws and writes.

    Args:
        config: what is drawn.

    Returns:
        The grid.

    Raises:
        UserError: networks are missing or do not fit, a class does not exist, or what is given cannot be used.
    """
    run = Path(config.run)
    names = _class_names(run, config.weights)
    classes = config.classes or list(range(len(names)))
    if odd := [label for label in classes if not 0 <= label < len(names)]:
        raise UserError(f"classes: found {odd}, expected ids from 0 to {len(names) - 1} ({', '.join(names[:20])})")
    tokenizer = weights_folder("run", str(run / "tokenizer"))
    spatial = load_config(tokenizer, "tokenizer", "ema").get("structure") == SPATIAL
    spec = GeneratorSpec(
        tokenizer=str(tokenizer),
        content=str(weights_folder("run", str(run / "content"))),
        structure="" if spatial else str(weights_folder("run", str(run / "structure"))),
        weights=config.weights,
        num_classes=len(names),
        sampling=config.sampling,
        seed=config.seed,
        rounding=config.rounding,
    )
    labels = np.repeat(classes, config.num_per_class)
    numbers = np.tile(np.arange(config.num_per_class), len(classes))
    # The k-th image of class c is sample c + k · classes of the evaluation pool, whichever classes are asked for.
    indices = labels + numbers * len(names)
    output = Path(config.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    sampler = spec.build(_device(config.device))
    if config.control.active:
        images = sample_controlled(sampler, config.control, labels, indices, output)
    else:
        images = sampler.draw(torch.from_numpy(labels), torch.from_numpy(indices))
        count = min(STAGES_SHOWN, len(names))
        stages = painting_rows(paint_samples(spec, PoolConfig(chunk_size=count, batch_size=count), count=count))
        write_atomically(output / STAGES_FILE, stages.light)
    for image, label, number in zip(images, labels, numbers, strict=True):
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(pixels).save(output / f"{names[label]}-{number:03d}.png")
    shown = np.isin(np.arange(len(names)), classes)
    remap = np.cumsum(shown) - 1
    grid = sample_grid(images, remap[labels], [name for name, keep in zip(names, shown, strict=True) if keep])
    write_atomically(output / GRID_FILE, grid.light)
    return output / GRID_FILE


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device: found cuda, torch sees no GPU here; use auto or cpu")
    return "cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda"


def _class_names(run: Path, weights: str) -> list[str]:
    """Names in the records; where a run has none (imported weights), the numbers of the classes."""
    if (run / "records").is_dir():
        return list(read_manifest(run / "records")["class_names"])
    content = load_config(weights_folder("run", str(run / "content")), "content", weights)
    return [str(label) for label in range(content["num_classes"])]
