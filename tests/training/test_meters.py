from __future__ import annotations

import pytest

from seqtrack.training.meters import EpochMeter, log_line, summary_line


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
