"""Tells what a file that should hold weights really is, by its first bytes and, in an archive, by its members."""

from __future__ import annotations

import re
import zipfile
from enum import Enum
from pathlib import Path, PurePosixPath

from seqtrack.files import what_came_instead
from seqtrack.model.tensor_file import DATA, OLD_START, ZIP_START
from seqtrack.sums import MODEL_FILE

START = 512
"""Bytes at the beginning that are looked at."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""How names of files that may hold weights end."""


class Format(Enum):
    """How weights that can be read are stored."""

    SAFETENSORS = "safetensors"
    TORCH = "torch.save"


_BY_START = (
    (b"\x93NUMPY", "is a NumPy array, not weights by name"),
    (b"\x89HDF", "is an HDF5 file (as Keras writes), not weights of PyTorch"),
    (b"GGUF", "is a GGUF file, not weights of PyTorch"),
    (b"%PDF", "is a PDF document, not weights"),
    (b"\x89PNG", "is a picture, not weights"),
    (b"\xff\xd8\xff", "is a picture, not weights"),
    (b"\x1f\x8b", "is compressed by gzip: `gunzip` (or `tar -xzf`) unpacks it"),
    (b"BZh", "is compressed by bzip2: `bunzip2` (or `tar -xjf`) unpacks it"),
    (b"\xfd7zXZ", "is compressed by xz: `unxz` (or `tar -xJf`) unpacks it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: `unzstd` unpacks it"),
    (b"7z\xbc\xaf", "is a 7z archive: `7z x` unpacks it"),
    (b"Rar!", "is a RAR archive: `unrar x` unpacks it"),
    (b"PK\x05\x06", "is an empty zip archive"),
)


def recognize(path: Path) -> Format | str:
    """The format of a file of weights; for any other file what it is, to be put after its name. Raises OSError."""
    size = path.stat().st_size
    if not path.is_file():
        return "is no file, but a device or a pipe"
    with path.open("rb") as file:
        start = file.read(START)
    if (instead := what_came_instead(start)) is not None:
        return instead
    for begin, what in _BY_START:
        if start.startswith(begin):
            return what
    if start.startswith(ZIP_START):
        return _recognize_zip(path)
    if start.startswith(OLD_START):
        return Format.TORCH
    if start[257:262] == b"ustar":
        return "is a tar archive: `tar -xf` unpacks it"
    if start[8:9] == b"{":
        length = int.from_bytes(start[:8], "little")
        return Format.SAFETENSORS if 8 + length <= size else f"is cut off: a safetensors file of more than {size} bytes"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return _recognize_json(path)
    if start[0] == 0x80 and start[1] <= 5:
        return "is a pickle that torch.save did not write, so it cannot be read without running its code"
    if re.match(rb"\x08[\x01-\x20](\x12|\x1a|\x22|\x2a|\x3a|\x42)", start):
        return "is an ONNX model, not weights of PyTorch"
    if OLD_START.startswith(start) or ZIP_START.startswith(start) or size < 9:
        return f"is cut off: {size} bytes are no weights"
    return f"is no file of weights: it begins with {start[:16]!r}"


def describe_folder(folder: Path) -> str:
    """What a folder without `model.safetensors` is, to be put after its name. Raises OSError."""
    names = sorted(entry.name for entry in folder.iterdir())
    if parts := [name for name in names if name.endswith(".index.json")]:
        return f"holds weights in several files, listed in {parts[0]}: one file with all of them is needed"
    if checkpoints := [name for name in names if name.startswith("checkpoint_epoch_")]:
        return f"is a run's folder: one of its checkpoints is needed, such as {folder / checkpoints[-1]}"
    if DATA[1:] in names:
        return "is an unpacked file of torch.save: the file as it was is needed"
    if files := [name for name in names if name.endswith(SUFFIXES)]:
        return f"is a folder without {MODEL_FILE}; it has {', '.join(files[:5])}"
    return f"is a folder without {MODEL_FILE}" + ("" if names else ": it is empty")


def _recognize_zip(path: Path) -> Format | str:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except Exception:  # zipfile passes on errors of many types for a damaged archive
        return "is cut off or damaged: it begins as a file of torch.save (or another zip archive) and has no proper end"
    names = [info.filename for info in infos]
    tops = [name.removesuffix(DATA) for name in names if name.endswith(DATA)]
    if any(PurePosixPath(name).name == "constants.pkl" for name in names):
        return "is a TorchScript archive, which holds a program: save the model's state_dict() with torch.save instead"
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
        return "is a model of torch.export, not weights: save the model's state_dict() with torch.save instead"
    if len(tops) == 1 and "/" not in tops[0]:
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            return "was packed anew by a zip program: the file as torch.save wrote it is needed"
        return Format.TORCH
    names = [name for name in names if not name.startswith("__MACOSX/") and "/." not in f"/{name}"]
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays (.npz), not weights of PyTorch"
    if len(names) == 1:
        return f"is a zip archive around {names[0][:200]}: `unzip` unpacks it"
    shown = ", ".join(name[:60] for name in names[:3])
    return f"is a zip archive of {len(names)} files ({shown}{' …' if len(names) > 3 else ''}), not weights"


def _recognize_json(path: Path) -> str:
    with path.open("rb") as file:
        index = b'"weight_map"' in file.read(1 << 20)
    if index:
        return "is the list of weights in several files, not the weights: one file with all of them is needed"
    return "is a text (JSON), not weights"
