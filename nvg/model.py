"""One object for the whole model: pictures in, sequences and samples out, as plain arrays.

    import nvg
    model = nvg.load("runs/demo")
    drawn = model.sample(["3", 7], per_class=4, seed=0)

The networks beneath, which evaluations and trainings draw from too, are in `nvg.networks`.
Legend: B samples, S = K + 1 stages, L positions, C latent channels.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvg.bounds import refuse
from nvg.class_names import labels_of, number_samples
from nvg.errors import UserError
from nvg.folders import Settings, find_model, hub, write_export
from nvg.folders.run import Weights
from nvg.networks import Networks, load_networks
from nvg.pictures import Cut, cut_picture
from nvg.pixels import to_model_range
from nvg.precision import Device, Precision, resolve_device, resolve_precision
from nvg.sampling import SamplingConfig, Watch
from nvg.sampling.following import Control, follow, follow_region
from nvg.sequences import Samples, Sequences, sequences_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model(Networks):
    """The networks of a run, and what is known of them: classes by name, how pictures are cut, what has scored them.

    Attributes:
        class_names: by label.
        sampling: guidance, top-p, flow steps; those the run was scored with, where `scored_by` names an evaluation.
        cut: how pictures are cut to the tokenizer's square, see `nvg.pictures.cut_picture`.
        scored_by: folder name of the evaluation that scored these weights with these settings; None where none has.
        notices: what was said at loading: licences of imported weights, and settings that nothing has scored.
    """

    class_names: list[str]
    cut: Cut = "center"
    scored_by: str | None = None
    notices: list[str] = field(default_factory=list)
    _settings: Settings | None = None

    def __repr__(self) -> str:
        config, scored = self.tokenizer.config, f"scored by {self.scored_by}" if self.scored_by else "unscored"
        colour = "grey" if config.image_channels == 1 else "colour"
        size = f"{config.image_size}×{config.image_size} {colour}"
        return (
            f"<nvg.Model: {len(self.class_names)} classes, {size}, {self.num_stages} stages, {scored}, {self.device}>"
        )

    @classmethod
    def from_pretrained(cls, where: str | Path, **options: Any) -> Model:
        """The same as `load`, under the name that others give it."""
        return load(where, **options)

    def sample(
        self,
        classes: str | int | Sequence[str | int] | None = None,
        *,
        per_class: int = 1,
        seed: int = 0,
        settings: SamplingConfig | None = None,
        structure_from: Any = None,
        structure_mask: Any = None,
        structure_labels: Any = None,
        fix_content_from: Any = None,
        stages: int | None = None,
        mask_foreground: int = 1,
        cut: Cut | None = None,
    ) -> Samples:
        """Draw images of chosen classes. The same class, number and seed give the image of `nvg sample`.

        At most one of the four arguments that follow `settings` gives what the samples follow; the rest is drawn.

        Args:
            classes: a text is the name of a class, a number its label; one or several; None draws all. A class that is
                named twice goes on with other images.
            per_class: images of each class named.
            seed: of all samples.
            settings: guidance, top-p, flow steps; None takes `sampling`.
            structure_from: picture whose structure maps are given, uint8 (H, W[, C]) of any size or a picture of
                Pillow; or a finest map, int64 with L entries.
            structure_mask: square drawn mask, numbers (H, W) whose highest value is foreground, or a picture.
            structure_labels: segmentation, integers (H, W), one value for each label.
            fix_content_from: picture whose contents of stages 0..M-1 are given, with its structure up to stage M.
            stages: M. Of structure_from the first M splits (default: all), of structure_mask likewise (default: 1), of
                structure_labels likewise (default: as many as tell the labels apart), of fix_content_from as said.
            mask_foreground: child of the first split that the mask's foreground becomes, 0 or 1.
            cut: of pictures and segmentations to the tokenizer's square; None cuts as the training images were.

        Raises:
            UserError: there is no such class, or what is given cannot be used.

        Paper: Alg. 2, §3.2
        """
        given = follow(
            self.tokenizer,
            structure_from=structure_from,
            structure_mask=structure_mask,
            structure_labels=structure_labels,
            fix_content_from=fix_content_from,
            stages=stages,
            mask_foreground=mask_foreground,
            cut=cut or self.cut,
        )
        return self.follow(given, classes, per_class=per_class, seed=seed, settings=settings)

    def edit(
        self,
        picture: Any,
        *,
        keep: Any,
        classes: str | int | Sequence[str | int] | None = None,
        per_class: int = 1,
        seed: int = 0,
        settings: SamplingConfig | None = None,
        cut: Cut | None = None,
    ) -> Samples:
        """Keep a region of a picture and draw the rest of it anew, as images of chosen classes.

        Outside the mask every canvas is the picture's own; a position of the latent grid is kept where all of its
        pixels are. What is kept and what is generated meet in the decoder, so that pixels near the border may change.
        The canvases show an edit: of a cluster that straddles the border, the content id tells what is painted inside.

        Args:
            picture: uint8 (H, W[, C]) of any size, or a picture of Pillow.
            keep: mask over it in the same proportions, true or white where the picture is kept: true and false or
                numbers (H, W), or a picture.
            classes, per_class, seed, settings: as of `sample`.
            cut: of picture and mask to the tokenizer's square; None cuts as the training images were.

        Raises:
            UserError: there is no such class, or picture or mask cannot be used: one colour, all kept, nothing kept.

        Paper: Alg. 2, §3.2
        """
        given = follow_region(self.tokenizer, picture, keep, cut=cut or self.cut, names=("picture", "keep"))
        return self.follow(given, classes, per_class=per_class, seed=seed, settings=settings)

    def follow(
        self,
        control: Control | None,
        classes: str | int | Sequence[str | int] | None = None,
        *,
        per_class: int = 1,
        seed: int = 0,
        settings: SamplingConfig | None = None,
        watch: Watch | None = None,
    ) -> Samples:
        """Draw images that follow what is given already as tensors.

        Args:
            control: of `nvg.sampling.following`; None follows nothing.
            classes, per_class, seed, settings: as of `sample`.
            watch: sees copies of canvas and map after every stage, see `nvg.sampling.sample`.

        Raises:
            UserError: there is no such class.

        Paper: Alg. 2, §3.2
        """
        labels = labels_of(classes, self.class_names)
        if index(per_class) < 1:
            raise refuse("per_class", per_class, "1 or more")
        if index(seed) < 0:
            raise refuse("seed", seed, "0 or more")
        labels_B, _, indices_B = number_samples(labels, per_class, len(self.class_names))
        with torch.inference_mode():
            drawn = self.draw(
                torch.from_numpy(labels_B),
                torch.from_numpy(indices_B),
                seed=seed,
                settings=settings,
                given=None if control is None else control.for_samples(len(labels_B)),
                watch=watch,
            )
            images = self.decode(drawn.canvases_BSLC[:, -1], indices_B)
        return Samples(
            **sequences_of(drawn.content_ids_BT, drawn.structure_BL, drawn.canvases_BSLC),
            decoder=self.decode,
            images=images,
            labels=labels_B,
            indices=indices_B,
            class_names=self.class_names,
            per_class=per_class,
        )

    def encode(self, pictures: Any, *, cut: Cut | None = None) -> Sequences:
        """Visual granularity sequences of pictures.

        Args:
            pictures: one picture, uint8 (H, W[, C]) of any size or a picture of Pillow, or a list of such.
            cut: to the tokenizer's square; None cuts as the training images were.

        Raises:
            UserError: one is no picture, or cannot be cut so.

        Paper: Alg. 1 lines 1, 9
        """
        several = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
        if not several:
            raise refuse("pictures", pictures, "at least one picture")
        size, channels = self.tokenizer.config.image_size, self.tokenizer.config.image_channels
        images_BHWC = np.stack([cut_picture(picture, size, channels, cut or self.cut) for picture in several])
        with torch.inference_mode():
            ids_BT, structure_BL = self.tokenizer.tokenize(to_model_range(images_BHWC).to(self.device))
            canvases_BSLC = self.tokenizer.dequantizer.canvases(ids_BT, structure_BL)
        return Sequences(**sequences_of(ids_BT, structure_BL, canvases_BSLC), decoder=self.decode)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model into a folder of its own, with a model card; `load` reads it again, with the same samples.

        Args:
            folder: empty or missing, or an earlier export, whose files are replaced.

        Raises:
            UserError: the folder holds something else, or the model was put together in memory.
        """
        if self.parts is None:
            raise UserError("this model was put together in memory; expected one of nvg.load, whose files are copied")
        settings = self._settings
        if settings is None or settings.sampling != self.sampling:  # a user's own: nothing has scored these
            settings = Settings(sampling=self.sampling)
        return write_export(Path(folder), self.parts, settings)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Put the model into a repository of the Hugging Face hub, as `save_pretrained` writes it.

        Args:
            repo_id: `owner/name`; made where there is none.
            private: of a new repository; one that is there stays as it is.
            token: with the right to write; None takes the one `huggingface_hub` knows.

        Returns:
            URL of the commit.

        Raises:
            UserError: `huggingface_hub` is not installed, there is no token, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            return hub.upload(self.save_pretrained(Path(folder) / "model"), repo_id, private=private, token=token)


def load(
    where: str | Path,
    *,
    settings: str | SamplingConfig | None = None,
    weights: Weights = "ema",
    device: Device = "auto",
    precision: Precision | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Model:
    """A model from a run folder, an exported folder, or a repository of the Hugging Face hub.

    It needs PyTorch alone. Licences of imported weights, and settings that nothing has scored, are logged as warnings.

    Args:
        where: a folder, or `owner/name` where there is no such folder.
        settings: how it is sampled; a text names one of the run's evaluations, by its folder. None takes the settings
            that the weights were scored with, or the defaults where nothing has scored them.
        weights: which weights of a run's generators, "ema" or "model".
        device: "auto" takes a GPU where there is one.
        precision: "bf16", "tf32" or "fp32"; None is bf16 on a GPU and fp32 on a CPU.
        revision, token: of a repository.

    Raises:
        UserError: there is no model, parts are missing or damaged or do not belong together, or evaluations differ.
    """
    place = resolve_device(device)
    own = settings if isinstance(settings, SamplingConfig) else None
    name = settings if isinstance(settings, str) else None
    parts, found = find_model(
        where, weights=weights, evaluation=name, scored=own is None, revision=revision, token=token
    )
    chosen = Settings(sampling=own) if own is not None else found
    assert chosen is not None
    notices = [*parts.licences, *([chosen.note] if chosen.note else [])]
    for notice in notices:
        logger.warning("%s", notice)
    networks = load_networks(
        parts, sampling=chosen.sampling, device=place, precision=resolve_precision(precision, place)
    )
    return Model(
        **vars(networks),
        class_names=parts.class_names,
        cut=parts.cut,
        scored_by=chosen.scored_by,
        notices=notices,
        _settings=chosen,
    )
