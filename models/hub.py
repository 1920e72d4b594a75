"""Where networks are: shipped with the project, in files, and on the Hugging Face hub.

    hf://user/name            the network of a repository, as `push.py` uploads it
    hf://user/name@revision   the same at a branch, a tag or a commit

The hub needs the package huggingface_hub, whose cache, tokens (`hf auth login`, HF_TOKEN), offline mode
(HF_HUB_OFFLINE) and other hubs (HF_ENDPOINT) are as its documentation says.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superres.errors import InputError

WEIGHTS = Path(__file__).parents[1] / "weights"
NETWORK = "network.keras"  # what a repository calls its network


def network_file(path: Path | str) -> Path:
    """The `.keras` file that a name, a path or an address on the Hugging Face hub stands for.

    Raises:
        InputError: if there is none.
    """
    if is_address(path):
        return download(path)
    if not Path(path).is_file() and (WEIGHTS / f"{path}.keras").is_file():
        return WEIGHTS / f"{path}.keras"
    if not Path(path).is_file():
        shipped = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.keras")))
        raise InputError(f"{path}: no such model file; shipped are {shipped}")
    return path


def is_address(path: Path | str) -> bool:
    return str(path).startswith("hf://")


def parsed(address: str) -> tuple[str, str | None]:
    """The repository and the revision of an address.

    Raises:
        InputError: if it is malformed.

    Example:
        >>> parsed("hf://user/name@v2")
        ("user/name", "v2")
        >>> parsed("hf://user/name")
        ("user/name", None)
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address, re.ASCII)
    if not match:
        raise InputError(f"{address}: must be hf://user/name or hf://user/name@revision")
    return match.groups()


def stem(path: Path | str) -> str:
    """What to call a network: its repository's name, or its file's without the suffix."""
    return parsed(path)[0].split("/")[1] if is_address(path) else Path(path).stem


def download(address: str) -> str:
    """The network file of a repository, from huggingface_hub's cache where it is there already: its path.

    Raises:
        InputError: if there is no such repository, revision or file, no access to it, or no
            connection and nothing in the cache.
    """
    repository, revision = parsed(address)
    with in_one_line(address) as huggingface_hub:
        return huggingface_hub.hf_hub_download(repository, NETWORK, revision=revision,
                                               library_name="superres")


@contextlib.contextmanager
def in_one_line(address: str) -> Iterator[Any]:
    """Give huggingface_hub, and raise whatever it raises as an InputError.

    Args:
        address: What it is used for, which begins the line.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(f"{address}: needs huggingface_hub (pip install huggingface_hub)") from None
    try:
        yield huggingface_hub
    except InputError:
        raise
    except Exception as error:  # of the hub, of the connection, of the disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        unreachable = isinstance(error, errors.LocalEntryNotFoundError)
        said = getattr(error, "server_message", None) or (unreachable and error.__cause__) or error
        said = " ".join(str(said).split())[:200]
        if isinstance(error, errors.GatedRepoError):
            reason = "gated: ask for access on its page, then log in (hf auth login)"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = "no such repository, or a private one that this login does not see (hf auth login)"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = "the repository has no such revision"
        elif unreachable:
            reason = f"not downloaded before, and the hub cannot be reached ({said})"
        elif isinstance(error, errors.EntryNotFoundError):
            reason = f"the repository has no {NETWORK}"
        elif status in (401, 403):
            reason = f"the hub refuses: log in with a token that may do this (hf auth login; {said})"
        else:
            reason = said
        raise InputError(f"{address}: {reason}") from None
