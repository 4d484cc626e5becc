"""Checkpoints on the Hugging Face Hub: sent beside training, verified at its end, found again by `hf://`.

A repository holds `checkpoints/<name>/…` as in the run's folder, and at its top what strangers look for: `README.md`,
`config.yaml`, `model.safetensors`. What is there already is not sent again, so everything here may be interrupted.
The token is the client's own (HF_TOKEN, or `hf auth login`). It stays in the job's process.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils.sha import git_hash

from seqtrack.config import SETTINGS_FILE, Config, ConfigError, parse_config
from seqtrack.config.servers import check_repository, shown, without_user
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.integrations.background import BackgroundSync
from seqtrack.integrations.model_card import model_card
from seqtrack.model.weights import META_FILE, MODEL_FILE
from seqtrack.runs.checkpoint import (
    CheckpointError,
    StoredCheckpoint,
    checkpoint_name,
    find_name,
    verify_checkpoint,
    whole_checkpoints,
)
from seqtrack.runs.evaluations import auc_by_checkpoint, read_evaluations
from seqtrack.runs.folder import RunFolder

logger = logging.getLogger(__name__)

SCHEME = "hf://"
FOLDER = "checkpoints"
CARD_FILE = "README.md"


class HubError(InputError):
    """The Hub cannot be used. The message says why, in a line."""


class HubRepo:
    """A model repository. Methods raise what the Hub's client raises, unless they say otherwise."""

    def __init__(self, repo_id: str) -> None:
        self.repo_id = repo_id

    @functools.cached_property
    def _api(self) -> HfApi:
        return make_api()

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repo_id}"

    def prepare(self, private: bool) -> None:
        """Creates the repository where there is none. Raises HubError where it cannot be written to."""
        try:
            self._api.whoami()
            self._api.create_repo(self.repo_id, private=private, exist_ok=True)
            self._api.auth_check(self.repo_id, write=True)
        except LocalTokenNotFoundError as error:
            raise HubError(f"HUB.REPO_ID {self.repo_id}: no token (HF_TOKEN, or `hf auth login`)") from error
        except Exception as error:  # whatever its client raises
            status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response else None
            reason = {
                401: "the Hub does not know the token",
                403: "the token may not write there",
            }.get(status or 0, explain(error))
            raise HubError(f"HUB.REPO_ID {self.repo_id}: {reason}") from error

    def missing(self, files: Mapping[str, Path | bytes]) -> dict[str, Path | bytes]:
        """Those of the files, by their paths in the repository, that are not there with the same bytes."""
        there = {info.path: info for info in self._api.get_paths_info(self.repo_id, list(files))}
        return {path: content for path, content in files.items() if not _is_same(content, there.get(path))}

    def send(self, files: Mapping[str, Path | bytes], message: str) -> int:
        """Commits what is missing, all at once. Returns the number of files."""
        operations = {path: CommitOperationAdd(path, content) for path, content in self.missing(files).items()}
        if operations:
            # First each content once: the client would send twice what is in one commit under two names.
            once = {operation.upload_info.sha256: operation for operation in operations.values()}
            self._api.preupload_lfs_files(self.repo_id, list(once.values()))
            self._api.create_commit(self.repo_id, list(operations.values()), commit_message=message)
        return len(operations)


class HubThread:
    """Sends a run's checkpoints beside its training, one at a time, and lets nothing of it reach the training."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        assert config.HUB.REPO_ID is not None
        self._config, self._run = config, run
        self._repo = HubRepo(config.HUB.REPO_ID)
        disable_progress_bars()  # they would write over the training's log
        self._ready = False
        self._done: set[str] = set()
        self._thread = BackgroundSync(f"Hub repository {config.HUB.REPO_ID}", self._sync, self._finish)

    def start(self) -> None:
        """Checks the token and the repository. Raises HubError where they will not do and HUB.REQUIRED is set."""
        try:
            self._prepare()
        except HubError as error:
            if self._config.HUB.REQUIRED:
                raise
            logger.warning("%s; training goes on, and it is tried again (HUB.REQUIRED=true stops instead)", error)
            self._thread.problem = str(error)
        self._thread.start()

    def close(self, patience: float) -> None:
        """Waits until everything is sent and compared, for `patience` seconds at most, and says what came of it."""
        if not self._thread.close(patience):
            state = self._thread.problem or self._thread.doing
            logger.warning("Hub : gave up; the same command again sends the rest. %s", state)

    def _prepare(self) -> None:
        if not self._ready:
            self._repo.prepare(self._config.HUB.PRIVATE)
            self._ready = True

    def _sync(self) -> None:
        self._prepare()
        if self._config.HUB.CHECKPOINTS == "all":
            self._send(whole_checkpoints(self._run, self._done), self._done)

    def _finish(self) -> None:
        """Compares everything with the run's folder, sends what is missing, and compares again."""
        self._prepare()
        names = whole_checkpoints(self._run)
        if not names:
            return
        chosen = {"all": names, "last": names[-1:], "best": [self._main(names)]}[self._config.HUB.CHECKPOINTS]
        self._send(chosen, set())
        for name in chosen:
            with StoredCheckpoint(self._run, name).local() as directory:
                if wrong := self._repo.missing(_in_repo(name, directory)):
                    raise HubError(f"{', '.join(wrong)}: not there with the same bytes")
        logger.warning(
            "Hub : %s has %s of this run, compared file by file (size, SHA-256)",
            self._repo.url,
            f"{len(chosen)} checkpoint{'' if len(chosen) == 1 else 's'}",
        )

    def _send(self, names: Sequence[str], done: set[str]) -> None:
        """Sends those that are not done, each in one commit; the last with the top of the repository."""
        for number, name in enumerate(names, start=1):
            if name in done:
                continue
            self._thread.doing = f"sending {name}, {number} of {len(names)}, to {self._repo.repo_id}"
            stored = StoredCheckpoint(self._run, name)
            try:
                with stored.local() as directory:
                    verify_checkpoint(directory, stored.path)
                    top = self._top(names) if name == names[-1] else {}
                    self._repo.send(_in_repo(name, directory) | top, f"Checkpoint {name}")
            except (CheckpointError, FileNotFoundError):
                if name in whole_checkpoints(self._run):
                    raise
                logger.warning("Hub : %s was not kept (TRAIN.KEEP_CHECKPOINTS) and is not sent", name)
            done.add(name)

    def _main(self, names: Sequence[str]) -> str:
        """The checkpoint whose weights are the repository's own: the best epoch's, or the newest."""
        hub = self._config.HUB
        if hub.BEST_BY == "auc":
            values = auc_by_checkpoint(read_evaluations(self._run), next(iter(self._config.EVAL.BENCHMARKS)))
        else:
            history = self._meta(names[-1])["history"]
            values = {checkpoint_name(int(epoch["epoch"]), 0): epoch[hub.BEST_BY] for epoch in history}
        kept = [name for name in names if name in values]
        if hub.CHECKPOINTS == "last" or not kept:
            return names[-1]
        sign = -1 if hub.BEST_BY == "loss" else 1
        return max(kept, key=lambda name: sign * values[name])

    def _top(self, names: Sequence[str]) -> dict[str, Path | bytes]:
        """The files at the top of a repository of these checkpoints."""
        written = whole_checkpoints(self._run)
        main, meta = self._main(written), self._meta(written[-1])
        config = parse_config(meta["config"], META_FILE)
        content: Path | bytes = Path(self._run.file(f"{main}/{MODEL_FILE}"))
        if not self._run.local:
            with self._run.filesystem.open_input_stream(str(content)) as file:
                content = file.read()
        card = model_card(self._repo.repo_id, config, meta, main, names, read_evaluations(self._run))
        return {MODEL_FILE: content, SETTINGS_FILE: config.to_yaml().encode(), CARD_FILE: card.encode()}

    def _meta(self, name: str) -> dict[str, Any]:
        meta = self._run.read_json(f"{name}/{META_FILE}")
        if meta is None:
            raise CheckpointError(f"{self._run.file(name)}/{META_FILE} is missing")
        return meta


def make_api() -> HfApi:
    """The Hub's client for HF_ENDPOINT, as it is set now. Raises HubError if it or the token cannot be right."""
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


def describe_access(repo_id: str) -> str:
    """Who may write to a repository, as far as can be told without creating it. Raises what the Hub's client raises."""
    api = make_api()
    user = api.whoami()["name"]
    try:
        api.auth_check(repo_id, write=True)
    except RepositoryNotFoundError:
        return f"{user}; {repo_id} will be created"
    return f"{user} may write to {repo_id}"


def fetch_checkpoint(location: str) -> Path:
    """Downloads the checkpoint at `hf://user/repo[@revision][/checkpoints][/NAME]` into the client's cache.

    NAME as in `find_checkpoint`: a checkpoint's name, `latest` (also if left out) or an epoch's number. Raises
    CheckpointError.
    """
    user, _, rest = location.removeprefix(SCHEME).partition("/")
    repo, _, path = rest.strip("/").partition("/")
    repo, _, revision = repo.partition("@")
    wanted = path.removeprefix(FOLDER).strip("/")
    try:
        check_repository("hf://", f"{user}/{repo}")
        api = make_api()
        commit = api.model_info(f"{user}/{repo}", revision=revision or None).sha
        files = api.list_repo_tree(f"{user}/{repo}", FOLDER, recursive=True, revision=commit)
        names = {Path(file.path).parts[1] for file in files if isinstance(file, RepoFile)}
        name = find_name(sorted(names), wanted or "latest", location)
        root = snapshot_download(
            f"{user}/{repo}", revision=commit, allow_patterns=f"{FOLDER}/{name}/*", endpoint=api.endpoint
        )
    except EntryNotFoundError as error:
        raise CheckpointError(f"{location}: no finished checkpoint there") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{location}: no such repository, or the token may not read it") from error
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{location}: {error}") from error
    except Exception as error:  # whatever its client raises
        raise CheckpointError(f"{location}: cannot be read ({explain(error)})") from error
    return Path(root, FOLDER, name)


def _in_repo(name: str, directory: Path) -> dict[str, Path | bytes]:
    return {f"{FOLDER}/{name}/{path.name}": path for path in sorted(directory.iterdir())}


def _is_same(content: Path | bytes, there: Any) -> bool:
    if not isinstance(there, RepoFile):
        return False
    if there.lfs is not None:
        info = CommitOperationAdd(there.path, content).upload_info
        return there.lfs.size == info.size and there.lfs.sha256 == info.sha256.hex()
    data = content if isinstance(content, bytes) else content.read_bytes()
    return there.size == len(data) and there.blob_id == git_hash(data)
