#!/usr/bin/env bash
# A video that was trimmed without encoding it again has more frames in its file than it shows: an edit list hides
# those before the cut. How many frames do readers give?
#
# Guessed: all give the frames that FFmpeg shows, since all are built on FFmpeg.
# Seen (imageio 2.38.1 with PyAV 18.1.0, decord 0.6.0, opencv-python-headless 4.14.0.94; FFmpeg of imageio-ffmpeg
# 0.8.1):
# - PyAV decodes the frames that are shown; `stream.frames` counts the hidden ones as well.
# - imageio.v3.imread(plugin="pyav") returns an array as long as that count. Its end, as long as the hidden part, is
#   black. imageio.v3.imiter gives the frames that are shown.
# - decord's reader has that length, too, and repeats the last frame to fill it.
# - OpenCV says that number, and reads the frames that are shown.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check imageio==2.38.1 av==18.1.0 decord==0.6.0 \
    opencv-python-headless==4.14.0.94 imageio-ffmpeg==0.8.1 numpy==2.4.6
ffmpeg=$(venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')
"$ffmpeg" -v error -f lavfi -i testsrc2=size=160x120:rate=30:duration=4 -c:v libx264 -bf 0 -g 60 -pix_fmt yuv420p whole.mp4
"$ffmpeg" -v error -ss 3 -i whole.mp4 -c copy trimmed.mp4
venv/bin/python - <<'PYTHON'
import av, cv2, decord, imageio.v3 as imageio, numpy as np

with av.open("trimmed.mp4") as container:
    in_file = container.streams.video[0].frames
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
print(f"the file has {in_file} frames and shows {len(shown)}")
assert 0 < len(shown) < in_file

whole = imageio.imread("trimmed.mp4", plugin="pyav")
rest = whole[len(shown) :]
print(f"imageio.imread: {len(whole)} frames; those after {len(shown)} are black: {not rest.any()}")
assert len(whole) == in_file and np.array_equal(whole[: len(shown)], shown) and not rest.any()
assert sum(1 for _ in imageio.imiter("trimmed.mp4", plugin="pyav")) == len(shown)

reader = decord.VideoReader("trimmed.mp4")
last, filled = reader[len(shown) - 1].asnumpy(), reader[in_file - 1].asnumpy()
print(f"decord: {len(reader)} frames; the last is frame {len(shown) - 1} again: {np.array_equal(last, filled)}")
assert len(reader) == in_file and np.array_equal(last, filled)

capture = cv2.VideoCapture("trimmed.mp4")
said, read = capture.get(cv2.CAP_PROP_FRAME_COUNT), sum(1 for _ in iter(lambda: capture.read()[0], False))
print(f"OpenCV: says {said:g}, reads {read}")
assert said == in_file and read == len(shown)
PYTHON
