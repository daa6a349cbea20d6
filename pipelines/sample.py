"""`nvg sample`: images of chosen classes, as single files, a grid, and the stages they were painted in.

Where something is given (`pipelines.structure_control`), samples that follow it, free ones beside them, and how well
both follow. Enter by `sample_images`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cluster.files import write_atomically
from eval.controlled import Comparison, ControlledSamples, compare, draw_stagewise
from eval.image_files import begin_sample_folder, check_sample_folder
from eval.image_sets import ImageSet
from eval.pictures import paint_sequences, painting_rows, sample_grid
from eval.pictures.drawing import Picture
from eval.pictures.sheets import control_sheet, stagewise_sheet
from eval.pool.samplers import GeneratorSampler, GeneratorSpec
from nvg.bounds import at_least, check_fields
from nvg.class_names import number_samples
from nvg.errors import UserError
from nvg.folders import MODEL_FILE, find_export, find_run
from nvg.json_files import read_json
from nvg.pictures import Cut
from nvg.pixels import ImageArray, Rounding
from nvg.precision import Device, Precision, resolve_device, resolve_precision
from nvg.sampling import SamplingConfig, capture_passes
from nvg.sampling.following import Control, tokenized_image
from pipelines.configuration import read_section
from pipelines.structure_control import ControlConfig, load_control, plan_control, read_picture

GRID_FILE, STAGES_FILE, CONTROL_FILE, ADHERENCE_FILE = "grid.png", "stages.png", "control.png", "adherence.json"
STAGEWISE_FILE = "stagewise.png"
EVALUATION_FILE = "configs/evaluation.yaml"
_NUM_PAINTINGS = 4
_MOST_STAGEWISE = 24


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """From which networks is drawn, and how.

    Attributes:
        run: folder of a demo (or of one's own trainings) with tokenizer, content, structure and records below it;
            imported weights have no records, their classes are numbers; with a tokenizer of spatial structure there is
            no structure generator. Or an exported model.
        classes: class ids; empty draws all.
        sampling: guidance, top-p, flow steps; the command takes those of `run_sampling` where nothing else is given.
        seed: of all samples; the image of a class and number depends on it alone.
        weights: which weights of the generators; an exported model has one kind.
        rounding: `round` or `release` (cut off), from network output to bytes.
        device: `auto` takes a GPU where there is one.
        precision: `bf16`, `tf32` or `fp32`, see `nvg.precision`; null is bf16 on a GPU and fp32 on a CPU.
        compile: True compiles the generators' blocks, which takes about a minute; pays from some hundred images on.
        cuda_graphs: True records the generators' passes as CUDA graphs and replays them; pays for few images on a GPU.
    """

    run: str = "runs/demo"
    classes: list[int] = field(default_factory=list)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = at_least(0, 0)
    weights: Literal["ema", "model"] = "ema"
    rounding: Rounding = "round"
    device: Device = "auto"
    precision: Precision | None = None
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawConfig):
    """What is drawn.

    Attributes:
        num_per_class: images of each class.
        control: what the samples shall follow: maps of an image, a drawn mask, first contents of an image.
        output: folder for the images, called by label and number, the grid and the stages of the first few.
    """

    num_per_class: int = at_least(1, 8)
    control: ControlConfig = field(default_factory=ControlConfig)
    output: str = "samples"


class _Exported(TypedDict):
    sampling: dict[str, Any]


def run_sampling(run: str) -> dict[str, Any]:
    """The sampling settings that a run was scored with, as a setting of the section `sampling`.

    Those of an exported model are in it. Empty where the folder of a run keeps no `configs/evaluation.yaml`.
    """
    folder = Path(run).expanduser()
    if (folder / MODEL_FILE).is_file():
        said: Any = read_json(folder / MODEL_FILE, _Exported, "what an exported model is", "export the run again")
        return {"sampling": said["sampling"]}
    file = folder / EVALUATION_FILE
    return read_section(file, "sampling") if file.is_file() else {}


def plan_sample(config: SampleConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    classes = ", ".join(map(str, config.classes)) or "all classes"
    controlled = config.control.active
    files = [GRID_FILE, STAGES_FILE, *([CONTROL_FILE, ADHERENCE_FILE] if controlled else [])]
    measure = "" if config.control.edit_from else " and measure how well both follow what was given"
    if config.control.stagewise_from:
        return [
            f"load tokenizer, content and structure generator below {config.run} ({config.weights} weights)",
            plan_control(config.control),
            f"draw {config.num_per_class} image(s) of {classes} for each number of stages, seed {config.seed}",
            f"write the figure {STAGEWISE_FILE} in {config.output}",
        ]
    return [
        f"load tokenizer, content and structure generator below {config.run} ({config.weights} weights)",
        *([plan_control(config.control)] if controlled else []),
        f"draw {config.num_per_class} image(s) of {classes}, seed {config.seed}",
        *([f"draw as many free ones{measure}"] if controlled else []),
        f"write images, {', '.join(files)} in {config.output}",
    ]


@dataclass(frozen=True)
class Drawing:
    """A run opened for drawing: everything is known to fit, no network is loaded yet.

    Attributes:
        spec: its networks and settings.
        class_names: of all classes, by label.
        classes: labels asked for.
        cut: how pictures are cut, as the run's images were.
    """

    spec: GeneratorSpec
    class_names: list[str]
    classes: list[int]
    device: str
    cuda_graphs: bool
    cut: Cut

    def build(self) -> GeneratorSampler:
        """Load the networks onto the device."""
        sampler = self.spec.build(self.device)
        if self.cuda_graphs:
            capture_passes(sampler.content, sampler.structure)
        return sampler

    def labelled(self, num_per_class: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is drawn, class by class; see `number_samples`."""
        return number_samples(self.classes, num_per_class, len(self.class_names))


def open_run(config: DrawConfig) -> Drawing:
    """Find the networks of a run.

    Raises:
        UserError: networks are missing or do not fit, a class does not exist, or there is no such device.
    """
    folder = Path(config.run).expanduser()
    parts = find_export(folder)[0] if (folder / MODEL_FILE).is_file() else find_run(folder, config.weights)
    names = parts.class_names
    classes = config.classes or list(range(len(names)))
    if odd := [label for label in classes if not 0 <= label < len(names)]:
        raise UserError(f"classes: found {odd}, expected ids from 0 to {len(names) - 1} ({', '.join(names[:20])})")
    device = resolve_device(config.device)
    if config.cuda_graphs and device == "cpu":
        raise UserError("cuda_graphs: found true on a CPU, expected a GPU, which alone has them; leave cuda_graphs out")
    spec = GeneratorSpec(
        tokenizer=str(parts.tokenizer),
        content=str(parts.content),
        structure=str(parts.structure or ""),
        weights=parts.weights,
        tokenizer_weights=parts.tokenizer_weights,
        num_classes=len(names),
        sampling=config.sampling,
        seed=config.seed,
        rounding=config.rounding,
        precision=resolve_precision(config.precision, device),
        compile=config.compile,
    )
    return Drawing(spec, names, classes, device, config.cuda_graphs, parts.cut)


def sample_images(config: SampleConfig) -> Path:
    """Draw and write.

    Returns:
        The grid.

    Raises:
        UserError: networks are missing or do not fit, a class does not exist, or what is given cannot be used.
    """
    drawing = open_run(config)
    names, classes = drawing.class_names, drawing.classes
    labels, numbers, indices = drawing.labelled(config.num_per_class)
    output = Path(config.output).absolute()
    files = [f"{label}-{number:03d}.png" for label, number in zip(labels, numbers, strict=True)]
    check_sample_folder("output", output)
    sampler, control = drawing.build(), None
    if config.control.stagewise_from:
        picture = _stagewise(sampler, config, drawing.cut, labels, indices, [names[label] for label in labels])
        _begin(config, output, [STAGEWISE_FILE])
        write_atomically(output / STAGEWISE_FILE, picture)
        return output / STAGEWISE_FILE
    if config.control.active:
        control = load_control(config.control, sampler.tokenizer, cut=drawing.cut)
    pictures = [GRID_FILE, STAGES_FILE, *([] if control is None else [CONTROL_FILE, ADHERENCE_FILE])]
    _begin(config, output, [*files, *pictures])
    if control is not None:
        images = _sample_controlled(sampler, control, config.control.num_candidates, labels, indices, output)
    else:
        images = sampler.draw(torch.from_numpy(labels), torch.from_numpy(indices))
        write_atomically(output / STAGES_FILE, _stages_of_the_first(sampler, min(_NUM_PAINTINGS, len(names))))
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(output / file)
    shown = np.isin(np.arange(len(names)), classes)
    remap = np.cumsum(shown) - 1
    asked = [name for name, keep in zip(names, shown, strict=True) if keep]
    grid = sample_grid(ImageSet(images, remap[labels]), asked)
    write_atomically(output / GRID_FILE, grid.light)
    return output / GRID_FILE


def _begin(config: SampleConfig, output: Path, files: list[str]) -> None:
    """Make the folder, and take out of it what an earlier run of the command left and this one does not write."""
    if num_removed := begin_sample_folder("output", output, files):
        Console().print(f"{config.output}: removed {num_removed} files of an earlier run", soft_wrap=True)


def _stagewise(
    sampler: GeneratorSampler,
    config: SampleConfig,
    cut: Cut,
    labels_B: np.ndarray,
    indices_B: np.ndarray,
    names: list[str],
) -> bytes:
    """The figure of stage-wise control, PNG."""
    assert config.control.stagewise_from is not None
    if len(names) > _MOST_STAGEWISE:
        raise UserError(
            f"classes and num_per_class ask for {len(names)} samples; expected at most {_MOST_STAGEWISE} in the figure "
            "of control.stagewise_from; change classes or num_per_class"
        )
    key, cut = "control.stagewise_from", config.control.view_policy or cut
    image_HWC = read_picture(key, config.control.stagewise_from, sampler.tokenizer, cut)
    sequence = tokenized_image(sampler.tokenizer, image_HWC)
    return stagewise_picture(sampler, labels_B, indices_B, names, *sequence).light


def stagewise_picture(
    sampler: GeneratorSampler,
    labels_B: np.ndarray,
    indices_B: np.ndarray,
    names: list[str],
    ids_1T: torch.Tensor,
    structure_1L: torch.Tensor,
) -> Picture:
    """Stages i..K generated for every i, after those of a reference with this sequence.

    Paper: Fig. 7
    """
    drawn = draw_stagewise(sampler, torch.from_numpy(labels_B), torch.from_numpy(indices_B), ids_1T, structure_1L)
    groups = [("generate i–K: contents below i and structure up to i are the reference's", drawn.contents_SBHWC)]
    if drawn.structures_SBHWC is not None:
        groups.append(("generate i–K: structure up to i is the reference's", drawn.structures_SBHWC))
    return stagewise_sheet(drawn.reference_SHWC, groups, names)


def _sample_controlled(
    sampler: GeneratorSampler,
    control: Control,
    num_candidates: int,
    labels_B: np.ndarray,
    indices_B: np.ndarray,
    output: Path,
) -> ImageArray:
    """Draw by what is given, measure, print, write pictures and figures; the images are returned."""
    console = Console()
    labels, indices = torch.from_numpy(labels_B), torch.from_numpy(indices_B)
    samples, free, comparison = compare(
        sampler,
        labels,
        indices,
        control.for_samples(len(labels)),
        num_candidates=num_candidates,
        images_BHWC=None if control.image_HWC is None else np.repeat(control.image_HWC[None], len(labels), axis=0),
    )
    facts = {
        "given": control.name,
        "positions_kept": None if control.given.region is None else int(control.given.region.keep_BL.sum()),
        "splits_given": control.given.num_splits,
        "stages_of_contents_given": control.given.num_contents,
        "mask_bend": control.bend if control.source_name == "mask" else None,
        "label_bend": control.bend if control.source_name == "labels" else None,
        "samples": len(labels),
        "candidates": num_candidates,
        "agreement": None if comparison is None else comparison.as_json(),
    }
    write_atomically(output / ADHERENCE_FILE, f"{json.dumps(facts, indent=2)}\n".encode())
    _write_pictures(sampler, control, samples, free, comparison, labels, output)
    _print_figures(console, control, comparison, facts)
    return samples.images_BHWC


def _stages_of_the_first(sampler: GeneratorSampler, count: int) -> bytes:
    """How the first samples of the evaluation pool were painted, PNG."""
    indices_B = torch.arange(count)
    labels_B = indices_B % sampler.spec.num_classes
    drawn = sampler.draw_sequences(labels_B, indices_B)
    paintings = paint_sequences(sampler.tokenizer, drawn, labels_B, sampler.spec.rounding, count=count)
    return painting_rows(paintings).light


def _write_pictures(
    sampler: GeneratorSampler,
    control: Control,
    samples: ControlledSamples,
    free: ControlledSamples,
    comparison: Comparison | None,
    labels_B: torch.Tensor,
    output: Path,
) -> None:
    sheet = control_sheet(
        control.source_HWC,
        control.maps,
        [("samples" if control.given.region else "as given", samples.images_BHWC), ("free", free.images_BHWC)],
        source_name=control.source_name,
        agreements=None if comparison is None else comparison.samples.splits,
    )
    write_atomically(output / CONTROL_FILE, sheet.light)
    paintings = paint_sequences(
        sampler.tokenizer, samples.sequences, labels_B, sampler.spec.rounding, count=_NUM_PAINTINGS
    )
    write_atomically(output / STAGES_FILE, painting_rows(paintings).light)


def _print_figures(console: Console, control: Control, comparison: Comparison | None, facts: dict[str, Any]) -> None:
    if control.given.region is not None:
        console.print(f"kept     {control.name}; the rest is generated", highlight=False)
        return
    console.print(
        f"given    {control.name}: {facts['splits_given']} split(s), {facts['stages_of_contents_given']} stage(s) of "
        "contents",
        highlight=False,
    )
    if control.bend is not None:
        what = "changed side to balance the mask" if control.source_name == "mask" else "lie with another label"
        console.print(f"bent     {control.bend:.1%} of the positions {what}", highlight=False)
    if comparison is None:
        console.print("agreement is not measured: no split was given that images could differ in", highlight=False)
        return
    rows = {
        "samples": comparison.samples,
        "free samples": comparison.free,
        "best free draws": comparison.free_best,
        "reconstruction": comparison.reconstruction,
    }
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("agreement")
    for name in ["mean", *(f"split {number}" for number in range(1, len(comparison.samples.splits) + 1))]:
        table.add_column(name, justify="right")
    table.add_column("explained / own", justify="right")
    for name, adherence in rows.items():
        if adherence is not None:
            cells = [adherence.mean, *adherence.splits, sum(adherence.explained) / sum(adherence.own_explained)]
            table.add_row(name, *(f"{cell:.3f}" for cell in cells))
    console.print(table)
