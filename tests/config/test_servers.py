"""Names and addresses of MLflow and the Hub: what their clients refuse is refused before anything heavy starts."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from seqtrack.config import Config, ConfigError, check_supported, load_config, parse_config
from seqtrack.config.servers import named_store

READY = load_config("demo")
WRONG_STORES = {
    "localhost:5000": "http://localhost:5000 would be right",
    "me:canary@mlflow.example.org:5000/x": "http://mlflow.example.org:5000/x would be right",
    "mlruns": "mlruns/mlflow.db would be right",
    "file:///data/my runs": "sqlite:////data/my runs/mlflow.db would be right",
    "/data/mlflow.db": "sqlite:////data/mlflow.db would be right",
    "http://me:can/ary@host:99999": "Port out of range",
    "http:///": "names no host",
    "http://host:5000/#/experiments/1": "not of the server; http://host:5000 may be right",
    "postgres://host/db": "did you mean postgresql?",
    "postgresql:host": "postgresql://HOST/NAME would be right",
    "mysql://me:canary@host:x/db": "mysql://HOST:PORT/NAME would be right",
    "sqlite://runs.db": "three slashes",
    "sqlite:///:memory:": "would be lost",
    "databricks-uc": "no kind of MLflow store",
    "ftp://host": "http://HOST:PORT for a server",
    "http://one\ntwo": "line break",
}
RIGHT_STORES = (
    *("http://localhost:5000", "HTTPS://me:secret@host/mlflow/", "http://[::1]:5000", "databricks", "databricks://me"),
    *("sqlite:////data/a b/#1/mlflow.db", "sqlite:///mlflow.db", "postgresql+psycopg2://me:p/w@host:1/db"),
    *("postgresql:///db", "mysql+pymysql://host/db"),
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("uri", WRONG_STORES)
def test_a_store_of_the_wrong_form_is_refused_with_what_would_be_right(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as caught:
        check_supported(READY)
    message = str(caught.value)
    assert message.startswith("MLFLOW_TRACKING_URI ") and WRONG_STORES[uri] in message
    assert "can" not in message.replace("cannot", "") and "\n" not in message


def test_a_setting_of_the_wrong_form_is_named_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"^MLFLOW\.TRACKING_URI 'localhost:5000': has no scheme"):
        check_supported(READY.with_settings({"MLFLOW.TRACKING_URI": "localhost:5000"}))


@pytest.mark.parametrize("uri", RIGHT_STORES)
def test_a_store_is_taken_without_the_white_space_around_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f" {uri}\n")
    assert named_store(Config()) == uri
    check_supported(READY)


def test_a_variable_of_white_space_names_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "\n")
    assert named_store(Config()) is None
    assert named_store(Config().with_settings({"MLFLOW.TRACKING_URI": "http://host\n"})) == "http://host"


def test_folders_are_stores_where_mlflow_is_told_to_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert named_store(Config().with_settings({"MLFLOW.TRACKING_URI": "mlruns"})) == "mlruns"


@pytest.mark.parametrize(
    "settings",
    [
        {"MLFLOW.EXPERIMENT": ""},
        {"MLFLOW.EXPERIMENT": "x" * 501},
        {"MLFLOW.RUN_NAME": "x" * 251},
        {"MLFLOW.TAGS": {"": "x"}},
        {"MLFLOW.TAGS": {"a,b": "x"}},
        {"MLFLOW.TAGS": {"a/../b": "x"}},
        {"MLFLOW.TAGS": {"x" * 240: "x"}},
        {"MLFLOW.TAGS": {"mlflow.runName": "x"}},
    ],
)
def test_what_mlflow_would_refuse_is_refused_by_its_setting(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(settings))}: "):
        check_supported(READY.with_settings(settings))


def test_an_experiment_that_the_environment_names_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "x" * 501)
    with pytest.raises(ConfigError, match=r"^MLFLOW_EXPERIMENT_NAME: a name of 1 to 500 characters is needed, not 501"):
        check_supported(READY)


@pytest.mark.parametrize(
    ("repo_id", "hint"),
    [
        ("", ""),
        ("name", ""),
        ("me/my name", ""),
        ("https://huggingface.co/me/x/tree/main", "did you mean me/x?"),
        ("hf://me/x", "did you mean me/x?"),
        ("huggingface.co/me/x", "did you mean me/x?"),
        ("me/x/", "did you mean me/x?"),
        ("me/x\n", "did you mean me/x?"),
        ("models/me/x", "did you mean me/x?"),
        ("me/a--b", ""),
        ("me/a..b", ""),
        ("me/x.git", ""),
        ("me/.x", ""),
        ("me/" + "x" * 97, ""),
        ("mé/x", ""),
    ],
)
def test_a_repository_that_the_client_refuses_is_refused_at_once(repo_id: str, hint: str) -> None:
    if repo_id != "name":  # which the client takes, but no upload can use: a repository belongs to somebody
        with pytest.raises(HFValidationError):
            validate_repo_id(repo_id)
    with pytest.raises(ConfigError, match=r"HUB\.REPO_ID .*: not a repository of the Hub: user/name") as caught:
        check_supported(READY.with_settings({"HUB.REPO_ID": repo_id}))
    assert ("did you mean" in str(caught.value)) == bool(hint) and hint in str(caught.value)


@pytest.mark.parametrize("repo_id", ["me/x", "Some-One_1/seq.track-b256", "me/" + "x" * 96, "1/2", "_a/_b"])
def test_a_repository_that_the_client_takes_is_taken(repo_id: str) -> None:
    validate_repo_id(repo_id)
    check_supported(READY.with_settings({"HUB.REPO_ID": repo_id}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_HUB_ETAG_TIMEOUT", "10s"), ("HF_HUB_DOWNLOAD_TIMEOUT", "-"), ("HF_ENDPOINT", "http://me:canary@host:99999")],
)
def test_variables_that_break_the_import_of_the_client_are_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name} ") as caught:
        check_supported(READY)
    assert "canary" not in str(caught.value)


def test_an_old_run_with_names_that_no_run_may_have_now_can_be_read() -> None:
    old = {"MLFLOW": {"TRACKING_URI": "file:///data/mlruns"}, "HUB": {"REPO_ID": "me/x/"}}
    assert parse_config(old, "config.yaml").HUB.REPO_ID == "me/x/"
