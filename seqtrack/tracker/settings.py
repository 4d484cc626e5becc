"""What a tracker is set to: crops, window, templates and when they are renewed."""

from __future__ import annotations

from dataclasses import dataclass

from seqtrack.config import Config
from seqtrack.tokens import SeqFormat


@dataclass(frozen=True)
class TrackerSettings:
    """Settings of online tracking. Those of the model are in the model."""

    search_size: int
    """Side of the search crop in pixels, as in training."""
    search_factor: float
    """Side of the square that is cut out, as a multiple of the target's size sqrt(w·h)."""
    template_size: int
    template_factor: float
    num_templates: int
    """Templates that are kept: the first frame's, which always stays, and the newest ones."""
    window: bool
    """Whether the centre tokens are weighted by a Hanning window."""
    update_interval: int
    """Frames between two tries to renew a template."""
    update_threshold: float
    """Confidence above which such a try succeeds."""
    bins: int
    seq_format: SeqFormat
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_config(cls, config: Config, benchmark: str = "DEFAULT") -> TrackerSettings:
        """The settings of section TEST. `benchmark`: the key in UPDATE_INTERVALS and UPDATE_THRESHOLD, if it has one.

        Sizes are those of the model's crops in training. A section TEST for other sizes, such as its defaults in the
        settings of a small model, is not meant for this model; then DATA's factors and number of templates hold.
        """
        test, data = config.TEST, config.DATA
        meant = (test.SEARCH_SIZE, test.TEMPLATE_SIZE) == (data.SEARCH.SIZE, data.TEMPLATE.SIZE)
        intervals, thresholds = test.UPDATE_INTERVALS, test.UPDATE_THRESHOLD
        return cls(
            search_size=data.SEARCH.SIZE,
            search_factor=test.SEARCH_FACTOR if meant else data.SEARCH.FACTOR,
            template_size=data.TEMPLATE.SIZE,
            template_factor=test.TEMPLATE_FACTOR if meant else data.TEMPLATE.FACTOR,
            num_templates=test.NUM_TEMPLATES if meant else data.TEMPLATE.NUMBER,
            window=test.WINDOW,
            update_interval=getattr(intervals, benchmark, intervals.DEFAULT),
            update_threshold=getattr(thresholds, benchmark, thresholds.DEFAULT),
            bins=config.MODEL.BINS,
            seq_format=config.DATA.SEQ_FORMAT,
            mean=data.MEAN,
            std=data.STD,
        )
