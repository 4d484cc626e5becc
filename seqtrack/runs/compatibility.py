"""Checks whether a run can continue exactly from a checkpoint, and says what differs if it cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from seqtrack.config import Config, parse_config
from seqtrack.data.stamp import FrameStamp, NoStamp
from seqtrack.environment import installed_versions
from seqtrack.meta import META_FILE
from seqtrack.model.weights import describe_mismatch
from seqtrack.runs.allowances import DECISIVE_PACKAGES
from seqtrack.sums import CheckpointError

FRAMES = "frames"
"""Entry of `meta.json` with the stamp of the frames, and what `--allow-changed` calls it."""
PACKAGES = (*DECISIVE_PACKAGES, "ray", "pyarrow", "mlflow", "huggingface-hub")
"""Packages whose versions a checkpoint records."""


def changed_since(
    meta: Mapping[str, Any], config: Config, dataset: Mapping[str, Any], frames: FrameStamp | None = None
) -> dict[str, str]:
    """What has changed since a checkpoint was written and changes what a step computes: key -> `new value, not old`.

    Keys are settings, `dataset`, `frames`, and names of packages. `frames`: today's stamp. Checkpoints that are older
    than these stamps have none. Where annotations differ, which is `dataset`, frames cannot be compared. Raises
    CheckpointError for a stamp that is none.
    """
    changed = config.changed_settings(parse_config(meta["config"], META_FILE))
    if meta["dataset"] != dataset:
        changed["dataset"] = f"{_describe(dataset)}, not {_describe(meta['dataset'])}"
    try:
        if frames is not None and meta.get(FRAMES) is not None and (difference := frames.difference(meta[FRAMES])):
            changed[FRAMES] = difference
    except NoStamp as error:
        raise CheckpointError(f"{META_FILE}: {FRAMES} {error}") from error
    now = installed_versions(DECISIVE_PACKAGES)
    for package in DECISIVE_PACKAGES:
        then = meta["versions"].get(package)
        if now[package] != then:
            changed[package] = f"{now[package]}, not {then}"
    return changed


def check_allowed(changed: Mapping[str, str], allowed: Collection[str], path: str) -> None:
    """Raises CheckpointError naming the changes since the checkpoint at `path` that are not allowed."""
    refused = {key: change for key, change in changed.items() if key not in allowed}
    if refused:
        listed = "; ".join(f"{key}: {change}" for key, change in refused.items())
        raise CheckpointError(
            f"{path} cannot be continued exactly: {listed} (--allow-changed {','.join(refused)} goes on all the same)"
        )


def check_model_fits(shapes: Mapping[str, tuple[int, ...]], model: nn.Module, shown: str) -> None:
    """Raises CheckpointError naming the parameters of the file `shown` that do not match the model's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if mismatch := describe_mismatch(shapes, wanted):
        raise CheckpointError(f"{shown}: does not fit the model; {mismatch}")


def _describe(dataset: Mapping[str, Any]) -> str:
    return f"{dataset['sequences']} sequences, {dataset['frames']} frames, annotations {dataset['fingerprint'][:12]}"
