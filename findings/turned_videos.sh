#!/usr/bin/env bash
# Phones note in a display matrix how a video is to be shown: turned, or mirrored (front cameras). What do readers
# do?
#
# Guessed: decord gives three channels whatever the matrix; OpenCV leaves a mirrored video as it is stored; both of
# imageio's plugins show the same.
# Seen (decord 0.6.0, opencv-python-headless 4.14.0.94, imageio 2.38.1, PyAV 18.1.0; FFmpeg of imageio-ffmpeg
# 0.8.1):
# - decord turns by 90 degrees, and where the rows then have padding, the array has four "channels": they are the
#   padded rows of three-channel pixels (64 bytes are a multiple of the padding: rows of 48 pixels have 192 bytes
#   instead of 144).
# - A matrix that mirrors left and right: OpenCV and decord turn the picture by 180 degrees instead, so that it is
#   upside down. PyAV's frame.rotation is -180 for it, and 0 for one that mirrors top and bottom.
# - imageio's plugin "FFMPEG" turns the picture; its plugin "pyav" gives it as it is stored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check decord==0.6.0 opencv-python-headless==4.14.0.94 imageio==2.38.1 \
    av==18.1.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
ffmpeg=$(venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')
"$ffmpeg" -v error -f lavfi -i testsrc2=size=64x48:rate=10:duration=1 -c:v libx264 -pix_fmt yuv420p plain.mp4
"$ffmpeg" -v error -display_rotation 90 -i plain.mp4 -c copy turned.mp4
"$ffmpeg" -v error -display_hflip -i plain.mp4 -c copy left_right.mp4
"$ffmpeg" -v error -display_vflip -i plain.mp4 -c copy top_bottom.mp4
venv/bin/python - <<'PYTHON'
import av, cv2, decord, imageio.v3 as imageio, numpy as np

def rotation(path):
    with av.open(path) as container:
        return next(container.decode(video=0)).rotation

def opencv(path):
    return cv2.VideoCapture(path).read()[1][..., ::-1]

def same(one, other):
    return np.abs(one.astype(int) - other).mean() < 3

stored, turned = opencv("plain.mp4"), decord.VideoReader("turned.mp4")[0].asnumpy()
print("decord, turned by 90 degrees:", turned.shape)
assert turned.shape == (64, 48, 4)
assert same(turned.reshape(64, 192)[:, :144].reshape(64, 48, 3), opencv("turned.mp4"))

for name, read in (("OpenCV", opencv), ("decord", lambda path: decord.VideoReader(path)[0].asnumpy())):
    picture = read("left_right.mp4")
    print(f"{name}, mirrored left and right: turned by 180 degrees: {same(picture, stored[::-1, ::-1])}")
    assert same(picture, stored[::-1, ::-1]) and not same(picture, stored[:, ::-1])
print("PyAV's rotation:", rotation("left_right.mp4"), "and", rotation("top_bottom.mp4"))
assert abs(rotation("left_right.mp4")) == 180 and rotation("top_bottom.mp4") == 0

shapes = {plugin: imageio.imread("turned.mp4", plugin=plugin, index=0).shape for plugin in ("pyav", "FFMPEG")}
print("imageio, turned by 90 degrees:", shapes)
assert shapes == {"pyav": (48, 64, 3), "FFMPEG": (64, 48, 3)}
PYTHON
