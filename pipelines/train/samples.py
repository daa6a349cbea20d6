"""Samples of a generator in training: the averaged weights, fixed classes and seed, every stage with its map."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.pictures.paintings import paint_sequences
from eval.pictures.sheets import painting_rows
from nvg.checkpoints import load_network
from nvg.checkpoints.runs import checkpoints_in, generators, newest_valid, require_tokenizer, weights_folder
from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from nvg.networks import Networks
from nvg.records import RecordDataset
from nvg.sampling import Given, SamplingConfig
from nvg.tokenizer import Tokenizer
from pipelines.run_folder import CHECKPOINTS_FOLDER
from pipelines.train.config import SampleSheetConfig

_ROUNDING = "round"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeneratorSheets:
    """Pictures of one generator's samples.

    Attributes:
        network_type, model: the generator in training.
        records: where structure maps come from when there is no partner.
        config: see its class.
    """

    network_type: type[ContentGenerator] | type[StructureGenerator]
    model: Any
    records: RecordDataset
    config: SampleSheetConfig

    def __post_init__(self) -> None:
        if self.network_type is StructureGenerator and not self.config.partner:
            raise UserError(
                "samples.partner is empty; a structure generator needs the content generator's run to paint"
            )
        if not self.config.partner and not len(self.records):
            raise UserError(
                "samples.partner is empty, and the maps of records in data.remote are not at hand: give a structure "
                "generator's run, or leave samples.every_steps out"
            )
        self._networks()

    def _networks(self) -> tuple[Path, Path | None]:
        """Folders of the tokenizer's and the partner's weights; None while the partner has none.

        Raises:
            UserError: they and the records are not of one tokenizer.
        """
        tokenizer, partner = weights_folder("samples.tokenizer", self.config.tokenizer), self._partner_folder()
        made_with = {f"the records in {self.records.folder}": self.records.manifest["tokenizer_hash"]}
        if partner is not None:
            made_with |= generators(partner)
        require_tokenizer("samples.tokenizer", tokenizer, "ema", made_with)
        return tokenizer, partner

    @property
    def every_steps(self) -> int:
        """Steps between two pictures."""
        assert self.config.every_steps is not None
        return self.config.every_steps

    def draw(self, weights: dict[str, Tensor], device: torch.device) -> bytes | None:
        """A PNG file: for each sample its structure maps and under them the canvas after every stage.

        Args:
            weights: state dict of the generator in training.
            device: for all networks.

        Returns:
            The file, or None while the partner has no checkpoint yet, or where the tokenizer is another one by now.
        """
        try:
            tokenizer_folder, partner_folder = self._networks()
        except UserError as error:  # no reason to end a training
            logger.warning("no picture: %s", error)
            return None
        own = self.network_type(self.model).to(device).eval()
        own.load_state_dict(weights)
        partner = None
        if partner_folder is not None:
            partner = load_network(self._partner_type, partner_folder).to(device)
        if isinstance(own, ContentGenerator):
            content, structure = own, partner
        elif isinstance(partner, ContentGenerator):
            content, structure = partner, own
        else:
            return None
        assert structure is None or isinstance(structure, StructureGenerator)
        tokenizer = load_network(Tokenizer, tokenizer_folder).to(device)
        num_images, num_classes = self.config.num_images, content.config.num_classes
        labels_B = torch.arange(num_images) * max(1, num_classes // num_images) % num_classes
        networks = Networks(tokenizer=tokenizer, content=content, structure=structure, sampling=SamplingConfig())
        drawn = networks.draw(
            labels_B,
            torch.arange(num_images),
            seed=self.config.seed,
            given=None if structure is not None else self._given(labels_B),
        )
        paintings = paint_sequences(tokenizer, drawn, labels_B, _ROUNDING, count=num_images)
        return painting_rows(paintings).light

    @property
    def _partner_type(self) -> type[ContentGenerator] | type[StructureGenerator]:
        return StructureGenerator if self.network_type is ContentGenerator else ContentGenerator

    def _partner_folder(self) -> Path | None:
        if not self.config.partner:
            return None
        checkpoints = Path(self.config.partner) / CHECKPOINTS_FOLDER
        if not Path(self.config.partner).is_dir() or (checkpoints.is_dir() and not checkpoints_in(checkpoints)):
            return None  # trained beside this one, and not that far
        if checkpoints.is_dir() and newest_valid(checkpoints, logger.warning) is None:
            return None
        return weights_folder("samples.partner", self.config.partner)

    def _given(self, labels_B: Tensor) -> Given:
        """The maps of the first record of each class, or of any record where a class has none."""
        rows = [int(np.argmax(np.asarray(self.records.label) == label)) for label in labels_B.tolist()]
        structure_BL = torch.from_numpy(self.records.batch(rows)["structure"])
        return Given(structure_BL=structure_BL, num_splits=structure_BL.shape[1].bit_length() - 1)
