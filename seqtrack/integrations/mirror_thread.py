"""The thread that keeps a run's MLflow page up to date beside its training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyarrow import ArrowException

from seqtrack.config import Config, parse_config
from seqtrack.environment import command
from seqtrack.errors import InputError
from seqtrack.integrations.background import BackgroundSync
from seqtrack.integrations.mirror_state import MirrorNote, StartSettings, Status
from seqtrack.integrations.store_uri import shown_store
from seqtrack.model.weights import META_FILE
from seqtrack.runs.checkpoint import newest_checkpoint
from seqtrack.runs.folder import RunFolder
from seqtrack.shown import shown_command

if TYPE_CHECKING:
    from seqtrack.integrations.mlflow import Mirror

logger = logging.getLogger(__name__)


class MirrorThread:
    """Keeps a Mirror up to date beside a training, and lets nothing that MLflow does reach the training."""

    def __init__(
        self, config: Config, run: RunFolder, tags: dict[str, str], params: Mapping[str, Any] | None = None
    ) -> None:
        """Raises RunFileError if the folder's `mlflow.json` is empty or cut off."""
        self._run = run
        self._config, self._note = config, MirrorNote(run)
        self._note.start(tags, params, _settings_at_start(config, run))
        self._server = shown_store(config)
        self._thread = BackgroundSync(self._server, self._sync, self._finish)
        self._thread.start()

    def end(self, status: Status) -> None:
        """Notes how the run ended; only the first call counts."""
        if self._thread.ended:
            return
        try:
            self._note.end(status)
        except (OSError, ArrowException) as error:  # a full disk, say, which may be why the run ended
            logger.warning("%s: the run's status cannot be noted (%s)", self._run.location, error)
        self._thread.end()

    def abandon(self) -> None:
        """Ends without a word to MLflow or the run's folder: another job has taken the run, and mirrors it itself."""
        self._thread.abandon()

    def close(self, status: Status, patience: float) -> None:
        """Waits until MLflow has everything, for `patience` seconds at most; then says what it lacks."""
        self.end(status)
        if self._thread.close(patience):
            return
        try:
            unsent = f"{self._mirror.unsent()} records"
        except Exception as error:  # of any type: MLflow itself may be broken
            unsent = f"how much is not known: {error}"
        logger.warning(
            "%s lacks a part of this run (%s), which is in %s. To deliver it: %s",
            self._server,
            unsent,
            self._run.location,
            shown_command(command("deliver", [self._run.location])),
        )

    @functools.cached_property
    def _mirror(self) -> Mirror:
        """Made in the mirror's own thread, because importing MLflow takes seconds."""
        from seqtrack.integrations.mlflow import Mirror

        return Mirror(self._config, self._run, self._note)

    def _sync(self) -> None:
        self._mirror.sync()
        self._mirror.watch_system()

    def _finish(self) -> None:
        self._mirror.finish()


def _settings_at_start(config: Config, run: RunFolder) -> StartSettings:
    """The settings, with what the run's newest checkpoint says of its position and of its own."""
    newest = newest_checkpoint(run)
    meta = None if newest is None else run.read_json(f"{newest.name}/{META_FILE}")
    if meta is None or type(meta.get("step")) is not int or not isinstance(meta.get("config"), dict):
        return StartSettings(config.flat())
    try:
        before = parse_config(meta["config"], META_FILE).flat()
    except InputError:  # of another version, which knew other settings
        before = {}
    return StartSettings(config.flat(), meta["step"], before)
