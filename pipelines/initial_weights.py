"""Fine-tuning: a new training begins with the weights of another one, or with imported ones."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from nvg.checkpoints.networks import check_fit, read_network
from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from pipelines.checkpoints import weights_folder

logger = logging.getLogger(__name__)
KEY = "init_from"
CLASS_EMBEDDING = "class_embedding.weight"
MEASURED = "canvas_scales"
FREE = {"num_classes", MEASURED, "drop_path_rate"}  # the rest says what the weights mean


def begin_with(network: ContentGenerator | StructureGenerator, path: str) -> None:
    """Fill a new network; the class embedding stays new where the number of classes differs.

    Averaged weights are taken where there are any. The canvas scales stay those of the new run's records.

    Args:
        network: freshly initialised.
        path: a run folder, a checkpoint, or a folder of (imported) weights.

    Raises:
        UserError: nothing usable is there, or it is another architecture.
    """
    folder = weights_folder(KEY, path)
    name = "ema" if (folder / "ema.safetensors").is_file() else "model"
    found, tensors = read_network(type(network), folder, name)
    wanted = asdict(network.config)
    differences = [
        f"{key}: {value!r} there, {wanted[key]!r} here"
        for key, value in asdict(found).items()
        if key not in FREE and value != wanted[key]
    ]
    if differences:
        raise UserError(
            f"{KEY}: the weights in {folder} are of another architecture:\n  "
            + "\n  ".join(differences)
            + "\nset these as they are there, or leave init_from out"
        )
    own = network.state_dict()
    if found.num_classes != network.config.num_classes:
        tensors[CLASS_EMBEDDING] = own[CLASS_EMBEDDING]
        logger.warning(
            "%s: %s was trained on %d classes, this run has %d: the class embedding begins anew, the rest is taken",
            KEY,
            folder,
            found.num_classes,
            network.config.num_classes,
        )
    if MEASURED in own:
        tensors[MEASURED] = own[MEASURED]
    check_fit(tensors, network, f"{folder}/{name}.safetensors")
    network.load_state_dict(tensors)


def is_new(run_folder: Path) -> bool:
    """Whether a run has no checkpoint yet, so that its first weights matter."""
    return not any((run_folder / "checkpoints").glob("step-*"))
