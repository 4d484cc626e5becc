#!/usr/bin/env bash
# Animated pictures: when is a frame's duration known, and are equal frames kept?
#
# Guessed: after Image.seek the frame's own duration is in `info`, in every format; only GIF joins frames that are
# equal.
# Seen (Pillow 12.3.0):
# - In WebP `info["duration"]` after seek(k) and before load() is that of the frame loaded before. GIF and PNG have
#   the right one.
# - WebP and PNG join equal frames, too: three equal frames become one, whose duration is then 0 in WebP, missing in
#   PNG and the sum in GIF. AVIF keeps all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pillow==12.3.0
venv/bin/python - <<'PYTHON'
from PIL import Image

def write(name, reds, durations):
    first, *others = [Image.new("RGB", (16, 16), (red, 0, 0)) for red in reds]
    first.save(name, save_all=True, append_images=others, duration=durations, lossless=True)

def durations(name):
    """After seek, and after load."""
    found = []
    with Image.open(name) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            before = image.info.get("duration")
            image.load()
            found.append((before, image.info.get("duration")))
    return found

for kind in ("gif", "png", "webp"):
    write(f"three.{kind}", (0, 100, 200), [100, 300, 200])
    print(kind, durations(f"three.{kind}"))
assert durations("three.gif") == durations("three.png") == [(100, 100), (300, 300), (200, 200)]
assert durations("three.webp") == [(None, 100), (100, 300), (300, 200)]

for kind in ("gif", "png", "webp", "avif"):
    write(f"equal.{kind}", (50, 50, 50), [100, 100, 100])
    print(kind, "equal frames:", durations(f"equal.{kind}"))
assert durations("equal.gif") == [(300, 300)] and durations("equal.png") == [(None, None)]
assert durations("equal.webp") == [(None, 0)] and len(durations("equal.avif")) == 3
PYTHON
