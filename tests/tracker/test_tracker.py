from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqtrack.config import load_config
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracker import BatchTracker, Tracked, Tracker, TrackerSettings
from seqtrack.tracker.tracker import TrackerInputError
from tests.data.pictures import smooth
from tests.tracker.tracks import GOLDEN_TRACKS, frames_of, model_of, settings_of


@pytest.mark.parametrize("track", GOLDEN_TRACKS, ids=lambda track: f"{track['seq_format']}-{track['window']}")
def test_boxes_are_those_of_the_published_tracker(track: dict[str, Any]) -> None:
    """The tracks have template updates. `pytest -s` shows the largest deviation."""
    frames = frames_of(track)
    tracker = Tracker(model_of(track), settings_of(track))
    tracker.initialize(frames[0], track["init"])
    boxes = [track["init"], *(tracker.track(frame).box_xywh for frame in frames[1:])]
    deviation = np.abs(np.array(boxes) - np.array(track["boxes"])).max()
    print(f"\nlargest deviation {deviation:.1e} px, {tracker.updates} updates", end="")
    assert deviation <= 1e-3
    assert tracker.updates == (track["frames"] - 1) // track["update_interval"]


def tracked(
    model: SeqTrack, settings: TrackerSettings, videos: list[list[np.ndarray]], slots: list[int], count: int
) -> list[list[Tracked]]:
    """Each video's results; video i is in slot `slots[i]` of `count`."""
    tracker = BatchTracker(model, settings, count)
    found: list[list[Tracked]] = [[] for _ in videos]
    for video, slot in zip(videos, slots, strict=True):
        tracker.start(slot, video[0], (90.0, 60.0, 40.0, 32.0))
    for number in range(1, max(map(len, videos))):
        frames = {slot: video[number] for video, slot in zip(videos, slots, strict=True) if number < len(video)}
        for slot, one in tracker.track(frames).items():
            found[slots.index(slot)].append(one)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_target_has_the_same_bits_in_any_company_slot_and_order(count: int, threads: int) -> None:
    """Sequences of unequal length, with template updates."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        track = GOLDEN_TRACKS[3]
        model, settings = model_of(track), settings_of(track)
        videos = [
            [smooth(180, 240, number + 0.5 * frame) for frame in range(13 - 2 * (number % 3))]
            for number in range(count)
        ]
        together = tracked(model, settings, videos, list(range(count)), count)
        assert [len(boxes) for boxes in together] == [len(video) - 1 for video in videos]
        assert tracked(model, settings, videos, list(range(count))[::-1], count) == together
        for number, video in enumerate(videos):
            assert tracked(model, settings, [video], [(number + 1) % count], count) == [together[number]]
    finally:
        torch.set_num_threads(before)


def test_a_slot_that_is_freed_takes_the_next_sequence() -> None:
    track = GOLDEN_TRACKS[0]
    model, settings, frames = model_of(track), settings_of(track), frames_of(track)[:8]
    tracker = BatchTracker(model, settings, slots=2)
    tracker.start(0, frames[0], track["init"])
    first = [tracker.track({0: frame})[0] for frame in frames[1:]]
    tracker.stop(0)
    assert tracker.running == frozenset()
    tracker.start(0, frames[0], track["init"])
    assert [tracker.track({0: frame})[0] for frame in frames[1:]] == first


def test_bgr_frames_are_taken_for_what_they_are() -> None:
    track = GOLDEN_TRACKS[0]
    frames = frames_of(track)[:4]
    results = []
    for bgr in (False, True):
        tracker = Tracker(model_of(track), settings_of(track))
        given = [frame[..., ::-1] if bgr else frame for frame in frames]
        tracker.initialize(given[0], track["init"], bgr=bgr)
        results.append([tracker.track(frame, bgr=bgr) for frame in given[1:]])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((10, 10), np.uint8), r"a frame of shape \(10, 10\) and type uint8: frames are \(height, width, 3\)"),
        (np.zeros((10, 10, 3), np.float32), "type float32"),
        (np.zeros((10, 10, 4), np.uint8), r"shape \(10, 10, 4\)"),
        (np.zeros((0, 10, 3), np.uint8), r"shape \(0, 10, 3\)"),
    ],
)
def test_what_is_no_frame_is_refused(frame: np.ndarray, message: str) -> None:
    tracker = Tracker(model_of(GOLDEN_TRACKS[0]), settings_of(GOLDEN_TRACKS[0]))
    with pytest.raises(TrackerInputError, match=message):
        tracker.initialize(frame, (1, 1, 5, 5))


def test_a_tracker_without_a_target_says_so() -> None:
    with pytest.raises(TrackerInputError, match=r"track\(\) before initialize\(\)"):
        Tracker(model_of(GOLDEN_TRACKS[0]), settings_of(GOLDEN_TRACKS[0])).track(np.zeros((10, 10, 3), np.uint8))


def test_a_tracker_is_set_up_as_its_model_was_trained() -> None:
    b256 = TrackerSettings.from_config(load_config("seqtrack_b256"), "LASOT")
    assert (b256.search_size, b256.num_templates, b256.window, b256.update_interval) == (256, 2, True, 450)
    demo = TrackerSettings.from_config(load_config("demo"))
    assert (demo.search_size, demo.template_size, demo.num_templates) == (64, 64, 2)
