"""What is said of weights that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqtrack.model.weights import WeightsError, read_weights


def refusal(path: Path) -> str:
    """What is said of weights that are refused, after their path."""
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")
