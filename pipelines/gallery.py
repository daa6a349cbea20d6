"""`nvg gallery`: the paper's figures from one's own model, on one page. Enter by `draw_gallery`.

Samples painted stage by stage (Fig. 1 and 5), drawn masks and pictures whose structure is followed (Fig. 6), stages
i..K generated after those of a picture (Fig. 7), and how well the samples follow what they were given.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cluster.files import write_atomically
from eval.controlled import Comparison, compare
from eval.image_files import begin_sample_folder, check_sample_folder
from eval.pages import page
from eval.pictures import paint_sequences, painting_rows
from eval.pictures.drawing import Picture
from eval.pictures.sheets import control_sheet
from eval.pool.samplers import GeneratorSampler
from nvg.bounds import at_least
from nvg.granularity import StageLayout
from nvg.pixels import ImageArray
from nvg.sampling import give_structure
from nvg.sampling.following import Control, follow_mask, tokenized_image
from nvg.tokenizer import Tokenizer
from pipelines.configuration import load_config, read_section
from pipelines.sample import EVALUATION_FILE, DrawConfig, Drawing, open_run, stagewise_picture
from pipelines.sources import BadImage, SourceConfig, open_source
from pipelines.structure_control import ControlConfig, load_control, read_picture

PAGE_FILE, FIGURES_FILE = "gallery.html", "gallery.json"
_MOST_PAINTINGS = 8
_MASK_PIXELS = 256
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GalleryConfig(DrawConfig):
    """What is shown.

    Attributes:
        pictures: image files whose structure is followed; empty takes held-out images of the run's own data, one of
            each class shown.
        masks: files with drawn masks, white is foreground; empty draws a circle, a rectangle and stripes.
        num_classes: classes shown where `classes` is empty, the first ones.
        num_per_class: samples of a class in each figure.
        output: folder for the page, its figures as PNG, and the agreements as JSON.
    """

    pictures: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    num_classes: int = at_least(1, 4)
    num_per_class: int = at_least(1, 6)
    output: str = "gallery"


@dataclass(frozen=True)
class _Reference:
    """A picture with its class, where that is known, and its sequence."""

    name: str
    image_HWC: ImageArray
    content_ids_1T: torch.Tensor
    structure_1L: torch.Tensor
    label: int | None = None

    @property
    def control(self) -> Control:
        """All its maps."""
        given = give_structure(self.structure_1L, StageLayout(self.structure_1L.shape[1]).last_stage)
        return Control(name=self.name, given=given, source_HWC=self.image_HWC, image_HWC=self.image_HWC)


@dataclass(frozen=True)
class _Figure:
    name: str
    picture: Picture
    caption: str
    comparison: Comparison | None = None


def plan_gallery(config: GalleryConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    pictures = f"{len(config.pictures)} picture(s)" if config.pictures else "held-out images of the run's data"
    masks = f"{len(config.masks)} mask(s)" if config.masks else "a circle, a rectangle and stripes"
    return [
        f"load tokenizer, content and structure generator below {config.run} ({config.weights} weights)",
        f"paint samples stage by stage; let samples follow {masks} and the structure of {pictures}",
        "generate stages i..K after those of each picture, for every i",
        f"write {PAGE_FILE}, {FIGURES_FILE} and the figures in {config.output}",
    ]


def draw_gallery(config: GalleryConfig) -> Path:
    """Draw all figures and write the page.

    Returns:
        The page.

    Raises:
        UserError: networks are missing or do not fit, a class does not exist, or a picture or mask cannot be used.
    """
    output, drawing = Path(config.output).absolute(), open_run(config)
    if not config.classes:
        drawing = replace(drawing, classes=drawing.classes[: config.num_classes])
    sampler = drawing.build()
    references = _references(config, drawing, sampler.tokenizer)
    # A spatial tokenizer gives all images the same maps: there is nothing to follow.
    masks = _masks(config, sampler.tokenizer) if sampler.structure is not None else []
    followed = [item.control for item in references] if sampler.structure is not None else []
    check_sample_folder("output", output)
    groups = {
        "stages": [_painted(sampler, drawing, drawing.classes if config.classes else range(len(drawing.class_names)))],
        "masks": [_followed(sampler, drawing, control, config) for control in masks],
        "pictures": [_followed(sampler, drawing, control, config) for control in followed],
        "stagewise": [_stagewise(sampler, drawing, item) for item in references],
    }
    files = {f"{name}-{number}.png": figure for name in groups for number, figure in enumerate(groups[name], start=1)}
    if num_removed := begin_sample_folder("output", output, [*files, PAGE_FILE, FIGURES_FILE]):
        logger.warning("%s: removed %d files of an earlier run", config.output, num_removed)
    for name, figure in files.items():
        write_atomically(output / name, figure.picture.light)
    agreement = {
        name: {"given": figure.name, **figure.comparison.as_json()}
        for name, figure in files.items()
        if figure.comparison is not None
    }
    facts = {"run": config.run, "agreement": agreement}
    write_atomically(output / FIGURES_FILE, f"{json.dumps(facts, indent=2)}\n".encode())
    write_atomically(output / PAGE_FILE, _page(config, groups).encode())
    return output / PAGE_FILE


def _painted(sampler: GeneratorSampler, drawing: Drawing, classes: Sequence[int]) -> _Figure:
    """Paper: Fig. 1, Fig. 5"""
    labels_B, _, indices_B = replace(drawing, classes=list(classes[:_MOST_PAINTINGS])).labelled(1)
    labels, indices = torch.from_numpy(labels_B), torch.from_numpy(indices_B)
    drawn = sampler.draw_sequences(labels, indices)
    paintings = paint_sequences(sampler.tokenizer, drawn, labels, sampler.spec.rounding, count=len(labels))
    return _Figure("stages", painting_rows(paintings), "Above, the structure map; below, the canvas decoded.")


def _followed(sampler: GeneratorSampler, drawing: Drawing, control: Control, config: GalleryConfig) -> _Figure:
    """Paper: Fig. 6"""
    labels_B, _, indices_B = drawing.labelled(config.num_per_class)
    images = None if control.image_HWC is None else np.repeat(control.image_HWC[None], len(labels_B), axis=0)
    labels, indices = torch.from_numpy(labels_B), torch.from_numpy(indices_B)
    given = control.for_samples(len(labels))
    samples, _, comparison = compare(sampler, labels, indices, given, images_BHWC=images)
    rows = [(drawing.class_names[label], samples.images_BHWC[labels_B == label]) for label in drawing.classes]
    sheet = control_sheet(
        control.source_HWC,
        control.maps,
        rows,
        source_name=control.source_name,
        agreements=None if comparison is None else comparison.samples.splits,
    )
    return _Figure(control.name, sheet, f"Given: {control.name}. One row a class.", comparison)


def _stagewise(sampler: GeneratorSampler, drawing: Drawing, reference: _Reference) -> _Figure:
    """Two samples of the picture's own class, where it is known, and two of another one. Paper: Fig. 7"""
    others = [label for label in drawing.classes if label != reference.label]
    classes = [*([] if reference.label is None else [reference.label]), *others][:2]
    labels_B, _, indices_B = replace(drawing, classes=classes).labelled(2)
    names = [drawing.class_names[label] for label in labels_B]
    sequence = reference.content_ids_1T, reference.structure_1L
    picture = stagewise_picture(sampler, labels_B, indices_B, names, *sequence)
    return _Figure(reference.name, picture, f"Reference: {reference.name}.")


def _masks(config: GalleryConfig, tokenizer: Tokenizer) -> list[Control]:
    if config.masks:
        loaded = [load_control(ControlConfig(structure_mask=file), tokenizer) for file in config.masks]
        return [replace(control, name=Path(file).name) for file, control in zip(config.masks, loaded, strict=True)]
    drawn = []
    for name, shape in _SHAPES.items():
        drawn.append(replace(follow_mask(tokenizer, _raster(shape)), name=name))
    return drawn


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "a circle": lambda x, y: x**2 + y**2 < 0.8**2,
    "a rectangle": lambda x, y: (abs(x) < 0.55) & (abs(y) < 0.9),
    "stripes": lambda x, y: np.floor((x + 1) * 2) % 2 == 0,
}


def _raster(shape: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 (256, 256) of a shape over [-1, 1]², white inside."""
    places = (np.arange(_MASK_PIXELS) + 0.5) / _MASK_PIXELS * 2 - 1
    return np.where(shape(*np.meshgrid(places, places)), 255, 0).astype(np.uint8)


def _references(config: GalleryConfig, drawing: Drawing, tokenizer: Tokenizer) -> list[_Reference]:
    if not config.pictures:
        return _held_out(Path(config.run), drawing, tokenizer)
    images = [read_picture("pictures", file, tokenizer, drawing.cut) for file in config.pictures]
    names = [Path(file).name for file in config.pictures]
    return [
        _Reference(name, image, *tokenized_image(tokenizer, image)) for name, image in zip(names, images, strict=True)
    ]


def _held_out(run: Path, drawing: Drawing, tokenizer: Tokenizer) -> list[_Reference]:
    """The first held-out image of each class shown; none where the run does not say what it was scored on."""
    file = run / EVALUATION_FILE
    section = read_section(file, "source") if file.is_file() else {}
    if not section:
        logger.warning("%s says no source: no held-out image is followed; name images by pictures='[…]'", file)
        return []
    source = open_source(load_config(SourceConfig, None, [{**section["source"], "split": "test", "num_views": 1}]))
    found = []
    for label in drawing.classes:
        for index in np.flatnonzero(source.labels == label).tolist():
            try:
                image = source.read(index, 0)
            except BadImage as error:
                logger.warning("passed over: %s", error)
                continue
            name, sequence = f"{drawing.class_names[label]}, held out", tokenized_image(tokenizer, image)
            found.append(_Reference(name, image, *sequence, label))
            break
    return found


_SECTIONS = {
    "stages": (
        "Painted stage by stage",
        "Each stage divides every region in two equal halves and paints one token a region over the canvas.",
    ),
    "masks": ("A drawn layout", "A mask is the first split; all further structure and all contents are drawn."),
    "pictures": (
        "The structure of a picture",
        "All maps of a real picture are given; the model draws contents of the classes asked for. Under each map, the "
        "share of positions that the samples, encoded again, have on its side.",
    ),
    "stagewise": (
        "From any stage on",
        "Under stage i, stages i to the last are generated after those of the reference: first with its contents "
        "and structure, then with its structure alone. On the right everything is the reference's.",
    ),
}


def _page(config: GalleryConfig, groups: dict[str, list[_Figure]]) -> str:
    sections = [
        page.section(*_SECTIONS[name], *(page.figure(item.picture, item.caption, item.caption) for item in figures))
        for name, figures in groups.items()
        if figures
    ]
    compared = [(item.name, item.comparison) for figures in groups.values() for item in figures if item.comparison]
    if compared:
        rows = [
            [
                name,
                f"{found.samples.mean:.3f}",
                f"{found.free.mean:.3f}",
                "–" if found.reconstruction is None else f"{found.reconstruction.mean:.3f}",
            ]
            for name, found in compared
        ]
        head = ["given", "samples", "free samples", "the picture's reconstruction"]
        why = "Agreement with the given splits, mean over them; free samples are of the same classes and noise."
        sections.append(page.section("How well samples follow", why, page.table(head, rows)))
    lead = f"Drawn by {config.run}, {config.weights} weights, seed {config.seed}. Nothing is chosen."
    return page.page("Gallery", page.header("Gallery", lead), *sections)
