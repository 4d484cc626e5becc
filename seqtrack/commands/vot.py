"""Track for the VOT toolkit, which starts this program and speaks TraX with it.

The toolkit's trackers.ini names it: command = seqtrack vot --weights /FOLDER/runs/NAME, with whole paths
(docs/tracking.md). Needs pip install 'seqtrack[vot]'. Does not start Ray.
"""

from __future__ import annotations

import argparse
import os
import sys

from seqtrack.commands.program import ProgramError, add_weights, check_extra, say
from seqtrack.commands.track import add_device, add_max_pixels, pick_device
from seqtrack.errors import InputError

CHALLENGES = ("VOT20", "VOT21", "VOT22")
"""Keys in TEST.UPDATE_INTERVALS and TEST.UPDATE_THRESHOLD."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights(parser)
    parser.add_argument(
        "--challenge", choices=CHALLENGES, default=CHALLENGES[-1],
        help=f"whose settings in TEST.UPDATE_… say when templates are renewed ({CHALLENGES[-1]})",
    )  # fmt: skip
    add_device(parser)
    add_max_pixels(parser)


def run(options: argparse.Namespace) -> int:
    check_extra("vot", "trax")
    import torch

    from seqtrack.model.precision import set_precision
    from seqtrack.tracker.load import load_trained
    from seqtrack.tracker.settings import TrackerSettings
    from seqtrack.tracker.tracker import BatchTracker
    from seqtrack.tracker.vot import SessionError, serve

    device = pick_device(options.device)
    trained = load_trained(options.weights, options.config)
    settings = TrackerSettings.from_config(trained.config, options.challenge)
    set_precision(options.precision, torch.device(device))
    say(f"{trained.source} on {device}", error=True)
    if "TRAX_SOCKET" not in os.environ and sys.stdin is not None and sys.stdin.isatty():
        raise InputError("nobody speaks TraX here: the VOT toolkit starts this program (docs/tracking.md)")
    try:
        serve(
            lambda slots: BatchTracker(trained.model, settings, slots, device, options.precision),
            options.max_pixels or trained.config.DATA.MAX_PIXELS,
        )
    except SessionError as error:
        raise ProgramError(f"the client is gone, or what it sent cannot be read ({error})") from error
    return 0
