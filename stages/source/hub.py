"""Downloading from a Hugging Face hub, at a pinned revision, from the endpoint that `HF_ENDPOINT` names."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Final

from stages.errors import StageError, UserError, first_line
from stages.source.locate import HubReference, nearest

MODEL_FILES: Final = ("*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja", "README.md")
"""What a model is made of; pickled weights and other frameworks' files stay where they are."""
SECOND_COPIES: Final = ("consolidated*.safetensors",)
"""The same weights once more, under names that transformers does not know."""


def endpoint() -> str:
    """The hub's address. Read when called: huggingface_hub reads it once, when it is first imported."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def download_model(reference: HubReference, *, with_code: bool) -> Path:
    """The snapshot directory of a model repository, from the local cache where it is complete.

    Raises UserError for a repository, revision or permission that is missing, StageError when the hub is unreachable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    require_pinned(reference, "model")
    disable_progress_bars()
    try:
        folder = snapshot_download(
            reference.repository,
            revision=reference.revision,
            endpoint=endpoint(),
            allow_patterns=[*MODEL_FILES, *(["*.py"] if with_code else [])],
            ignore_patterns=[*SECOND_COPIES],
        )
    except (LocalEntryNotFoundError, *transport_errors()) as error:
        raise unreachable(reference, error) from error
    except HfHubHTTPError as error:
        raise refused(reference, error) from error
    return Path(folder)


def require_pinned(reference: HubReference, kind: str) -> None:
    """Raise UserError when the revision is a branch of the repository: those move. A commit passes without a call."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if len(reference.revision) == 40 and all(digit in "0123456789abcdef" for digit in reference.revision):
        return
    try:
        refs = HfApi(endpoint=endpoint()).list_repo_refs(reference.repository, repo_type=kind)
    except HfHubHTTPError as error:
        raise refused(reference, error) from error
    except transport_errors() as error:
        raise unreachable(reference, error) from error
    tags = {tag.name: tag.target_commit for tag in refs.tags}
    if reference.revision in tags:
        return
    branch = next((found for found in refs.branches if found.name == reference.revision), None)
    hint = nearest(reference.revision, tags)
    what = "is a branch, which moves" if branch else f"is neither a commit nor a tag{hint}"
    commit = branch.target_commit if branch else "COMMIT"
    raise UserError(f"{reference}: {reference.revision!r} {what}", fix=f"write hub:{reference.repository}@{commit}")


def transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through when the network fails: its HTTP library's errors, which changed by version."""
    libraries = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return ConnectionError, *(importlib.import_module(name).TransportError for name in libraries)


def refused(reference: HubReference, error: Exception) -> UserError:
    """What to tell when the hub answers, but not with the files."""
    return UserError(
        f"{reference}: {endpoint()} answers: {first_line(error)}",
        fix="check the name and the revision; for a private or gated repository run `hf auth login`",
    )


def unreachable(reference: HubReference, error: Exception) -> StageError:
    """What to tell when the hub cannot be reached: it may be tomorrow, so the stage may be retried."""
    return StageError(
        f"{reference}: {endpoint()} cannot be reached: {first_line(error)}",
        fix="check the network, or set HF_ENDPOINT to a mirror; a model on disk works as a local path",
    )
