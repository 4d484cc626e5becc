"""What of the job's environment the processes of a Ray that it starts are not given.

They inherit an environment as it is at Ray's start. What only the job needs, such as the Hub's token and MLflow's
password, then shows in the environments of a dozen processes more, and in whatever these write of theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from seqtrack.failures import holds_password

HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HF_TOKEN_PATH")
"""What the Hub's client reads a token from."""
_SECRET = re.compile(
    r"(^|_)(\w*(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|KEY)S?|PASS|(?<=_)PWD|JWT|PAT|AUTH|AUTHORIZATION|COOKIE|DSN|USERNAME)"
    r"(_|$)",
    re.IGNORECASE,
)
"""Words in the names of variables that hold secrets: `HF_TOKEN`, `MLFLOW_TRACKING_PASSWORD`, `PGPASSWORD`."""
_NEEDED = (
    "AWS_", "AZURE_STORAGE_", "AZURE_CLIENT_", "AZURE_TENANT_", "AZURE_FEDERATED_", "CLOUDSDK_", "GOOGLE_APPLICATION_",
    "HADOOP_", "KRB5", "RAY_",
)  # fmt: skip
"""How the names begin of what Ray itself and the clients of object stores need in every process."""
_PROXY = "_PROXY"


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is one that only the job needs: by its name, or because it is an address with a password.

    Not what object stores need, which workers read from and write to, nor a proxy, which may lie before them.
    """
    if name.upper().startswith(_NEEDED) or name.upper().endswith(_PROXY):
        return False
    return _SECRET.search(name) is not None or holds_password(value)


def secrets_of(environment: Mapping[str, str], keep: Collection[str] = ()) -> list[str]:
    """Names of the variables that Ray's processes are not given. `keep`: those that they need this time."""
    return [name for name, value in environment.items() if name not in keep and is_secret(name, value)]


@contextmanager
def environment_with(changed: Mapping[str, str | None]) -> Iterator[None]:
    """While the block runs, these variables have these values, or, where it is None, are not set.

    Only these get back what they were: what else the block sets, as Ray does, stays.
    """
    before = {name: os.environ.get(name) for name in changed}
    _set(changed)
    try:
        yield
    finally:
        _set(before)


def _set(wanted: Mapping[str, str | None]) -> None:
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
