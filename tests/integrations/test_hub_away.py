"""A Hub that is away is said at once, and what was fetched earlier is used; one that stumbles is asked again."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from seqtrack import hub_files
from seqtrack.address import find
from seqtrack.config import parse_config
from seqtrack.errors import InputError
from seqtrack.hub_files import fetch_file, make_api
from seqtrack.integrations.archives import list_files
from seqtrack.model import weights
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.weights import starting_weights
from seqtrack.runs.checkpoint import find_checkpoint
from seqtrack.sums import checkpoint_name
from tests.integrations.hub_runs import REPO, hub_server, tiny, written
from tests.integrations.hub_server import Fault, HubServer
from tests.settings import make_tiny_settings


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with a model and its checkpoints, which waits for nothing."""
    monkeypatch.setattr(hub_files, "PAUSE", 0.0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setitem(weights.HUB_ENCODERS, ("vit_demo_patch16", "mae"), REPO)
    folder = Path(written().name)
    files = {
        f"checkpoints/{name}/{path.name}": path.read_bytes()
        for name in map(checkpoint_name, (1, 2), (0, 0))
        for path in (folder / name).iterdir()
    }
    files["model.safetensors"] = files["checkpoints/checkpoint_epoch_0001/model.safetensors"]
    files["config.yaml"] = tiny().to_yaml().encode()
    close_session()
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        server.add(REPO, files)
        server.add("someone/lasot", {"coin.zip": b"PK"}, kind="datasets")
        yield server
    close_session()


def encoder() -> None:
    settings = make_tiny_settings(Path("lasot"), Path("runs"))
    settings["MODEL"]["ENCODER"]["PRETRAIN_TYPE"] = "mae"
    starting_weights(parse_config(settings, "tiny"))


FETCHERS: dict[str, Callable[[], object]] = {
    "encoder": encoder,
    "from_pretrained": lambda: SeqTrack.from_pretrained(REPO),
    "checkpoint": lambda: find_checkpoint(f"hf://{REPO}/latest"),
    "model": lambda: find(f"hf://{REPO}"),
    "data set": lambda: list_files(make_api(), "someone/lasot"),
}


@pytest.fixture
def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("fetcher", FETCHERS)
@pytest.mark.parametrize("away", ["nobody listens", "no such host", "offline"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(
    fetcher: str, away: str, server: HubServer, nowhere: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    if away == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_ENDPOINT", nowhere if away == "nobody listens" else "http://nowhere.invalid")
    with pytest.raises(Exception, match=r"refused|Name or service|name resolution|offline mode is enabled") as error:
        FETCHERS[fetcher]()
    assert isinstance(error.value, InputError) or fetcher == "data set"
    assert "\n" not in str(error.value)
    assert not server.requests and not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fetcher", FETCHERS)
@pytest.mark.parametrize(("kind", "asked"), [(503, 2), (429, 2), ("stall", 1), ("drop", 1), (404, 1), (401, 1)])
def test_a_hub_that_does_not_work_is_asked_once_or_twice(
    fetcher: str, kind: int | str, asked: int, server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.append(Fault("", kind, times=10_000, seconds=2))
    with pytest.raises(Exception):  # noqa: B017 - of whatever type, that the Hub does not work
        FETCHERS[fetcher]()
    assert len(server.requests) == asked
    assert "etrying" not in caplog.text


@pytest.mark.parametrize("fetcher", ["encoder", "from_pretrained", "checkpoint"])
@pytest.mark.parametrize("kind", [503, "drop", "offline"])
def test_what_was_fetched_earlier_is_used_with_a_line_when_the_hub_is_away(
    fetcher: str, kind: int | str, server: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = FETCHERS[fetcher] if fetcher != "encoder" else lambda: fetch_file(REPO, "model.safetensors")
    fetch()
    if kind == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        server.faults.append(Fault("", kind, times=10_000))
    with caplog.at_level(logging.WARNING, "seqtrack"):
        fetch()
    (record,) = [record for record in caplog.records if record.name.startswith("seqtrack")]
    assert "the Hub cannot be reached (" in record.message and "what was fetched earlier is used" in record.message


@pytest.mark.parametrize("fetcher", ["from_pretrained", "checkpoint"])
@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("GET /api/models", 503), ("GET .*/resolve/.*model.safetensors", "half"), ("HEAD .*/resolve/", 429)],
)
def test_a_fault_that_passes_stops_no_download(
    fetcher: str, pattern: str, kind: int | str, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.faults.append(Fault(pattern, kind))
    FETCHERS[fetcher]()
    assert server.faults[0].times == 0, "the fault was never met"


def test_a_checkpoint_that_was_not_fetched_is_not_made_up(server: HubServer) -> None:
    find_checkpoint(f"hf://{REPO}/1")
    server.faults.append(Fault("", 503, times=10_000))
    assert find_checkpoint(f"hf://{REPO}/latest").name == checkpoint_name(1, 0), "the newest that is here"
    with pytest.raises(InputError, match="no checkpoint_epoch_0002 there, but checkpoint_epoch_0001"):
        find_checkpoint(f"hf://{REPO}/2")


def test_a_firewall_that_swallows_connections_is_not_waited_for(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog that is full takes no further connection, as a firewall without an answer."""
    monkeypatch.setattr(hub_files, "SECONDS_TO_CONNECT", 0.2)
    with socket.socket() as listening, socket.socket() as waiting, socket.socket() as another:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for one in (waiting, another):
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(InputError, match=r"ConnectTimeout|timed out"):
            find(f"hf://{REPO}")
