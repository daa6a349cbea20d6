"""The 1,797 handwritten digits bundled with scikit-learn: real images that need no download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.sources.config import SourceConfig
from pipelines.sources.source import SkippedInput
from pipelines.sources.views import make_views

NUM_TRAIN = 1000
NUM_JUDGE = 500
_SPLIT_SEED = 20250  # fixed: nothing may ever train on what it is judged by


class DigitsSource:
    """Digits of 8x8 pixels with values 0..16, scaled to 0..255 and enlarged by a bicubic filter.

    The split (1,000 train, 500 judge, 297 test) is a stratified shuffle with a seed of its own.
    """

    def __init__(self, config: SourceConfig) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        pixels_N88 = np.rint(np.asarray(pixels).reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
        label_N = np.asarray(labels, dtype=np.int64)
        chosen = split_digits(label_N)[config.split]
        self.config = config
        self.class_names = [str(digit) for digit in range(10)]
        self.labels = label_N[chosen]
        self.keys = [f"digits/{index:04d}" for index in chosen]
        self.skipped: list[SkippedInput] = []
        self.num_found = len(chosen)
        self._pixels_N88 = pixels_N88[chosen]
        self.fingerprint = hashlib.sha256(
            chosen.astype("<i8").tobytes() + self._pixels_N88.tobytes() + self.labels.astype("<i8").tobytes()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, view: int) -> np.ndarray:
        """Return one view as uint8 (S, S, channels)."""
        return self.read_views(index, [view])[0]

    def read_views(self, index: int, views: Sequence[int]) -> list[np.ndarray]:
        """Return views of a digit, each uint8 (S, S, channels)."""
        image = Image.fromarray(self._pixels_N88[index])
        if self.config.image_channels == 3:
            image = image.convert("RGB")
        return make_views(
            image, config=self.config, key=self.keys[index], views=views, resample=Image.Resampling.BICUBIC
        )


def split_digits(labels_N: np.ndarray) -> dict[str, np.ndarray]:
    """Divide the digits once and for all.

    Args:
        labels_N: int64 (1797,), the labels in scikit-learn's order.

    Returns:
        Ascending int64 indices of "train", "judge", "test" (disjoint) and "all".
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels_N))
    train, rest = train_test_split(everything, train_size=NUM_TRAIN, stratify=labels_N, random_state=_SPLIT_SEED)
    judge, test = train_test_split(rest, train_size=NUM_JUDGE, stratify=labels_N[rest], random_state=_SPLIT_SEED)
    return {"train": np.sort(train), "judge": np.sort(judge), "test": np.sort(test), "all": everything}
