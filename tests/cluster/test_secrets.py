"""What Ray's processes are not given of the job's environment."""

from __future__ import annotations

import os

import pytest

from seqtrack.cluster.secrets import HUB_TOKENS, environment_with, is_secret, secrets_of

SECRETS = (
    *HUB_TOKENS,
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN"),
    *("GH_PAT", "PGPASSWORD", "MYSQL_PWD", "OPENAI_API_KEY", "NPM_AUTHTOKEN", "SENTRY_DSN", "DATABRICKS_TOKEN"),
    *("GOOGLE_API_KEY", "SSH_AUTH_SOCK", "DJANGO_SECRETS", "api_key"),
)
NEEDED = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY", "AZURE_CLIENT_SECRET", "RAY_AUTH_TOKEN"),
    *("HADOOP_TOKEN_FILE_LOCATION", "TOKENIZERS_PARALLELISM", "PATH", "PWD", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("NCCL_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SEQTRACK_CACHE", "KEYBOARD", "HF_ENDPOINT"),
)


@pytest.mark.parametrize("name", SECRETS)
def test_what_only_the_job_needs_is_not_passed_on(name: str) -> None:
    assert is_secret(name, "x")


@pytest.mark.parametrize("name", NEEDED)
def test_what_object_stores_ray_and_programs_need_is_passed_on(name: str) -> None:
    assert not is_secret(name, "x")


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("MLFLOW_TRACKING_URI", "https://me:word@mlflow.example.org", True),
        ("DATABASE_URL", "postgresql://me:word@db/x", True),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example.org", False),
        ("HTTPS_PROXY", "http://me:word@proxy:3128", False),
        ("https_proxy", "http://me:word@proxy:3128", False),
    ],
)
def test_an_address_with_a_password_is_a_secret_but_not_a_proxy(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) == secret


def test_what_is_needed_this_time_is_kept() -> None:
    assert secrets_of({"HF_TOKEN": "a", "WANDB_API_KEY": "b"}, keep=HUB_TOKENS) == ["WANDB_API_KEY"]


def test_the_job_gets_back_what_was_hidden_and_keeps_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")
    monkeypatch.delenv("THREE", raising=False)
    monkeypatch.delenv("RAYS", raising=False)
    with pytest.raises(RuntimeError), environment_with({"ONE": None, "TWO": "9", "THREE": "3"}):
        assert [os.environ.get(name) for name in ("ONE", "TWO", "THREE")] == [None, "9", "3"]
        os.environ["RAYS"] = "own"
        raise RuntimeError
    assert [os.environ.get(name) for name in ("ONE", "TWO", "THREE", "RAYS")] == ["1", "2", None, "own"]
    del os.environ["RAYS"]
