from __future__ import annotations

import pytest

from seqtrack.training.meters import EpochMeter, log_line, sets_line, summary_line


def test_averages_are_over_all_steps_so_far() -> None:
    meter = EpochMeter(seconds=2.0, wait_seconds=0.5)
    meter.add(4.0, 0.1, 1.0)
    meter.add(2.0, 0.3, 3.0)
    assert meter.averages(batch_size=8) == pytest.approx(
        {
            "loss": 3.0,
            "iou": 0.2,
            "accuracy": 20.0,
            "grad_norm": 2.0,
            "samples_per_second": 8.0,
            "data_wait_fraction": 0.25,
        }
    )


def test_a_saved_meter_goes_on_exactly() -> None:
    whole, first = EpochMeter(), EpochMeter()
    values = [(0.1 * i, 0.01 * i, 0.7 * i) for i in range(10)]
    for value in values:
        whole.add(*value)
    for value in values[:4]:
        first.add(*value)
    second = EpochMeter(**first.state_dict())
    for value in values[4:]:
        second.add(*value)
    assert second == whole


def test_the_log_line_is_the_published_one() -> None:
    meter = EpochMeter(steps=9, loss=9 * 8.29423, iou=9 * 0.02827, seconds=61.4)
    assert log_line(1, 108, 27040, 108, 61.2, meter) == (
        "Epoch 1 : 108 / 27040 samples , time for last 108 samples : 0:01:01 , time since beginning : 0:01:01 , "
        "time left to finish epoch : 4:15:11 , Loss/total: 8.29423, IoU: 0.02827, Accuracy: 2.83%"
    )


def test_an_epoch_is_summed_up_in_one_line() -> None:
    meter = EpochMeter(steps=2, loss=6.0, iou=0.5, seconds=10.0, wait_seconds=0.5)
    assert summary_line(3, 10, meter.averages(32), meter.seconds) == (
        "Epoch 3 of 10 done in 0:00:10 : loss 3.00000, IoU 0.25000, accuracy 25.00%, 6.4 samples/s, "
        "waited for data 5.0% of the time"
    )


def test_a_set_has_the_average_over_its_own_samples() -> None:
    meter = EpochMeter()
    for share, loss, iou in ((0.25, 1.0, 0.1), (0.75, 2.0, 0.2)):
        meter.add_sets(["LASOT", "COCO17", "TRACKINGNET"], [share, loss, iou, 1 - share, 3.0, 0.0, 0.0, 0.0, 0.0])
    found = meter.of_sets(batch_size=4)
    assert (found["samples_LASOT"], found["loss_LASOT"], found["iou_LASOT"]) == (4, 3.0, pytest.approx(0.3))
    assert (found["samples_COCO17"], found["loss_COCO17"]) == (4, 6.0)
    assert found["samples_TRACKINGNET"] == 0 and "loss_TRACKINGNET" not in found
    assert sets_line(2, meter.sets, found) == (
        "Epoch 2 : samples 4 of LASOT (loss 3.00000, IoU 0.30000), 4 of COCO17 (loss 6.00000, IoU 0.00000), "
        "0 of TRACKINGNET"
    )
    assert EpochMeter(**meter.state_dict()) == meter
