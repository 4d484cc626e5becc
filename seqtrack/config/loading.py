"""Loads settings from YAML files, from recipes by name, and from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqtrack.config.config import Config, ConfigError, not_a_setting, parse_config, setting_docs, shown
from seqtrack.config.values import Within, kind_of, kind_within, read_text, read_values
from seqtrack.errors import did_you_mean
from seqtrack.failures import explain
from seqtrack.locations import absolute, is_uri

LARGEST_FILE = 2**20
"""Bytes. A larger file is no settings file, but data or weights."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file (None: all defaults) and applies `KEY=VALUE` overrides.

    `path`: a file, a URI, or the name of a recipe, such as `demo`. Raises ConfigError naming the file (or the command
    line), the key and the nearest known key.
    """
    config = Config() if path is None else parse_config(read_yaml(find_recipe(path)), str(path))
    return with_overrides(config, overrides)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A checked copy with `KEY=VALUE` overrides applied.

    VALUE is text as it stands where the setting is text, and YAML elsewhere.
    """
    return config.with_settings(dict(map(_parse_override, overrides)), source="command line")


def load_settings(text: str, source: str) -> Config:
    """Settings from YAML text; `source` is named in errors."""
    return parse_config(_parse_yaml(text, source, Config, kind_within), source)


def recipe_names(kind: str = "") -> list[str]:
    """Names of the recipes in this package: those for training, or those of another `kind`, such as `sweeps`."""
    return sorted(path.stem for path in (_recipes() / kind).glob("*.yaml"))


def find_recipe(path: str | Path, kind: str = "") -> Path | str:
    """Resolves a recipe's name to its file. A path, a URI, or the name of an existing file is returned unchanged.

    Raises ConfigError listing the recipes if a plain name is not one of them.
    """
    name = str(path)
    if "/" in name or Path(name).suffix or Path(name).is_file():
        return path
    known = recipe_names(kind)
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"{name}: neither a file nor a recipe{hint} (the recipes: {', '.join(known)})")
    return _recipes() / kind / f"{name}.yaml"


def _recipes() -> Path:
    """Folder of the recipes: inside an installed package, beside it in a checkout or a Ray job's working folder."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.with_name("configs")


def read_yaml(path: str | Path, kind: Any = Config, within: Within = kind_within) -> dict[str, Any]:
    """The values of a YAML file that holds a `kind`, on this machine or in an object store.

    Raises ConfigError naming it.
    """
    source = str(path)
    location = absolute(source)
    try:
        content = _read_uri(location) if is_uri(location) else _read_file(location)
        text = "" if len(content) > LARGEST_FILE else content.decode()
    except Exception as error:  # each object store raises its own kinds; ValueError: not UTF-8
        raise ConfigError(f"{source}: cannot be read ({explain(error)})") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{source}: has more than {LARGEST_FILE:,} bytes, so it is no file of settings")
    return _parse_yaml(text, source, kind, within)


def _read_file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(LARGEST_FILE + 1)


def _read_uri(uri: str) -> bytes:
    from pyarrow import fs  # imported only when needed: it takes a quarter of a second

    filesystem, path = fs.FileSystem.from_uri(uri)
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read(LARGEST_FILE + 1))


def _parse_yaml(text: str, source: str, kind: Any, within: Within) -> dict[str, Any]:
    values = read_values(text, source, kind, within)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: holds {type(values).__name__}, not settings")
    return values


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip("."):
        raise ConfigError(f"override {shown(override)} is not of the form KEY=VALUE")
    if override.encode(errors="replace").decode() != override:
        raise ConfigError(f"override {shown(override)}: is no text in UTF-8")
    if any(doc.key.startswith(f"{key}.") for doc in setting_docs()):
        raise not_a_setting(key, "command line")  # a value would reset what it does not name
    return key, read_text(text, f"override {shown(override)}", kind_of(key))
