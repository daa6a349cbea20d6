"""Reference statistics on disk: what FID, sFID, precision and recall compare with.

ADM's files hold `mu`, `sigma` (pool features of the whole training set), `mu_s`, `sigma_s` (spatial features) and
`arr_0` (10,000 images, for precision and recall). Those of `nvg eval reference` hold the same statistics, `pool_3`
(the pool features of up to 10,000 images, so that none has to be looked at again), `facts` (how they were made, as
JSON) and, where asked for, `arr_0`, so that ADM's evaluator reads them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.features.extractors import ExtractorSpec
from eval.features.inception import INCEPTION, NUM_POOL_FEATURES, NUM_SPATIAL_FEATURES
from eval.image_files import IMAGES_KEY, NpzImages, file_hash, npz_names, read_npz_array, write_npz
from eval.pixels import ImageArray
from eval.scores.frechet import Gaussian
from nvg.errors import UserError

NUM_MANIFOLD_IMAGES = 10_000
SELECTION_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What generated images are compared with.

    Attributes:
        path: the file.
        sha256: its hash.
        pool: statistics of the pool features; None where they have to be computed from `images`.
        spatial: statistics of the spatial features; None leaves sFID out.
        features_MF: pool features of real images for precision and recall; None has them computed from `images`.
        images: real images, where the file holds some.
        facts: how the file was made, as far as it says.
    """

    path: str
    sha256: str
    pool: Gaussian | None
    spatial: Gaussian | None
    features_MF: NDArray[np.float32] | None
    images: NpzImages | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the reference images, where the file says so."""
        if self.images is not None:
            return self.images.images.shape[1], self.images.images.shape[2]
        size = self.facts.get("image_size")
        return None if size is None else (size, size)

    def check_size(self, height: int, width: int) -> None:
        """Refuse samples of another resolution.

        Raises:
            UserError: names both sizes.
        """
        if self.image_size not in (None, (height, width)):
            found = "×".join(map(str, self.image_size or ()))
            raise UserError(
                f"reference: {self.path} was made from images of {found} pixels, the samples have {height}×{width}; "
                "give the reference of their resolution"
            )


def select_rows(num_images: int) -> NDArray[np.int64]:
    """Which images stand for the real manifold: at most 10,000, drawn once with a fixed seed, in order."""
    order = np.random.default_rng(SELECTION_SEED).permutation(num_images)
    return np.sort(order[:NUM_MANIFOLD_IMAGES])


def write_reference(
    path: Path,
    *,
    pool: Gaussian,
    spatial: Gaussian | None,
    features_MF: NDArray[np.float32],
    facts: dict[str, Any],
    images: tuple[int, Iterable[ImageArray]] | None = None,
) -> None:
    """Write a reference file.

    Args:
        path: the npz file.
        pool: statistics of the pool features of all images.
        spatial: of their spatial features, where the extractor has them.
        features_MF: pool features of the images of `select_rows`.
        facts: how they were made, as JSON values: extractor, image_size, count, source.
        images: count and blocks of these images; None leaves `arr_0` out.
    """
    arrays: dict[str, NDArray[Any]] = {"mu": pool.mean_F, "sigma": pool.covariance_FF}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean_F, "sigma_s": spatial.covariance_FF}
    text = np.array(json.dumps(facts, sort_keys=True, allow_nan=False))
    write_npz(path, {**arrays, "pool_3": features_MF, "facts": text}, images)


def read_reference(path: str, extractor: ExtractorSpec) -> Reference:
    """Read a reference file and make sure that it belongs to the extractor.

    Args:
        path: an npz file of ADM's or of `nvg eval reference`.
        extractor: what the features of the samples come from.

    Returns:
        The reference; `mu` wins over `arr_0`, as in ADM's evaluator.

    Raises:
        UserError: the file is missing, cut off, holds neither statistics nor images, or features of another extractor.
    """
    if not Path(path).is_file():
        raise UserError(
            f"reference: found no file {path}, expected statistics such as ADM's VIRTUAL_imagenet256_labeled.npz (in "
            "the README of guided-diffusion's evaluations) or a file of `nvg eval reference`; set reference"
        )
    names = npz_names(path)
    if not {"mu", IMAGES_KEY} & set(names):
        raise UserError(f"reference: found {', '.join(names) or 'nothing'} in {path}, expected mu and sigma, or arr_0")
    facts = json.loads(str(read_npz_array(path, "facts"))) if "facts" in names else {}
    made_with = facts.get("extractor", {}).get("sha256")
    if made_with not in (None, extractor.weights_hash()):
        raise UserError(
            f"reference: {path} was made with the extractor {made_with[:12]}…, the samples are looked at with "
            f"{extractor.weights_hash()[:12]}… ({extractor.path}); give the extractor it was made with"
        )
    pool = _gaussian(path, names, "mu", "sigma", NUM_POOL_FEATURES if extractor.kind == INCEPTION else None)
    spatial = None
    if extractor.kind == INCEPTION:
        spatial = _gaussian(path, names, "mu_s", "sigma_s", NUM_SPATIAL_FEATURES)
    return Reference(
        path=path,
        sha256=file_hash(path),
        pool=pool,
        spatial=spatial,
        features_MF=np.asarray(read_npz_array(path, "pool_3"), np.float32) if "pool_3" in names else None,
        images=NpzImages(path) if IMAGES_KEY in names else None,
        facts=facts,
    )


def _gaussian(path: str, names: list[str], mean: str, covariance: str, width: int | None) -> Gaussian | None:
    if mean not in names:
        return None
    pair = [np.array(read_npz_array(path, name), dtype=np.float64) for name in (mean, covariance)]
    width = pair[0].size if width is None else width
    if pair[0].shape != (width,) or pair[1].shape != (width, width):
        raise UserError(
            f"reference: found {mean} of {pair[0].shape} and {covariance} of {pair[1].shape} in {path}, expected "
            f"({width},) and ({width}, {width}) as this extractor gives them; give the reference of the extractor"
        )
    if not all(np.isfinite(array).all() for array in pair):
        raise UserError(f"reference: found values in {mean} or {covariance} of {path} that are not finite")
    return Gaussian(*pair)
