"""Counter-based random numbers: a value depends on what it is for, never on who draws it or in which order.

Philox with key (seed, index) and counter (block, 0, purpose, step), drawn on the CPU, so that any device, any number
of workers and any batch split see the same numbers. A block is four values: the counter leads to any of them at once,
so rows of a large draw cost what they are, not what lies before them.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from nvg.errors import UserError

EVERY_ROW = slice(None)
_BLOCK = 4  # values of a counter
_FAR_APART = 4096  # values between two rows that are drawn one by one, not with what lies between


class Purpose(IntEnum):
    """What a stream of numbers is for; part of the counter, so streams never overlap. Values are frozen."""

    TOKEN = 1
    FLOW_NOISE = 2
    SPLIT = 3
    TOKEN_SHARED = 4
    TOKEN_OWN = 5
    TRAIN_STAGES = 16
    TRAIN_CLASS_DROPOUT = 17
    TRAIN_DROP_PATH = 18
    TRAIN_TIME = 19
    TRAIN_NOISE = 20
    CANVAS_NOISE = 40
    TRAIN_CANVAS_NOISE = 41
    TRAIN_AUGMENT = 42
    TRAIN_CROP = 43
    TRAIN_REVIVAL = 44
    DATA_CROP = 45
    DATA_ORDER = 46
    DATA_VIEW = 47
    TRAIN_MISTAKES = 48
    TRAIN_MISTAKE_SIZE = 49
    TRAIN_FOREIGN_REGION = 50


def uniforms(
    seed: int, index: int, purpose: Purpose, step: int, shape: tuple[int, ...], rows: slice = EVERY_ROW
) -> Tensor:
    """Float64 uniforms in [0, 1) for (seed, index, purpose, step).

    Args:
        seed, index: key of the stream, e.g. run seed and sample index; 0 <= value < 2^63.
        purpose: what the numbers are for.
        step: e.g. the stage or the training step.
        shape: of the whole draw.
        rows: of its first dimension; the result is `whole[rows]` to the bit, and no other row is drawn.

    Raises:
        UserError: the seed is out of range.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}; a seed is an integer from 0 to 2^63 - 1")
    places, width = range(shape[0])[rows], math.prod(shape[1:])
    distance = places.step * width

    def values(first: int, count: int) -> np.ndarray:
        block, before = divmod(first, _BLOCK)
        philox = np.random.Philox(key=[seed, index], counter=[block, 0, int(purpose), step])
        return philox.random_raw(before + count)[before:]

    if not places:
        raw = np.empty(0, np.uint64)
    elif places.step == 1 or 0 < distance <= _FAR_APART:
        span = values(places[0] * width, (places[-1] - places[0] + 1) * width)
        raw = span.reshape(-1, width)[:: places.step]
    else:
        raw = np.concatenate([values(place * width, width) for place in places])
    return torch.from_numpy((raw >> np.uint64(11)) * 2.0**-53).reshape(len(places), *shape[1:])


def normals(
    seed: int, index: int, purpose: Purpose, step: int, shape: tuple[int, ...], rows: slice = EVERY_ROW
) -> Tensor:
    """Float32 standard normals for (seed, index, purpose, step), by the inverse CDF of `uniforms`."""
    uniform = uniforms(seed, index, purpose, step, shape, rows)
    return torch.special.ndtri(uniform + 2.0**-54).float()


def permutation(seed: int, index: int, purpose: Purpose, step: int, length: int) -> Tensor:
    """A random order of 0..length-1 as int64, from the ranks of uniforms."""
    return uniforms(seed, index, purpose, step, (length,)).argsort(stable=True)


class IndexOrder:
    """A random order of 0..length-1 of which any part is computed alone, without an array of all of it.

    A Feistel network permutes the numbers of as many bits as the last one needs; what falls outside goes through again
    until it is inside. Round keys are those of (seed, epoch), so an order needs no memory and nothing is stored to go
    on with it.

    Args:
        seed: 0 <= seed < 2^63.
        epoch: 0 or more.
        length: of the order, 1 to 2^62.
    """

    _ROUNDS = 8  # four give what a statistic cannot tell from random; the rest costs a few nanoseconds a number

    def __init__(self, seed: int, epoch: int, length: int) -> None:
        if not 1 <= length <= 1 << 62:
            raise UserError(f"the length of an order is {length}; expected 1 to 2^62")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed is {seed}; a seed is an integer from 0 to 2^63 - 1")
        self.length = length
        half = max(1, -(-(length - 1).bit_length() // 2))  # bits of a half
        self._shift, self._mask = np.uint64(half), np.uint64((1 << half) - 1)
        philox = np.random.Philox(key=[seed, epoch], counter=[0, 0, int(Purpose.DATA_ORDER), 0])
        self._keys = philox.random_raw(self._ROUNDS)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """What stands at these places, int64; each place of 0..length-1 has another number."""
        numbers = self._permuted(np.asarray(places, np.uint64))
        while (outside := np.flatnonzero(numbers >= self.length)).size:
            numbers[outside] = self._permuted(numbers[outside])
        return numbers.astype(np.int64)

    def _permuted(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._shift, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._shift) | right


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each bit depends on all bits: the finaliser of SplitMix64, uint64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def picks(seed: int, epoch: int, numbers: np.ndarray, choices: int) -> np.ndarray:
    """One of 0..choices-1 for each number, int64, drawn by (seed, epoch, number) alone."""
    key = np.random.Philox(key=[seed, epoch], counter=[0, 0, int(Purpose.DATA_VIEW), 0]).random_raw(1)
    return (_mixed(_mixed(np.asarray(numbers, np.uint64)) ^ key) % np.uint64(choices)).astype(np.int64)


def per_sample_uniforms(seed: int, indices_B: Tensor, purpose: Purpose, step: int, shape: tuple[int, ...]) -> Tensor:
    """Stacks `uniforms` over sample indices: float64 (B, *shape)."""
    return torch.stack([uniforms(seed, index, purpose, step, shape) for index in indices_B.tolist()])


def per_sample_normals(seed: int, indices_B: Tensor, purpose: Purpose, step: int, shape: tuple[int, ...]) -> Tensor:
    """Stacks `normals` over sample indices: float32 (B, *shape)."""
    return torch.stack([normals(seed, index, purpose, step, shape) for index in indices_B.tolist()])
