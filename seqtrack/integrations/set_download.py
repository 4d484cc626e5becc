"""Downloads GOT-10k or TrackingNet from a dataset repository of the Hugging Face Hub that has a copy of it.

A copy has zips or plain files in folders of any names: where a file belongs is known from the names of GOT-10k's
videos and of TrackingNet's chunks. What a zip holds appears in the tree when the zip is unpacked as a whole. A download
that was interrupted is continued by the next one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub.hf_api import RepoFile
from pyarrow import fs

from seqtrack.data.datasets import got10k, trackingnet
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.storage import DataError, Root
from seqtrack.errors import InputError
from seqtrack.files import write_atomically
from seqtrack.hub_files import make_api
from seqtrack.integrations.archives import check_archive, check_space, is_there, list_files, unpack
from seqtrack.locations import absolute, is_uri
from seqtrack.shown import shown

STAGING = ".fetching"
"""The part of the tree's folder that holds what is not yet whole."""
DONE = ".fetched"
"""A file there with a line for each zip that was unpacked: its id on the Hub, and its path."""
DOWNLOADS_AT_ONCE = 8

Place = Callable[[PurePosixPath], PurePosixPath | None]


def fetch(name: str, repo_id: str, place: str, setting: str, partial_set: bool, say: Callable[[str], None]) -> None:
    """Downloads the training set `name` from a repository into the folder `place`, and reads its annotations.

    `setting` names the folder in messages. `partial_set`: whether the copy may lack sequences. Raises DataError for
    what the Hub does not have, a zip that cannot be used, a copy that does not fit or a full disk; OSError and what the
    Hub's client raises, after which another call goes on.
    """
    if place == "synthetic" or is_uri(absolute(place)):
        raise InputError(f"{setting} {place}: not a folder of this machine to download into")
    root = Path(absolute(place))
    where = place_got10k if name in got10k.SETS else place_trackingnet
    api = make_api()
    files, revision = list_files(api, repo_id)
    zips = [file for file in files if is_part(where, file.path)]
    placed = [(file, where(PurePosixPath(file.path))) for file in files]
    plain = [(file, root / path) for file, path in placed if path is not None and path.suffix != ".zip"]
    for file in (*zips, *(file for file, _ in plain)):
        if shown(file.path) != file.path:  # the Hub's client would print it
            raise DataError(f"DATA.DOWNLOAD_FROM {repo_id}: {file.path!r} has a character that cannot be seen")
    if not zips and not plain:
        raise DataError(f"DATA.DOWNLOAD_FROM {repo_id}: has no file of {name} (it has {len(files)} files)")
    staging, tree = root / STAGING, root / STAGING / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    done = set((root / DONE).read_text("utf-8").splitlines()) if (root / DONE).exists() else set()
    to_fetch = [file for file in zips if line_of(file) not in done]
    lacking = [(file, path) for file, path in plain if not is_there(path, file.size)]
    sizes = [file.size for file in (*to_fetch, *(file for file, _ in lacking))]
    if sizes:
        say(f"{len(to_fetch)} zips and {len(lacking)} other files to fetch, {sum(sizes) / 1e9:.1f} GB")
        check_space(staging, sizes)

    def download(file: RepoFile) -> Path:
        path = api.hf_hub_download(repo_id, file.path, repo_type="dataset", revision=revision, local_dir=staging)
        check_archive(Path(path), file)
        return Path(path)

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        downloads = pool.map(download, [file for file, _ in lacking])
        for (_, path), found in zip(lacking, downloads, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            found.replace(path)
    for file in to_fetch:
        archive = download(file)
        unpack(archive, tree, partial(place_in, where, PurePosixPath(file.path)), staging)
        for inner in sorted(tree.rglob("*.zip")):
            unpack(inner, tree, partial(place_in, where, PurePosixPath(inner.relative_to(tree))), staging)
            inner.unlink()
        os.sync()  # before the zip goes; in one call, since there may be a million files
        move_into(tree, root)
        done.add(line_of(file))
        write_atomically(fs.LocalFileSystem(), str(root / DONE), "".join(f"{line}\n" for line in sorted(done)))
        archive.unlink()
        say(f"{file.path}: unpacked")
    shutil.rmtree(staging, ignore_errors=True)
    index = open_training_set(name, Root(fs.LocalFileSystem(), str(root)), "error", say, setting, partial_set)
    say(f"{name}: {len(index.names)} sequences, {index.num_frames} frames")
    above, _, key = setting.rpartition(".")
    say(f"Ready: {above}={{{key}: {root}}}")


def is_part(where: Place, path: str) -> bool:
    """Whether a file of the repository is a zip that may hold a part of the training set."""
    name = PurePosixPath(path)
    if name.suffix.lower() != ".zip":
        return False
    if where is place_trackingnet:
        return any(part in trackingnet.CHUNKS for part in name.with_suffix("").parts)
    return not re.search(r"(?:^|[^a-z])(?:test|val)(?:[^a-z]|$)", path.lower())


def line_of(file: RepoFile) -> str:
    return f"{file.blob_id} {file.path}"


def place_in(where: Place, archive: PurePosixPath, path: PurePosixPath) -> PurePosixPath | None:
    """The place of a file of a zip, as if the zip were a folder of its name."""
    return where(archive.with_suffix("") / path)


def place_got10k(path: PurePosixPath) -> PurePosixPath | None:
    """Where a file of a copy of GOT-10k belongs below the root; None for what is not of the training set."""
    *folders, name = path.parts
    videos = [part for part in folders if re.fullmatch(r"GOT-10k_Train_\d+", part)]
    if videos:
        return PurePosixPath(got10k.FOLDER, videos[-1], name)
    train = any("train" in part.lower() for part in folders) and not any("test" in part.lower() for part in folders)
    return PurePosixPath(got10k.LIST) if name == "list.txt" and train else None


def place_trackingnet(path: PurePosixPath) -> PurePosixPath | None:
    """Where a file of a copy of TrackingNet belongs below the root; None for what is not of the training set.

    The zip of a sequence's frames, which chunks may have, gets a place beside them.
    """
    *folders, name = path.parts
    chunks = [number for number, part in enumerate(folders) if part in trackingnet.CHUNKS]
    if not chunks:
        return None
    chunk, inside = folders[chunks[-1]], folders[chunks[-1] + 1 :]
    if inside == ["anno"] and name.endswith(".txt"):
        return PurePosixPath(chunk, "anno", name)
    if inside and name.endswith(".jpg"):
        return PurePosixPath(chunk, "frames", inside[-1], name)
    return PurePosixPath(chunk, "zips", name) if inside and name.endswith(".zip") else None


def move_into(source: Path, target: Path) -> None:
    """Moves what is in a folder into another one. Folders that are not there yet are moved as a whole."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            move_into(entry, place)
            entry.rmdir()
        else:
            target.mkdir(parents=True, exist_ok=True)
            entry.replace(place)
