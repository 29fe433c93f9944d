"""Uploads of finished artifacts to the Hugging Face hub."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import OutputError


@dataclass(frozen=True, kw_only=True)
class HubUpload:
    """Where an artifact goes and what is said about it; None leaves a choice to the hub."""

    repo_id: str
    token: str | bool | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    tags: Sequence[str] | None = None
    datasets: Sequence[str] | None = None
    message: str | None = None
    description: str | None = None


def upload(directory: Path, where: HubUpload) -> None:
    """Upload all of ``directory``, making the repository if there is none.

    Raises:
        OutputError: the hub cannot be reached or refuses.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, metadata_update
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi(token=where.token)
    try:
        api.create_repo(where.repo_id, private=where.private, exist_ok=True)
        api.upload_folder(
            repo_id=where.repo_id,
            folder_path=directory,
            revision=where.revision,
            create_pr=where.create_pr,
            commit_message=where.message,
            commit_description=where.description,
        )
        described = {"tags": where.tags, "datasets": where.datasets}
        if card := {key: list(values) for key, values in described.items() if values}:
            token = where.token if isinstance(where.token, str) else None
            metadata_update(where.repo_id, card, token=token, revision=where.revision, create_pr=where.create_pr)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).partition("\n")[0][:200].rstrip(".")
        raise OutputError(
            f"{directory} could not be uploaded to {where.repo_id} ({reason}); check the name, token and network."
        ) from error
