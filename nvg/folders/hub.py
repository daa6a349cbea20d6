"""Exported folders on the Hugging Face hub, through the installed `huggingface_hub`.

JSON, safetensors and the model card are fetched, never a pickle. Where the hub is, and which token is sent, the library
reads from its own settings (`HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from nvg.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FETCHED = ["*.json", "*.safetensors", "README.md"]


def may_be_id(text: str) -> bool:
    """Whether a text could name a repository: `owner/name` or `name`."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def download(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch an exported model into the library's cache, or take it from there.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; None is the newest.
        token: of one's account, for private repositories; None takes the one the library knows.

    Returns:
        Its folder.

    Raises:
        UserError: the library is not installed, the hub cannot be reached, or has no such repository or revision.
    """
    hub = _library(f"load {repo_id}")
    with _explained(hub, repo_id, revision):
        return Path(
            hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=_FETCHED, library_name="nvg")
        )


def upload(folder: Path, repo_id: str, *, private: bool, token: str | None = None) -> str:
    """Put an exported folder into a repository, which is made where there is none.

    Args:
        folder: see `nvg.folders.export`.
        repo_id: `owner/name`.
        private: of a new repository; one that is there stays as it is.
        token: with the right to write; None takes the one the library knows.

    Returns:
        URL of the commit.

    Raises:
        UserError: the library is not installed, there is no token, or the hub refuses or cannot be reached.
    """
    hub = _library(f"push to {repo_id}")
    if token is None and hub.get_token() is None:
        raise UserError(
            f"push_to_hub: found no token to write to {repo_id} with; expected token=, the variable HF_TOKEN, or an "
            "earlier `hf auth login`; make one with the right to write in the hub's settings"
        )
    with _explained(hub, repo_id, None):
        api = hub.HfApi(token=token, library_name="nvg")
        api.create_repo(repo_id, private=private, exist_ok=True)
        # What an earlier push left must not lie among the files of this one.
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=_FETCHED,
            delete_patterns=_FETCHED,
            commit_message="An NVG model",
        )
    return commit.commit_url


def _library(what: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors  # neither is there before it is imported
    except ImportError:
        raise UserError(
            f"huggingface_hub is not installed, which is needed to {what}; `pip install huggingface_hub`, or give a "
            "folder"
        ) from None
    return huggingface_hub


@contextmanager
def _explained(hub: ModuleType, repo_id: str, revision: str | None) -> Iterator[None]:
    """What the library raises, as one message for people."""
    errors: Any = hub.errors
    where = hub.constants.ENDPOINT
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a repository ({error}); expected owner/name") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repo_id} on {where} is open to those alone whom its owner admits; ask there, then give token="
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo_id} on {where} has no revision {revision!r}; change revision") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{where} shows no repository {repo_id}; check the name; if it is private, give token= or HF_TOKEN "
            "with the right to read it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(where, repo_id, error) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = " ".join(str(error).split())
        advice = "give a token with the right to do it" if status in (401, 403) else "try again later"
        raise UserError(f"{where} refuses ({status}) what was asked about {repo_id}: {said}; {advice}") from error
    except (OSError, TimeoutError) as error:  # requests' errors are of the first kind
        raise _unreachable(where, repo_id, error) from error


def _unreachable(where: str, repo_id: str, error: Exception) -> UserError:
    return UserError(
        f"{where} cannot be reached for {repo_id}, of which there is no copy here ({type(error).__name__}); check the "
        "connection and HF_ENDPOINT, or give a folder"
    )
