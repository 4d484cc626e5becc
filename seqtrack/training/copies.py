"""Batches on their way from the host to the device that trains on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqtrack.data.batches import Batches, HostBatch
from seqtrack.training.step import Batch


class Fetched(NamedTuple):
    """A batch, in host memory and on the device, and the seconds that its sender was waited for."""

    host: HostBatch
    on_device: Batch
    waited: float


class DeviceBatches:
    """This rank's batches on its device, in their order; at most one is fetched before it is asked for.

    A GPU copies them in a stream of its own, beside the kernels of the step before.
    """

    def __init__(self, batches: Batches, device: torch.device, clock: Callable[[], float]) -> None:
        self._batches, self._device, self._clock = batches, device, clock
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: Fetched | Exception | None = None

    def next(self) -> Fetched:
        """The next batch. Raises what its sender raises, StopIteration at the end."""
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            raise ahead
        fetched = ahead or self._fetch()
        if self._copying is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._copying)
            for tensor in fetched.on_device:
                tensor.record_stream(computing)  # its memory is not given away before the step has read it
        return fetched

    def fetch_ahead(self) -> None:
        """Fetches the batch that `next` will return. What its sender raises, `next` will raise."""
        try:
            self._ahead = self._fetch()
        except Exception as error:  # of any type: it belongs to the step that needs the batch
            self._ahead = error

    def close(self) -> None:
        self._batches.close()

    def _fetch(self) -> Fetched:
        began = self._clock()
        host = next(self._batches)
        waited = self._clock() - began
        with torch.cuda.stream(self._copying):  # does nothing without a GPU
            return Fetched(host, Batch(*(self._move(getattr(host, name)) for name in Batch._fields)), waited)

    def _move(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.tensor(array)  # a copy, because arrays from the object store are read-only
        # torch keeps pinned memory, and uses it again once the copies from it are done.
        return tensor if self._copying is None else tensor.pin_memory().to(self._device, non_blocking=True)
