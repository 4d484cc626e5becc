"""Zips of a dataset repository of the Hugging Face Hub: listed, checked, and unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from tqdm import tqdm

from seqtrack.data.storage import DataError
from seqtrack.shown import shown


def list_files(api: HfApi, repo_id: str) -> tuple[list[RepoFile], str]:
    """All files of a dataset repository, and its revision. Raises DataError if there is no such repository."""
    try:
        revision = api.dataset_info(repo_id).sha
        files = list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type="dataset"))
    except RepositoryNotFoundError as error:
        raise DataError(
            f"DATA.DOWNLOAD_FROM {repo_id}: no such dataset repository, or HF_TOKEN may not read it"
        ) from error
    return [file for file in files if isinstance(file, RepoFile)], str(revision)


def check_space(staging: Path, sizes: list[int]) -> None:
    """Raises DataError if the disk cannot hold these zips' contents and, beside them, the largest zip."""
    staged = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    needed, free = sum(sizes) + max(sizes) - staged, shutil.disk_usage(staging).free
    if needed > free:
        raise DataError(f"{staging.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def check_archive(path: Path, archive: RepoFile) -> None:
    """Raises DataError, and removes the file, if it is not what the Hub has."""
    if archive.lfs is None:
        return  # the Hub keeps no SHA-256 of a small file; the zip's own checksums are checked on unpacking
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.lfs.sha256:
        path.unlink()
        raise DataError(f"{path}: SHA-256 {found}, and the Hub's is {archive.lfs.sha256}; removed, to be fetched again")


def unpack(archive: Path, target: Path, place: Callable[[PurePosixPath], PurePosixPath | None]) -> None:
    """Unpacks the files of a zip to where `place` puts them below `target`; what it gives no place is left out.

    Files are there whole or not at all, and those that are there with their size are kept. Raises DataError, and
    nothing is unpacked, for a zip that has a file which would be written elsewhere, or that the disk cannot hold.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [(info, member_path(archive, info)) for info in opened.infolist()]
            places = [(info, place(inner)) for info, inner in members if inner is not None]
            wanted = [(info, target / inside) for info, inside in places if inside is not None]
            lacking = [(info, path) for info, path in wanted if not is_there(path, info.file_size)]
            needed, free = sum(info.file_size for info, _ in lacking), shutil.disk_usage(target).free
            if needed > free:
                raise DataError(
                    f"{target}: {needed / 1e9:.1f} GB are needed to unpack {archive.name}, {free / 1e9:.1f} GB are free"
                )
            with tqdm(total=needed, desc=shown(f"Unpacking {archive.stem}"), unit="B", unit_scale=True) as progress:
                for info, path in lacking:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial = path.with_name(path.name + ".partial")
                    with opened.open(info) as source, partial.open("wb") as sink:
                        shutil.copyfileobj(source, sink)
                    partial.replace(path)
                    progress.update(info.file_size)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error


def member_path(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath | None:
    """The path of a file in a zip; None for a folder, and for what macOS adds.

    Raises DataError for one that would be written elsewhere.
    """
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{archive}: {info.filename!r} points out of its folder; nothing was unpacked")
    return None if info.is_dir() or path.parts[0] == "__MACOSX" or path.name.startswith("._") else path


def is_there(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size
