"""What a tokenizer makes of images: the pool job behind `nvg eval tokenizer`.

Every number is taken between bytes: the image as it is stored and its reconstruction, rounded.
Shapes: images_BHWC uint8, content_ids_BT int32 (T = 2L - 1), features float32, scores float64 (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.scores.metrics import peak_signal_to_noise
from nvg.checkpoints import file_hash, load_perceptual_distance
from nvg.errors import UserError
from nvg.pixels import ImageArray, to_model_range, to_uint8
from nvg.precision import without_tf32
from nvg.tokenizer import PerceptualDistance, Tokenizer

_LEAST_SIDES = {"vgg": 16, "alex": 31}  # below these a pooling layer has nothing left


@torch.inference_mode()
def reconstruct_with_ids(
    tokenizer: Tokenizer, images_BHWC: ImageArray, rounding: str
) -> tuple[NDArray[np.int32], ImageArray]:
    """Send images through the tokenizer and back.

    Args:
        tokenizer: in evaluation mode.
        images_BHWC: uint8 images of its size.
        rounding: see `nvg.pixels.to_uint8`.

    Returns:
        content_ids int32 (B, 2L - 1), stages in order, and the uint8 reconstructions.

    Raises:
        UserError: images of another size.
    """
    images = to_model_range(images_BHWC).to(tokenizer.dequantizer.codebook.device)
    ids_BT, structure_BL = tokenizer.tokenize(images)
    final_BLC = tokenizer.dequantizer.canvases(ids_BT, structure_BL)[:, -1]
    return ids_BT.cpu().numpy().astype(np.int32), to_uint8(tokenizer.decode(final_BLC), rounding)


@torch.inference_mode()
def pair_scores(
    images_BHWC: ImageArray, copies_BHWC: ImageArray, distances: Mapping[str, PerceptualDistance]
) -> dict[str, NDArray[Any]]:
    """PSNR, SSIM and LPIPS of each image and its reconstruction.

    Args:
        images_BHWC: uint8 originals.
        copies_BHWC: uint8 reconstructions.
        distances: trunk to LPIPS network.

    Returns:
        `psnr_B` (dB, peak 255), `ssim_B` (torchmetrics: Gaussian of deviation 1.5, range 255) and `lpips_<trunk>_B`.
    """
    # Brings transformers and matplotlib along, which a worker that draws samples has no use for.
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = [to_model_range(images) for images in (copies_BHWC, images_BHWC)]
    found, expected = (torch.from_numpy(each).permute(0, 3, 1, 2).double() for each in (copies_BHWC, images_BHWC))
    ssim_B = structural_similarity_index_measure(found, expected, data_range=255.0, reduction="none")
    assert isinstance(ssim_B, torch.Tensor)
    scores = {"psnr_B": peak_signal_to_noise(copies_BHWC, images_BHWC), "ssim_B": ssim_B.numpy()}
    for trunk, network in distances.items():
        device = next(network.parameters()).device
        with without_tf32():
            distance_B = network(*(images.to(device) for images in pair))
        scores[f"lpips_{trunk}_B"] = distance_B.double().cpu().numpy()
    return scores


def load_lpips(files: Mapping[str, str]) -> dict[str, PerceptualDistance]:
    """LPIPS networks from the files of their trunks.

    Args:
        files: trunk to file.

    Raises:
        UserError: a file is missing, damaged or of another network; names the key `<trunk>_weights`.
    """
    return {trunk: load_perceptual_distance(files[trunk], trunk, key=f"{trunk}_weights") for trunk in sorted(files)}


def check_lpips(files: Mapping[str, str], side: int) -> None:
    """Refuse files that cannot be used, before anything is computed.

    Args:
        files: trunk to file.
        side: of the images, pixels.

    Raises:
        UserError: a file is missing, damaged or of another network, or the images are too small for its network.
    """
    for trunk, path in files.items():
        lpips_hash(trunk, path)
        if side < _LEAST_SIDES[trunk]:
            raise UserError(
                f"{trunk}_weights: found images of {side} pixels, LPIPS with this network expects at least "
                f"{_LEAST_SIDES[trunk]}; leave {trunk}_weights empty"
            )
    load_lpips(files)


def lpips_hash(trunk: str, path: str) -> str:
    """SHA-256 of a trunk's file as hex, or a UserError where it is missing."""
    if not Path(path).is_file():
        raise UserError(f"{trunk}_weights: found no file {path}, expected the weights of LPIPS's trunk, or nothing")
    return file_hash(path)
