"""The 1,797 handwritten digits bundled with scikit-learn: real images that need no download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.sources.config import SourceConfig
from pipelines.sources.source import ImageSource, SkippedInput
from pipelines.sources.views import make_views

_NUM_TRAIN = 1000
_NUM_JUDGE = 500
_SPLIT_SEED = 20250  # fixed: nothing may ever train on what it is judged by


class DigitsSource(ImageSource):
    """Digits of 8x8 pixels with values 0..16, scaled to 0..255 and enlarged by a bicubic filter.

    The split (1,000 train, 500 judge, 297 test) is a stratified shuffle with a seed of its own.
    """

    def __init__(self, config: SourceConfig) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        pixels_N88 = np.rint(np.asarray(pixels).reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
        label_N = np.asarray(labels, dtype=np.int64)
        chosen = _split_digits(label_N)[config.split]
        self.config = config
        self.class_names = [str(digit) for digit in range(10)]
        self.labels = label_N[chosen]
        self.keys = [f"digits/{index:04d}" for index in chosen]
        self.skipped: list[SkippedInput] = []
        self.num_found = len(chosen)
        self._pixels_N88 = pixels_N88[chosen]
        self.fingerprint = self.sized_fingerprint = hashlib.sha256(
            chosen.astype("<i8").tobytes() + self._pixels_N88.tobytes() + self.labels.astype("<i8").tobytes()
        ).hexdigest()

    def read_bytes(self, index: int) -> bytes:
        """See `ImageSource.read_bytes`; the pixels."""
        return self._pixels_N88[index].tobytes()

    def stamps(self) -> np.ndarray:
        """See `ImageSource.stamps`."""
        return np.zeros(len(self), np.uint64)

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        """See `ImageSource.views_of`."""
        image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(self._pixels_N88[index].shape))
        if self.config.image_channels == 3:
            image = image.convert("RGB")
        return make_views(
            image, config=self.config, key=self.keys[index], views=views, resample=Image.Resampling.BICUBIC
        )


def _split_digits(labels_N: np.ndarray) -> dict[str, np.ndarray]:
    """Ascending indices of "train", "judge", "test" (disjoint) and "all" of the digits in scikit-learn's order."""
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels_N))
    train, rest = train_test_split(everything, train_size=_NUM_TRAIN, stratify=labels_N, random_state=_SPLIT_SEED)
    judge, test = train_test_split(rest, train_size=_NUM_JUDGE, stratify=labels_N[rest], random_state=_SPLIT_SEED)
    return {"train": np.sort(train), "judge": np.sort(judge), "test": np.sort(test), "all": everything}
