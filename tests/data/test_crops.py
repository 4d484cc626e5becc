"""Geometry and pixels against numbers that the published implementation computed on frames made by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from seqtrack.config import DataConfig, SearchConfig, TemplateConfig
from seqtrack.data.crops import box_in_crop, crop_image, crop_region, cut_sample, jitter_box, part_inside, plan_cut
from seqtrack.data.decoding import ArrayFrame, Image
from seqtrack.data.sampling import Draws
from tests.data.pictures import smooth

Golden = Callable[[str], Any]
Agrees = Callable[[str, str, Any, Any, float], None]


def box(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def test_crops_have_the_published_geometry_and_pixels(golden: Golden, agrees: Agrees) -> None:
    for case in golden("geometry")["crops"]:
        size = case["size"]
        region = crop_region(box(case["box"]), case["factor"])
        assert region.side == case["crop_size"]
        target = box_in_crop(box(case["target"]), box(case["box"]), region, size)
        agrees("geometry", "box in the crop", target, case["target_in_crop"], 1e-5)
        crop = crop_image(ArrayFrame(smooth(case["H"], case["W"], 0)), region, size)
        places = [(0, 0), (size // 2, size // 2), (size // 4, 3 * size // 4), (size - 1, size - 1), (size // 3, 5)]
        pixels = np.array([crop[place] for place in places], int)
        agrees("geometry", "pixels", pixels, case["pixels"], 1 / 255)
        np.testing.assert_allclose(crop.reshape(-1, 3).mean(0), case["mean"], atol=0.05)


def test_jitter_is_the_published_one(golden: Golden, agrees: Agrees) -> None:
    for case in golden("geometry")["jitter"]:
        for section, name in ((SearchConfig(), "search"), (TemplateConfig(), "template")):
            jittered = jitter_box(box(case["box"]), case["normal"], case["uniform"], section)
            agrees("geometry", "jittered box", jittered, case[name], 1e-5)


@pytest.mark.parametrize("number", range(4))
def test_whole_triplets_are_the_published_ones(golden: Golden, agrees: Agrees, number: int) -> None:
    case = golden("geometry")["samples"][number]
    settings = DataConfig(SEARCH=SearchConfig(SIZE=case["size"]), TEMPLATE=TemplateConfig(SIZE=case["size"], NUMBER=2))
    noise = np.array(case["noise"], np.float32)
    draws = Draws(
        sequence=0,
        frames=(0, 1, 2),
        grayscale=case["grayscale"],
        joint_flip=case["joint_flip"],
        normal=noise[:, 0],
        uniform=noise[:, 1],
        brightness=np.array(case["brightness"], np.float32),
        flips=np.array(case["flips"]),
    )
    frames = [ArrayFrame(smooth(case["height"], case["width"], salt)) for salt in case["frame_salts"]]
    sample = cut_sample(draws, box(case["boxes"]), frames.__getitem__, settings)
    assert sample is not None
    agrees("geometry", "box of a triplet", sample.box_xywh, case["search_boxes"][0], 1e-5)

    def normalised(crop: Image, brightness: float) -> np.ndarray:
        return (np.clip(crop / 255 * brightness, 0, 1) - settings.MEAN) / settings.STD

    search = normalised(sample.search, sample.brightness[-1])
    np.testing.assert_allclose(search.reshape(-1, 3).mean(0), case["search_mean"], atol=1e-4)
    for template, brightness, mean in zip(sample.template, sample.brightness, case["template_mean"], strict=False):
        np.testing.assert_allclose(normalised(template, brightness).reshape(-1, 3).mean(0), mean, atol=1e-4)


class Recording(ArrayFrame):
    """A frame that remembers which parts of it were asked for."""

    def __init__(self, image: Image, parts: list[tuple[int, int]]) -> None:
        super().__init__(image)
        self._parts = parts

    def pixels(self, left: int, top: int, right: int, bottom: int) -> Image:
        self._parts.append((top, bottom))
        return super().pixels(left, top, right, bottom)


def test_what_a_sample_will_read_is_known_before_it_is_cut() -> None:
    """Mirrored or not, at every edge of the frame, and beyond it."""
    generator, settings = np.random.default_rng(0), DataConfig(TEMPLATE=TemplateConfig(NUMBER=2))
    cut = 0
    for number in range(200):
        boxes = generator.uniform(-40, 260, (3, 4)).astype(np.float32)
        boxes[:, 2:] = generator.uniform(5, 80, (3, 2))
        normal, uniform = generator.normal(size=(3, 2)).astype(np.float32), generator.random((3, 2), np.float32)
        factors = np.ones(3, np.float32)
        draws = Draws(0, (0, 1, 2), False, number % 2 == 0, normal, uniform, factors, np.zeros(3, np.bool_))
        expected = []
        for position in range(3):
            plan = plan_cut(draws, position, boxes, 240, settings)
            assert plan is not None
            inside = part_inside(plan.region, 240, 180)
            expected += [] if inside is None else [(inside[1], inside[3])]
        parts: list[tuple[int, int]] = []
        frame = Recording(smooth(180, 240, 0), parts)
        assert cut_sample(draws, boxes, lambda _, frame=frame: frame, settings) is not None  # type: ignore[misc]
        assert parts == expected
        cut += len(expected) < 3
    assert cut


def test_outside_the_frame_is_black() -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    crop = crop_image(ArrayFrame(white), crop_region(box([30, 5, 20, 20]), 2.0), 40)  # x 20 … 59, y -5 … 34
    assert crop[:5].max() == 0
    assert crop[5:, :19].min() == 255
    assert crop[:, 19:].max() == 0  # the frame's last column is black too, as published


def test_a_target_smaller_than_a_pixel_makes_no_sample() -> None:
    zeros = np.zeros((2, 2), np.float32)
    draws = Draws(0, (0, 0), False, False, zeros, zeros, np.ones(2, np.float32), np.zeros(2, np.bool_))
    assert cut_sample(draws, box([[5, 5, 0, 2]]), lambda _: ArrayFrame(smooth(20, 20, 0)), DataConfig()) is None
