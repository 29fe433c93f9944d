"""Models from the Hugging Face hub, or from its cache when offline."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import SourceError

_PATTERN = re.compile(r"(?P<repo>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,199}))?", re.ASCII)
# Weights as safetensors and what describes them; never pickles, never code.
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, at a revision (branch, tag or commit) if one was given."""

    repo: str
    revision: str | None


def parse(source: str) -> HubId | None:
    """Read ``org/name`` or ``org/name@revision``; None if ``source`` has neither form."""
    match = _PATTERN.fullmatch(source)
    return HubId(match["repo"], match["revision"]) if match else None


def download(hub_id: HubId) -> Path:
    """Return the local snapshot directory of a repository, downloading what the cache lacks.

    Raises:
        SourceError: the repository does not exist, needs a login, or cannot be reached and is not cached.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, allow_patterns=_FILES))
    except GatedRepoError:
        problem = "is gated: accept its terms on its page and set HF_TOKEN"
    except RevisionNotFoundError:
        problem = f"has no revision {hub_id.revision!r}; check the part after the @"
    except RepositoryNotFoundError:
        problem = "is not on the hub, or is private; check the name or set HF_TOKEN"
    except LocalEntryNotFoundError:
        problem = (
            "is not cached and the hub cannot be reached; download it where there is a network or give a directory"
        )
    except (HfHubHTTPError, OSError) as error:
        problem = f"could not be downloaded ({type(error).__name__}); try again or give a directory"
    raise SourceError(f"{hub_id.repo} {problem}.")
