"""Files of the Hugging Face Hub, brought to this machine by the Hub's own client.

The client asks a server that is away six times, for half a minute, before it looks into its cache. So the server is
asked here first, once and with a short time limit: if it does not answer, what the cache has is used, and where that
is nothing, it is said at once. After the first answer, the client's own retries carry a download over passing faults.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.locations import shown, without_user

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

SECONDS_TO_CONNECT = 3.0
"""How long a server may take to accept a connection; for its first answer it has the client's HF_HUB_ETAG_TIMEOUT."""
PAUSE = 1.0
"""Seconds after which a server that answered that it is busy or broken is asked once more."""


class HubError(InputError):
    """The Hub cannot be used. The message says why, in a line."""


def repository_fault(repo_id: str) -> str | None:
    """Why this cannot be a repository on the Hub, by the rule of `huggingface_hub`; None if it can."""
    if _is_repository(repo_id):
        return None
    without_server = re.sub(r"^(?:\w+:/+)?(?:(?:www\.)?(?:huggingface\.co|hf\.co)/)?", "", repo_id.strip())
    candidate = "/".join(re.sub(r"^(?:datasets|models)/", "", without_server).split("/")[:2])
    hint = f"; did you mean {candidate}?" if _is_repository(candidate) else ""
    return (
        "not a repository of the Hub: user/name, each of at most 96 letters, digits, `-`, `_` and `.`, with no `--` or "
        f"`..`, and none of `-`, `.`, `.git` at an end{hint}"
    )


def _is_repository(repo_id: str) -> bool:
    part = r"[a-zA-Z0-9_](?:[\w.-]{0,94}[a-zA-Z0-9_])?"
    fits = re.fullmatch(f"{part}/{part}", repo_id, re.ASCII) is not None
    return fits and "--" not in repo_id and ".." not in repo_id and not repo_id.endswith(".git")


def make_api() -> HfApi:
    """The Hub's client for HF_ENDPOINT, as it is set now. Raises HubError if it or the token cannot be right."""
    from huggingface_hub import HfApi, get_token  # its import takes a second

    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is not None:
        endpoint = endpoint.strip().rstrip("/")
        if not endpoint.startswith(("http://", "https://")):
            host = without_user(endpoint.rpartition("://")[2]) or "huggingface.co"
            raise HubError(f"HF_ENDPOINT {shown(endpoint)!r} is no address; https://{host} may be right")
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:  # never shown, though its client would
        raise HubError("the token (HF_TOKEN, or `hf auth login`) has letters that no token has; copy it anew")
    return HfApi(endpoint=endpoint, library_name="seqtrack")


def first_answer(request: Callable[[Any], Answer]) -> Answer:
    """What the server says to a request, which is given the time limits. Raises what the client raises.

    A server that says that it is busy or broken is asked once more.
    """
    from huggingface_hub import constants

    wait = float(constants.HF_HUB_ETAG_TIMEOUT)
    limits = (min(SECONDS_TO_CONNECT, wait), wait, wait, wait)  # to connect, read, write, and get a free connection
    try:
        return request(limits)
    except Exception as error:
        if not _is_passing(error):
            raise
        time.sleep(PAUSE)
        return request(limits)


def _status(error: Exception) -> int | None:
    """The status of an answer that is an error; None if there was no answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _is_passing(error: Exception) -> bool:
    status = _status(error)
    return status is not None and (status in (408, 429) or status >= 500)


def _or_cached(ask: Callable[[], Answer], cached: Callable[[], Answer], what: str) -> Answer:
    """What the server says; if it does not answer, what the cache has, with a line in the log.

    Raises what the client raises, for the server if the cache does not have it either.
    """
    try:
        return ask()
    except Exception as error:  # of the network, of a proxy, of the client's own settings
        if _status(error) is not None and not _is_passing(error):
            raise  # it answered: there is no such repository, the token may not read it
        failure = error
    with suppress(Exception):  # the cache has nothing, or not all of it: why the Hub was not reached says more
        found = cached()
        logger.warning("%s: the Hub cannot be reached (%s); what was fetched earlier is used", what, explain(failure))
        return found
    raise failure


def fetch_file(repo_id: str, name: str) -> Path:
    """One file of a repository, in the client's cache. Raises HubError, or what the client raises."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = make_api().endpoint

    def ask() -> str:
        url = hf_hub_url(repo_id, name, endpoint=endpoint)
        first_answer(lambda limits: get_hf_file_metadata(url, timeout=limits, endpoint=endpoint))
        return hf_hub_download(repo_id, name, endpoint=endpoint)

    return Path(_or_cached(ask, lambda: hf_hub_download(repo_id, name, local_files_only=True), repo_id))


class Repository(NamedTuple):
    """A model repository: the names of its files at one revision, and how they get here."""

    repo_id: str
    revision: str | None
    files: frozenset[str]
    cache: Path | None
    """Where what was fetched earlier is; None if the Hub is there."""

    @classmethod
    def open(cls, repo_id: str, revision: str | None) -> Repository:
        """Asks the Hub, or the cache if the Hub cannot be reached. Raises HubError, or what the client raises."""
        from huggingface_hub import snapshot_download

        api = make_api()

        def ask() -> Repository:
            info = first_answer(lambda limits: api.model_info(repo_id, revision=revision, timeout=limits))
            files = frozenset(one.rfilename for one in info.siblings or ())
            return cls(repo_id, revision, files, None)

        def cached() -> Repository:
            root = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=[]))
            files = frozenset(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
            return cls(repo_id, revision, files, root)

        return _or_cached(ask, cached, f"hf://{repo_id}")

    def fetch(self, names: Collection[str]) -> Path:
        """The folder on this machine that has these files. Raises what the client raises."""
        from huggingface_hub import snapshot_download

        if self.cache is not None:
            return self.cache
        patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in sorted(names)]
        endpoint = make_api().endpoint
        root = snapshot_download(self.repo_id, revision=self.revision, allow_patterns=patterns, endpoint=endpoint)
        return Path(root)
