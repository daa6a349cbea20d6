"""What Ray's dashboard and Prometheus show of a precompute job.

Import this module only inside a cluster session: it imports ray.
"""

from __future__ import annotations

import time

from ray.util.metrics import Counter, Gauge

from pipelines.precompute.pool import PoolEvent

TAG = "dataset"


class PoolMetrics:
    """Images, images a second, skipped inputs and units left, renewed with every event of the pool.

    Args:
        dataset: Name of the output folder, by which jobs are told apart.
        num_units: Units that this run has to encode.
        num_skipped: Inputs skipped before it.
    """

    def __init__(self, dataset: str, num_units: int, num_skipped: int) -> None:
        tags = {TAG: dataset}
        self._images = Counter("nvg_precompute_images", "Images encoded by this run.", (TAG,))
        self._images_per_s = Gauge("nvg_precompute_images_per_s", "Images a second since this run began.", (TAG,))
        self._skipped = Gauge("nvg_precompute_skipped", "Inputs that were no readable image.", (TAG,))
        self._units_left = Gauge("nvg_precompute_units_left", "Units neither finished nor given up.", (TAG,))
        for metric in (self._images, self._images_per_s, self._skipped, self._units_left):
            metric.set_default_tags(tags)
        self._began = time.monotonic()
        self._num_images, self._num_left, self._num_skipped = 0, num_units, num_skipped
        self._show()

    def note(self, event: PoolEvent) -> None:
        """Count an event."""
        if event.kind in ("committed", "failed"):
            self._num_left -= 1
        if event.part is not None:
            num_images = event.part["num_images"]
            self._num_images += num_images
            self._num_skipped += len(event.part["skipped"])
            if num_images:
                self._images.inc(num_images)
        self._show()

    def _show(self) -> None:
        self._images_per_s.set(self._num_images / max(time.monotonic() - self._began, 1e-9))
        self._skipped.set(self._num_skipped)
        self._units_left.set(self._num_left)
