"""Checkpoints on the Hugging Face Hub, through huggingface_hub: its cache, its credentials, its environment variables.

`HF_HOME` or `HF_HUB_CACHE` set the cache's folder; with `HF_HUB_OFFLINE=1` only the cache is used.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from asd_policy._common.extras import needed
from asd_policy.errors import CheckpointError

_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")
_FILES = {".bin", ".ckpt", ".json", ".onnx", ".pkl", ".pt", ".pth", ".safetensors", ".zip"}


def is_hub_id(text: str) -> bool:
    """Tell whether a text has the form of a Hub id, `owner/name` or `owner/name@revision`."""
    return _ID.fullmatch(text) is not None


def looks_like_a_path(text: str) -> str | None:
    """Explain why a text in the form of a Hub id is a mistyped path, which the Hub is not asked for; None for an id.

    A text with a revision is always an id.

    Args:
        text: As `is_hub_id` takes it; nothing is at this path.
    """
    owner, name = text.split("/", maxsplit=1)
    if "@" in name:
        return None
    if Path(owner).is_dir():
        near = get_close_matches(name, sorted(each.name for each in Path(owner).iterdir()), n=1)
        meant = f", and has {near[0]}" if near else ""
        return f"{owner} is a folder here{meant}; {text}@main would ask for it"
    suffix = Path(name).suffix
    return f"{suffix} is a file's; {text}@main would ask for it" if suffix in _FILES else None


def fetch(hub_id: str, patterns: Sequence[str]) -> Path:
    """Download what the cache lacks of a Hub repository; return its folder there.

    Args:
        hub_id: As `is_hub_id` takes it; the revision is a branch, a tag or a commit, `main` if none is given.
        patterns: Of the files that a format may need. Others are not downloaded, pickles among them.

    Raises:
        CheckpointError: There is no such repository or revision, it is not open to this user, it has none of the files,
            or neither the Hub nor a whole copy in the cache can be reached.
    """
    # Imported here, because it takes half a second and only Hub ids need it.
    with needed(f"no checkpoint at {hub_id}: the path does not exist, and the Hub", "hub", CheckpointError):
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

    found = _ID.fullmatch(hub_id)
    assert found is not None
    repo, revision = found["repo"], found["revision"]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        reason = f"the Hub's {repo} is gated: ask for access on its page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = f"the Hub has no repository {repo} that you may see; for a private one log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = f"the Hub's {repo} has no revision {revision!r}"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cause = error.__cause__ or error
        hindrance = (
            "HF_HUB_OFFLINE forbids to download it"
            if constants.HF_HUB_OFFLINE
            else f"the Hub cannot be reached ({type(cause).__name__})"
        )
        reason = f"{repo} is not in the Hub's cache, or not all of it, and {hindrance}"
    except Exception as error:  # a download raises errors of several libraries, which change with their versions
        reason = f"the download of {repo} failed: {type(error).__name__}: {error}"
    else:
        if any(True for pattern in patterns for _ in folder.glob(pattern)):
            return folder
        reason = (
            f"the Hub's {repo} has none of the files that are read from there ({', '.join(patterns)}); a .ckpt or .pth "
            f"file is loaded from a path, once `hf download {repo} FILE` has fetched it"
        )
    raise CheckpointError(f"no checkpoint at {hub_id}: the path does not exist, and {reason}")
