from __future__ import annotations

import pytest

from seqtrack.config import ConfigError
from seqtrack.runs.allowances import check_allowances


def test_only_what_exists_can_be_allowed_to_change() -> None:
    check_allowances(["TRAIN.LR", "torch", "dataset", "frames"])
    with pytest.raises(ConfigError, match=r"--allow-changed TRAIN.LRR: neither a setting .*; did you mean TRAIN.LR\?"):
        check_allowances(["TRAIN.LRR"])
