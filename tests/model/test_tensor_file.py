"""Files of torch.save give tensors and plain values, run nothing, and need no more memory than their size."""

from __future__ import annotations

import io
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtrack.model.tensor_file import Foreign, read_tensor_file
from tests.readers import attacked, text, unzip, zipped

TENSORS: dict[str, Any] = {
    "float": torch.arange(12.0).reshape(3, 4),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "part": torch.arange(12.0)[3:7],
    "half": torch.ones(3, dtype=torch.float16),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "int": torch.arange(5),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "none": torch.empty(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}
PLAIN = {
    **TENSORS,
    "list": [1, 2.5, "text", None, True, (1, 2)],
    "dict": {1: "a", "b": {"c": -(2**70)}},
    "ordered": OrderedDict(x=1),
    "milestones": Counter({3: 1, 5: 2}),
}


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
def test_the_values_are_those_of_torch_load(tmp_path: Path, archive: bool) -> None:
    torch.save(PLAIN, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    ours = read_tensor_file(tmp_path / "a.pt", only_plain=True)
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert (ours[name].dtype, ours[name].stride()) == (value.dtype, value.stride())
            assert torch.equal(ours[name], value)
        else:
            assert ours[name] == value
    assert type(ours["milestones"]) is Counter


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
def test_tensors_that_share_numbers_still_share_them(tmp_path: Path, archive: bool) -> None:
    numbers = torch.arange(6.0)
    torch.save({"whole": numbers, "part": numbers[2:4]}, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    read = read_tensor_file(tmp_path / "a.pt", only_plain=True)
    read["whole"][2] = 100
    assert read["part"].tolist() == [100, 3]


def save_with(path: Path, change: Callable[[bytes], bytes], content: Any = None) -> Path:
    """Saves with a changed pickle."""
    torch.save({"a": torch.ones(4), "b": 1} if content is None else content, path)
    parts = unzip(path.read_bytes())
    (described,) = (name for name in parts if name.endswith("/data.pkl"))
    path.write_bytes(zipped(parts | {described: change(parts[described])}))
    return path


ATTACKS = [name for name in attacked(b"\x80\x02}q\x00(", Path()) if name != "pickle"]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_runs_in_pythons_unpickler_and_not_here(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    path = save_with(tmp_path / "a.pt", lambda valid: attacked(valid, canary)[name])
    for only_plain in (True, False):
        try:
            read_tensor_file(path, only_plain)
        except pickle.UnpicklingError:
            assert only_plain or name == "INST"
        assert not canary.exists()
    (content,) = (content for name, content in unzip(path.read_bytes()).items() if name.endswith("/data.pkl"))
    with pytest.raises(pickle.UnpicklingError):  # at the first tensor, after the attack
        pickle.loads(content)
    assert canary.exists()


def test_other_objects_are_left_out_or_refused(tmp_path: Path) -> None:
    torch.save({"a": 1, "set": {1, 2}, "path": Path("x"), "module": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    read = read_tensor_file(tmp_path / "a.pt", only_plain=False)
    assert read["a"] == 1
    assert read["module"] == Foreign("torch.nn.modules.linear.Linear")
    assert isinstance(read["set"], Foreign) and isinstance(read["path"], Foreign)
    with pytest.raises(pickle.UnpicklingError, match="neither a tensor nor a plain value"):
        read_tensor_file(tmp_path / "a.pt", only_plain=True)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return change


HUGE = b"\x8a\x08" + (10**15).to_bytes(8, "little")
BEGIN = b"\x80\x02}q\x00("
DAMAGES = {
    "a storage of 10**15 numbers": replaced(b"K\x04tq", HUGE + b"tq"),
    "a storage of fewer numbers": replaced(b"K\x04tq", b"K\x02tq"),
    "a tensor larger than its storage": replaced(b"K\x04\x85", HUGE + b"\x85"),
    "a tensor beyond its storage": replaced(b"K\x00K\x04\x85", b"K\x01K\x04\x85"),
    "a step of 10**15 numbers": replaced(b"K\x01\x85", HUGE + b"\x85"),
    "a negative step": replaced(b"K\x01\x85", b"J\xff\xff\xff\xff\x85"),
    "an object with the number 2**32 - 1": replaced(BEGIN, BEGIN + text("x") + b"}r\xff\xff\xff\xff" + b"R"),
    "a bytearray of 2**40 bytes": replaced(BEGIN, BEGIN + b"\x96" + (2**40).to_bytes(8, "little")),
    "a text of 2**62 bytes": replaced(BEGIN, BEGIN + b"\x8d" + (2**62).to_bytes(8, "little")),
    "a tensor that is made of its size": replaced(BEGIN, BEGIN + text("x") + b"ctorch\nFloatTensor\n(" + HUGE + b"tR"),
    "a bytearray that is made of its size": replaced(
        BEGIN, BEGIN + text("x") + b"cbuiltins\nbytearray\n(" + HUGE + b"tR"
    ),
    "nested tuples as a key": replaced(BEGIN, BEGIN + b")" + b"\x85" * 500_000 + b"N"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_file_claims_is_checked_before_it_is_believed(tmp_path: Path, damage: str) -> None:
    path = save_with(tmp_path / "a.pt", DAMAGES[damage])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception):  # noqa: B017 - of many types; whoever calls it names the file
        read_tensor_file(path, only_plain=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_dict_that_is_named_many_times_is_not_copied_many_times(tmp_path: Path) -> None:
    pairs = b"](" + b"".join(b"(K" + bytes([key % 256]) + b"Nl" for key in range(256)) + b"eq\x01"
    copies = b"".join(b"ccollections\nOrderedDict\nh\x01\x85R" for _ in range(3))
    path = save_with(tmp_path / "a.pt", replaced(BEGIN, BEGIN + text("x") + pairs + b"0](" + copies + b"e"))
    assert [len(copy) for copy in read_tensor_file(path, only_plain=True)["x"]] == [256, 0, 0]


def test_compressed_parts_are_refused_unread(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in unzip((tmp_path / "a.pt").read_bytes()).items():
            bomb.writestr(name, content)
    with pytest.raises(pickle.UnpicklingError, match="is compressed"):
        read_tensor_file(tmp_path / "b.pt", only_plain=False)


def test_a_storage_of_the_older_format_is_not_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    assert b"K\x04N" in content
    (tmp_path / "a.pt").write_bytes(content.replace(b"K\x04N", HUGE + b"N", 1))
    with pytest.raises(pickle.UnpicklingError, match="larger than the file"):
        read_tensor_file(tmp_path / "a.pt", only_plain=True)


def test_a_number_of_the_file_is_not_read_from_elsewhere(tmp_path: Path) -> None:
    """One that is damaged on the disk is noticed: zip archives have checksums."""
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 2001] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read_tensor_file(tmp_path / "a.pt", only_plain=True)


def test_reading_imports_nothing_that_a_file_names(tmp_path: Path) -> None:
    path = save_with(tmp_path / "a.pt", replaced(BEGIN, BEGIN + text("x") + b"cthis\nzen\n"))
    program = (
        "import sys; from pathlib import Path; from seqtrack.model.tensor_file import read_tensor_file; "
        "print(read_tensor_file(Path(sys.argv[1]), False)['b'], 'this' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["1", "False"]


def test_a_stream_of_something_else_is_refused(tmp_path: Path) -> None:
    for content in (b"", pickle.dumps({"a": 1}), io.BytesIO(b"\x80\x02]q\x00.").getvalue() * 5):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises((pickle.UnpicklingError, EOFError)):
            read_tensor_file(tmp_path / "a.pt", only_plain=False)
