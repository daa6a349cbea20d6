"""Models in folders; one enters by `find_model`.

run     a run folder: its networks, what it was trained on, the settings that scored it: `find_run`
export  a folder to be handed on, with `model.json`: `write_export`, `find_export`
card    its model card
hub     such folders on the Hugging Face hub
"""

from __future__ import annotations

from pathlib import Path

from nvg.errors import UserError
from nvg.folders import hub
from nvg.folders.export import MODEL_FILE, find_export, write_export
from nvg.folders.run import Parts, Settings, Weights, cut_of, find_run, scored_settings

__all__ = [
    "MODEL_FILE",
    "Parts",
    "Settings",
    "Weights",
    "cut_of",
    "find_export",
    "find_model",
    "find_run",
    "scored_settings",
    "write_export",
]


def find_model(
    where: str | Path,
    *,
    weights: Weights = "ema",
    evaluation: str | None = None,
    scored: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[Parts, Settings | None]:
    """The networks of a run folder, an exported folder or a repository of the hub, and how they are sampled.

    Args:
        where: a folder, or `owner/name` where there is no such folder.
        weights: which weights of a run's generators; an export holds one kind.
        evaluation: folder of the evaluation whose settings are taken, where those of a run differ.
        scored: False does not look for settings in a run, whose caller has others.
        revision, token: of a repository.

    Raises:
        UserError: there is nothing of the kind, or its files are missing, damaged or of different models.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        if folder.exists() or not hub.may_be_id(str(where)):
            raise UserError(f"{where} is no folder; expected a run, an exported model, or owner/name on the hub")
        try:
            folder = hub.download(str(where), revision=revision, token=token)
        except UserError as error:
            raise UserError(f"found no folder {folder.absolute()}, and {error}") from error
        if not (folder / MODEL_FILE).is_file():
            raise UserError(f"{where} holds no {MODEL_FILE}: it is no NVG model; expected what `push_to_hub` writes")
    if (folder / MODEL_FILE).is_file():
        return find_export(folder)
    if not (folder / "content").exists() and not (folder / "tokenizer").exists():
        raise UserError(
            f"{folder.absolute()} holds neither {MODEL_FILE}, as an exported model does, nor content and tokenizer, as "
            "a run does; give another folder, or export the model again"
        )
    parts = find_run(folder, weights)
    return parts, scored_settings(parts, evaluation) if scored else None
