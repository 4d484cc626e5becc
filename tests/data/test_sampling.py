from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqtrack.config import Config, DataConfig
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.sampling import Draws, draw_sample, usable_sequences


def make_index(visibility: Iterable[list[int]]) -> FrameIndex:
    rows = [np.array(row, np.uint8) for row in visibility]
    boxes = [np.ones((len(row), 4), np.float32).tolist() for row in rows]
    return FrameIndex(
        pa.table(
            {
                "class": ["coin"] * len(rows),
                "sequence": [f"coin-{number}" for number in range(len(rows))],
                "boxes_xywh": pa.array(boxes, pa.large_list(pa.list_(pa.float32(), 4))),
                "visible": pa.array(rows, pa.large_list(pa.uint8())),
            }
        )
    )


def settings(**values: object) -> DataConfig:
    return Config().with_settings({"DATA.TEMPLATE.NUMBER": 2} | {f"DATA.{key}": v for key, v in values.items()}).DATA


def draw_many(index: FrameIndex, count: int, data: DataConfig, seed: int = 1, attempt: int = 0) -> list[Draws]:
    usable = usable_sequences(index, data)
    return [draw_sample(index, usable, seed, number, attempt, data) for number in range(count)]


def same(first: Draws, second: Draws) -> bool:
    fields: Any = zip(first, second, strict=True)
    return all(np.array_equal(a, b) for a, b in fields)


LONG = make_index([[1] * 1000] * 3)


def test_a_sample_is_a_function_of_seed_number_and_attempt() -> None:
    first = draw_many(LONG, 5, settings())
    assert all(same(a, b) for a, b in zip(first, draw_many(LONG, 5, settings()), strict=True))
    assert not any(same(a, b) for a, b in zip(first, draw_many(LONG, 5, settings(), seed=2), strict=True))
    assert not any(same(a, b) for a, b in zip(first, draw_many(LONG, 5, settings(), attempt=1), strict=True))
    assert not same(first[0], first[1])


def test_every_sequence_is_drawn_equally_often() -> None:
    counts = np.bincount([draws.sequence for draws in draw_many(LONG, 3000, settings())])
    assert counts.min() > 900


def test_frames_are_visible_and_near_and_in_order_forwards_or_backwards() -> None:
    flags = ([1] * 30 + [0] * 30) * 10
    drawn = draw_many(make_index([flags]), 500, settings(MAX_SAMPLE_INTERVAL=100))
    for draws in drawn:
        assert all(flags[frame] for frame in draws.frames)
        assert max(draws.frames) - min(draws.frames) < 200
        assert list(draws.frames) in (sorted(draws.frames), sorted(draws.frames, reverse=True))
    forwards = sum(draws.frames[0] < draws.frames[-1] for draws in drawn)
    assert 200 < forwards < 300


def test_frames_lie_around_a_base_frame_that_may_be_any_visible_one() -> None:
    drawn = draw_many(make_index([[1] * 1000]), 2000, settings(MAX_SAMPLE_INTERVAL=10))
    middles = np.array([np.mean(draws.frames) for draws in drawn])
    assert middles.min() < 30
    assert middles.max() > 970


@pytest.mark.parametrize(
    ("visibility", "usable"),
    [
        ([1] * 20, True),
        ([1] * 19, False),  # too short
        ([1] * 7 + [0] * 20, True),
        ([1] * 6 + [0] * 20, False),  # not more than 2 · (templates + search) visible
    ],
)
def test_sequences_too_short_or_too_hidden_are_not_used(visibility: list[int], usable: bool) -> None:
    assert len(usable_sequences(make_index([visibility]), settings())) == usable


def test_augmentations_have_the_published_rates_and_ranges() -> None:
    drawn = draw_many(LONG, 4000, settings())
    assert np.mean([draws.grayscale for draws in drawn]) == pytest.approx(0.05, abs=0.015)
    assert np.mean([draws.joint_flip for draws in drawn]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([draws.flips for draws in drawn]) == pytest.approx(0.5, abs=0.03)
    brightness = np.concatenate([draws.brightness for draws in drawn])
    assert (brightness.min(), brightness.max()) == pytest.approx((0.8, 1.2), abs=0.001)
    assert np.std([draws.normal for draws in drawn]) == pytest.approx(1, abs=0.03)
    assert np.mean([draws.uniform for draws in drawn]) == pytest.approx(0.5, abs=0.02)


def test_draws_do_not_change_between_versions() -> None:
    """Saved runs continue with the samples that they would have drawn."""
    draws = draw_many(LONG, 8, settings())[7]
    assert (draws.sequence, draws.frames, draws.grayscale, draws.joint_flip) == (0, (729, 899, 922), False, False)
