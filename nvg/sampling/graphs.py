"""CUDA graphs of sampling's forward passes: for few images, launching kernels takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from nvg.models.structure import FlowCondition

_NUM_WARM_UPS = 2  # libraries choose their algorithms and allocate what they work in outside the recording


def capture_passes(content: ContentGenerator, structure: StructureGenerator | None) -> None:
    """Makes generators record each forward pass of `sample` once and replay it from then on: the same numbers.

    It pays for few images at a time, when every batch is of one size: a recording belongs to the shapes it was made
    with and keeps the memory of one pass. Weights are read where they lie: move, cast or compile before, not after.

    Raises:
        UserError: the generators are not on a GPU.
    """
    device = content.start_canvas.device
    if device.type != "cuda":
        raise UserError(f"the generators are on {device.type}; expected cuda: only a GPU has CUDA graphs, go without")
    replay_passes(content, structure)


def replay_passes(content: ContentGenerator, structure: StructureGenerator | None) -> None:
    """As `capture_passes`, wherever `_record` can record."""
    paint = _Replayed(content.forward)

    def forward(
        canvas_NLC: Tensor, structure_NL: Tensor, stage_N: Tensor, class_N: Tensor, *, noise_NLC: Tensor | None
    ) -> Tensor:
        return paint(canvas_NLC, structure_NL, stage_N, class_N, None, noise_NLC)

    content.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    if structure is None:
        return
    eager_velocity = structure.velocity
    flow = _Replayed(lambda noisy_NLK, time_N, *seen: eager_velocity(noisy_NLK, time_N, FlowCondition(*seen)))

    def velocity(noisy_NLK: Tensor, time_N: Tensor, condition: FlowCondition) -> Tensor:
        return flow(noisy_NLK, time_N, *(getattr(condition, item.name) for item in fields(condition)))

    structure.velocity = velocity  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class _Recording:
    """A pass with the places it reads from and writes to."""

    arguments: list[Tensor | None]
    output: Tensor
    replay: Callable[[], None]


class _Replayed:
    """A pass that is recorded when it first meets arguments of a shape."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run
        self._recordings: dict[tuple[tuple[torch.Size, torch.dtype] | None, ...], _Recording] = {}

    def __call__(self, *arguments: Tensor | None) -> Tensor:
        key = tuple(None if given is None else (given.shape, given.dtype) for given in arguments)
        if key not in self._recordings:
            places = [None if given is None else given.clone() for given in arguments]
            replay, output = _record(lambda: self._run(*places))
            self._recordings[key] = _Recording(places, output, replay)
        found = self._recordings[key]
        for place, given in zip(found.arguments, arguments, strict=True):
            if place is not None and given is not None:
                place.copy_(given)
        found.replay()
        return found.output.clone()  # the next replay writes where this one wrote


def _record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Records a pass: what replays it, and where it leaves its result."""
    cached = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)  # weights cast outside would be gone when the recording reads them
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_NUM_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = run()
    finally:
        torch.set_autocast_cache_enabled(cached)
    return graph.replay, output
