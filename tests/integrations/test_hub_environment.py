"""What environments have for the Hub's client: named in a line, and a reason to stop only where it is required."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from seqtrack import cli
from seqtrack.address import find
from seqtrack.config import Config
from seqtrack.errors import InputError
from seqtrack.hub_files import HubError
from seqtrack.integrations.hub import HubRepo, HubThread
from seqtrack.sums import CheckpointError
from tests.folders import run_at
from tests.integrations.hub_runs import REPO, hub_server, tiny

FAULTS = [
    (
        "HF_ENDPOINT",
        "huggingface.co",
        "HF_ENDPOINT 'huggingface.co' is no address; https://huggingface.co may be right",
    ),
    ("HF_ENDPOINT", "", "HF_ENDPOINT '' is no address; https://huggingface.co may be right"),
    ("HF_ENDPOINT", "me:hf_canary@host:1", "HF_ENDPOINT '…@host:1' is no address; https://host:1 may be right"),
    ("HF_TOKEN", "hf_canary\x0b1", "the token (HF_TOKEN, or `hf auth login`) has letters that no token has"),
    ("HF_TOKEN", "hf_canary_ü", "has letters that no token has; copy it anew"),
    ("HF_TOKEN", "Bearer hf_canary", "has letters that no token has; copy it anew"),
    ("HTTP_PROXY", "proxy:port", "Invalid port: 'port'"),
    ("SSL_CERT_FILE", "/nowhere/file", "there is no such file or folder"),
]
"""A variable, its value, and what is said."""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A Hub with an empty REPO, and a client that is yet to be made, for it reads some variables then."""
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        server.add(REPO, {})
        server.add("someone/lasot", {}, kind="datasets")
        close_session()
        yield
    close_session()


@pytest.fixture
def run(tmp_path: Path) -> tuple[Config, Path]:
    (tmp_path / "tiny").mkdir()
    return tiny(), tmp_path / "tiny"


@pytest.mark.parametrize(("variable", "value", "said"), FAULTS)
def test_an_environment_that_will_not_do_stops_a_training_only_if_the_hub_is_required(
    run: tuple[Config, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
    said: str,
) -> None:
    config, folder = run
    monkeypatch.setenv(variable, value)
    with pytest.raises(HubError, match=re.escape(said)) as caught:
        HubThread(config.with_settings({"HUB.REQUIRED": True}), run_at(folder)).start()
    assert str(caught.value).startswith(f"HUB.REPO_ID {REPO}: ")
    with caplog.at_level(logging.WARNING, "seqtrack"):
        thread = HubThread(config, run_at(folder))
        thread.start()
        thread.close(patience=0)
    assert f"{caught.value}; training goes on, and it is tried again (HUB.REQUIRED=true stops instead)" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.parametrize(("variable", "value", "said"), FAULTS)
def test_an_environment_that_will_not_do_is_said_of_what_was_to_be_fetched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CheckpointError, match=rf"hf://{REPO}/latest: .*{re.escape(said)}") as caught:
        find(f"hf://{REPO}/latest")
    assert cli.main(["fetch-lasot", f"DATA.ROOT={tmp_path}/lasot", "DATA.DOWNLOAD_FROM=someone/lasot"]) != 0
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told
    assert "canary" not in str(caught.value) + told


def test_a_client_that_is_told_to_stay_offline_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = "offline mode is enabled.*HF_HUB_OFFLINE"
    with pytest.raises(HubError, match=offline):
        HubRepo(REPO).prepare(private=True)
    with pytest.raises(CheckpointError, match=offline):
        find(f"hf://{REPO}")
    assert cli.main(["fetch-lasot", f"DATA.ROOT={tmp_path}/lasot", "DATA.DOWNLOAD_FROM=someone/lasot"]) == 1
    assert re.match(f"error: .*{offline}", capsys.readouterr().err)


@pytest.mark.parametrize(
    "location",
    ["hf://me", "hf://", "hf://https://huggingface.co/me/x", "hf://me/my name/latest", "hf://me/a--b/latest"],
)
def test_a_checkpoint_of_what_is_no_repository_is_refused(location: str) -> None:
    with pytest.raises(InputError, match=f"{location}: .*not a repository of the Hub: user/name"):
        find(location)
