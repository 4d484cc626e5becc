from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.index import SETS, open_set

SIZES = {"LASOT": 3, "LASOT_TILED": 3, "GOT10K_train_full": 19, "COCO17": 1720, "TRACKINGNET": 60}


@pytest.mark.parametrize("name", SETS)
def test_the_made_up_annotations_are_those_of_a_set(name: str, tmp_path: Path) -> None:
    SETS[name](tmp_path / "set", 0.002)
    assert len(open_set(name, str(tmp_path / "set")).names) == SIZES[name]
