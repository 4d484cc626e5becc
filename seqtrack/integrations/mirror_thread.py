"""The thread that keeps a run's MLflow page up to date beside its training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyarrow import ArrowException

from seqtrack.config import Config
from seqtrack.environment import command
from seqtrack.integrations.background import BackgroundSync
from seqtrack.integrations.mirror_state import MirrorNote, Status
from seqtrack.integrations.store_uri import shown_store
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
        self._note.start(tags, params)
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
