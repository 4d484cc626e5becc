"""Downloads LaSOT classes from a dataset repository of the Hugging Face Hub, which has one zip a class.

A class appears in the tree when it is whole: its zip has the SHA-256 that the Hub says, its annotations can be read,
and every annotated frame is there. A download that was interrupted is continued by the next one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from pyarrow import fs

from seqtrack.config import ConfigError, DataConfig, DataTrainConfig
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.storage import DataError, Root
from seqtrack.errors import did_you_mean
from seqtrack.hub_files import make_api
from seqtrack.integrations.archives import check_archive, check_space, list_files, unpack
from seqtrack.locations import absolute, is_uri
from seqtrack.shown import shown

STAGING = ".fetching"
"""The part of the tree's folder that holds what is not yet whole."""


def fetch(settings: DataConfig, say: Callable[[str], None]) -> None:
    """Downloads classes (TRAIN.CLASSES; all, if it names none) from DOWNLOAD_FROM into the tree ROOT.

    Classes that are there are checked. `say` is given a line for each class. Raises ConfigError; DataError for what the
    Hub does not have, a zip that cannot be used, damaged files or a full disk; OSError and what the Hub's client
    raises, after which another call goes on.
    """
    if settings.ROOT in (None, "synthetic") or is_uri(absolute(settings.ROOT)):
        raise ConfigError(f"DATA.ROOT {settings.ROOT}: not a folder of this machine to download into")
    root = Path(absolute(settings.ROOT))
    api = make_api()
    archives, revision = find_archives(api, settings)
    to_fetch = []
    for name, archive in archives.items():
        if (root / name).exists():
            say(f"{name}: {check_class(root, name)}, there already")
        else:
            to_fetch.append(archive)
    if to_fetch:
        (root / STAGING).mkdir(parents=True, exist_ok=True)
        sizes = [archive.size for archive in to_fetch]
        say(f"{len(sizes)} class{'' if len(sizes) == 1 else 'es'} to fetch, {sum(sizes) / 1e9:.1f} GB")
        check_space(root / STAGING, sizes)
    for archive in to_fetch:
        path = api.hf_hub_download(
            settings.DOWNLOAD_FROM, archive.path, repo_type="dataset", revision=revision, local_dir=root / STAGING
        )
        check_archive(Path(path), archive)
        name = PurePosixPath(archive.path).stem
        unpack(Path(path), root / STAGING, partial(sequence_path, name))
        found = check_class(root / STAGING, name)
        os.sync()  # before the zip goes; in one call, since there are ten thousands of files
        (root / STAGING / name).rename(root / name)
        Path(path).unlink()
        say(f"{name}: {found}")
    shutil.rmtree(root / STAGING, ignore_errors=True)
    say(f"Ready: DATA.ROOT={root}")


def find_archives(api: HfApi, settings: DataConfig) -> tuple[dict[str, RepoFile], str]:
    """class -> its zip, and the repository's revision. Raises DataError for a repository or class that is not there."""
    repo_id = settings.DOWNLOAD_FROM
    files, revision = list_files(api, repo_id)
    there: dict[str, RepoFile] = {}
    for file in files:
        if file.path[-4:] == ".zip":
            name = PurePosixPath(file.path).stem
            if name in there or name.startswith(".") or shown(file.path) != file.path:  # the Hub's client prints it
                raise DataError(f"{repo_id}: {file.path} is not the one zip of a class")
            there[name] = file
    for name in settings.TRAIN.CLASSES:
        if name not in there:
            hint = did_you_mean(name, there) or f"; it has {', '.join(sorted(there)) or 'no zip'}"
            raise DataError(f"DATA.TRAIN.CLASSES: {repo_id} has no {name}.zip{hint}")
    return {name: there[name] for name in settings.TRAIN.CLASSES or sorted(there)}, revision


def sequence_path(name: str, path: PurePosixPath) -> PurePosixPath | None:
    """The path of a file of a class's zip from its class's folder on; None for what belongs to no sequence."""
    starts = [number for number, part in enumerate(path.parts[:-1]) if re.fullmatch(rf"{re.escape(name)}-\d+", part)]
    return PurePosixPath(name, *path.parts[starts[0] :]) if starts else None


def check_class(root: Path, name: str) -> str:
    """Says what a class has. Raises DataError if annotations cannot be read or annotated frames are missing."""
    settings = DataConfig(SPLIT="all", TRAIN=DataTrainConfig(CLASSES=(name,)))
    index = build_index(settings, Root(fs.LocalFileSystem(), str(root)))
    for row, frames in enumerate(index.lengths.tolist()):
        folder = root / Path(index.frame_path(row, 0)).parent
        there = {path.name for path in folder.glob("*.jpg")}
        missing = [name for name in (f"{number:08d}.jpg" for number in range(1, frames + 1)) if name not in there]
        if missing:
            raise DataError(f"{folder}: {len(missing)} of {frames} annotated frames are missing, first {missing[0]}")
    return f"{len(index.names)} sequences, {index.num_frames} frames"
