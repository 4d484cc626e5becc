"""Zips of a dataset repository of the Hugging Face Hub: listed, checked, and unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from tqdm import tqdm

from seqtrack.data.storage import DataError
from seqtrack.data.zips import check_places, files_in, reading
from seqtrack.hub_files import first_answer
from seqtrack.shown import shown


def list_files(api: HfApi, repo_id: str) -> tuple[list[RepoFile], str]:
    """All files of a dataset repository, and its revision. Raises DataError if there is no such repository."""
    try:
        revision = first_answer(lambda limits: api.dataset_info(repo_id, timeout=limits)).sha
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


def unpack(
    archive: Path, target: Path, place: Callable[[PurePosixPath], PurePosixPath | None], scratch: Path | None = None
) -> None:
    """Unpacks the files of a zip to where `place` puts them below `target`; what it gives no place is left out.

    Files are there whole or not at all, and those that are there with their size are kept. `scratch`: a folder on the
    same disk for a file that is being written (by default `target`). Raises DataError, and nothing is unpacked, for a
    zip that has a member which no honest one has, files that cannot be side by side, or more than the disk can hold;
    OSError.
    """
    with reading(str(archive)), zipfile.ZipFile(archive) as opened:
        planned = plan(archive, opened, target, place)
        lacking = {path: info for path, info in planned.items() if not is_there(path, info.file_size)}
        for info in lacking.values():
            opened.open(info).close()  # reads the member's own head, and raises for what cannot be decompressed
        needed, free = sum(info.file_size for info in lacking.values()), shutil.disk_usage(target).free
        if needed > free:
            raise DataError(
                f"{target}: {needed / 1e9:.1f} GB are needed to unpack {archive.name}, {free / 1e9:.1f} GB are free"
            )
        with (
            tqdm(total=needed, desc=shown(f"Unpacking {archive.stem}"), unit="B", unit_scale=True) as progress,
            tempfile.TemporaryDirectory(prefix=".unpacking-", dir=scratch or target) as folder,
        ):
            for path, info in lacking.items():
                _unpack_file(opened, info, Path(folder, "file"), path)
                left = path.with_name(f"{path.name}.partial")  # by an older version that was killed
                if left not in planned:
                    with suppress(OSError):
                        left.unlink()
                progress.update(info.file_size)


def plan(
    archive: Path, opened: zipfile.ZipFile, target: Path, place: Callable[[PurePosixPath], PurePosixPath | None]
) -> dict[Path, zipfile.ZipInfo]:
    """Which members of a zip become which files. Writes nothing.

    Raises DataError for a member or a place that is not possible.
    """

    def refuse(fault: str) -> DataError:
        return DataError(f"{archive}: {fault}; nothing was unpacked")

    placed = [
        (inside, info)
        for inner, info in files_in(opened.infolist(), refuse).items()
        if not is_of_macos(inner) and (inside := place(inner)) is not None
    ]
    check_places((inside for inside, _ in placed), refuse, folds_case(target))
    for folder in {above for inside, _ in placed for above in inside.parents}:
        if (target / folder).exists() and not (target / folder).is_dir():
            raise refuse(f"{target / folder} is a file, and would be a folder")
    for inside, _ in placed:
        if (target / inside).is_dir():
            raise refuse(f"{target / inside} is a folder, and would be a file")
    return {target / inside: info for inside, info in placed}


def _unpack_file(opened: zipfile.ZipFile, info: zipfile.ZipInfo, partial: Path, path: Path) -> None:
    """Writes a member to `partial`, and then moves it to `path`. Raises BadZipFile for one that is not as it says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(info) as source, partial.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    if (size := partial.stat().st_size) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename!r} has {size} bytes, and should have {info.file_size}")
    partial.replace(path)


def is_of_macos(path: PurePosixPath) -> bool:
    """Whether macOS added this to a zip."""
    return path.parts[0] == "__MACOSX" or path.name.startswith("._")


def folds_case(folder: Path) -> bool:
    """Whether a folder's disk takes `A` and `a` for one name."""
    other = folder.with_name(folder.name.swapcase())
    return other.name != folder.name and other.exists() and other.samefile(folder)


def is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
