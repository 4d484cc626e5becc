"""Loads settings from YAML files, from recipes by name, and from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from seqtrack.config.config import Config, ConfigError, parse_config
from seqtrack.errors import did_you_mean
from seqtrack.locations import is_uri


class _YamlLoader(yaml.SafeLoader):
    """Reads the floats of YAML 1.2 as well: PyYAML alone reads `1e-4` as a string."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file (None: all defaults) and applies `KEY=VALUE` overrides, whose values are YAML too.

    `path`: a file, a URI, or the name of a recipe, such as `demo`. Raises ConfigError naming the file (or the command
    line), the key and the nearest known key.
    """
    config = Config() if path is None else parse_config(read_yaml(find_recipe(path)), str(path))
    return with_overrides(config, overrides)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A checked copy with `KEY=VALUE` overrides applied, whose values are YAML."""
    return config.with_settings(dict(map(_parse_override, overrides)), source="command line")


def load_settings(text: str, source: str) -> Config:
    """Settings from YAML text; `source` is named in errors."""
    return parse_config(_parse_yaml(text, source), source)


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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The values of a YAML file, on this machine or in an object store. Raises ConfigError naming it."""
    location = str(path)
    try:
        text = _read_uri(location) if is_uri(location) else Path(location).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return _parse_yaml(text, location)


def _read_uri(uri: str) -> str:
    from pyarrow import ArrowException, fs  # imported only when needed: it takes a quarter of a second

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        with filesystem.open_input_stream(path) as file:
            return str(file.read().decode())
    except ArrowException as error:
        raise OSError(str(error)) from error


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_YamlLoader) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: holds {type(values).__name__}, not settings")
    return values


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} is not of the form KEY=VALUE")
    try:
        return key, yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
