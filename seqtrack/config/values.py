"""YAML text -> plain values, each read by the type of its setting.

YAML guesses a word's type by its looks: `2024-01-01` is a date to it, `1_1` a number, `no` a truth value. Here the
setting decides: where it is text, the word stays as it is written.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from seqtrack.config.config import Config, ConfigError, shown
from seqtrack.failures import MOST, explain

Within = Callable[[Any, str], Any]
"""(a type, a key) -> the type of what the key names within a value of that type. `Any` where nothing is known."""

MOST_VALUES = 10_000
"""Most values in a file. A few aliases (`*name`) that refer to each other could stand for any number."""
NULLS = ("", "~", "null", "Null", "NULL")
TAG = "tag:yaml.org,2002:"
SCALARS = tuple(TAG + name for name in ("null", "bool", "int", "float", "str"))


class _Loader(yaml.SafeLoader):
    """What a word means where its setting is no text: as in YAML 1.1, but `1e-4` is a number, and nothing is a date, an
    octal number (`010`) or a number to the base of 60 (`12:30`)."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(TAG + "null", re.compile(rf"^(?:{'|'.join(NULLS)})$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    TAG + "bool", re.compile(r"^(?:yes|no|true|false|on|off)$", re.IGNORECASE), list("yYnNtTfFoO")
)
_Loader.add_implicit_resolver(
    TAG + "int", re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9][0-9_]*|(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(TAG + "merge", re.compile(r"^<<$"), ["<"])


def kind_within(kind: Any, name: str) -> Any:
    """The type of what `name` names within a value of type `kind`: a setting of a section, an entry of a list."""
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option.model_fields[name].annotation if name in option.model_fields else Any
        if get_origin(option) is dict:
            return get_args(option)[1]
        if get_origin(option) in (tuple, list):
            return get_args(option)[0]
    return Any


def kind_of(key: str) -> Any:
    """The type of a setting by its dotted key."""
    kind: Any = Config
    for name in key.split("."):
        kind = kind_within(kind, name)
    return kind


def read_values(text: str, source: str, kind: Any, within: Within = kind_within) -> Any:
    """The value in a YAML document, for a place of type `kind`; None where there is nothing.

    Raises ConfigError naming `source`, and the line where it can.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, source, within).value(node, kind)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({_where_and_what(error)})") from error
    except RecursionError:
        raise ConfigError(f"{source}: lists or sections are nested too deeply for settings") from None


def read_text(text: str, source: str, kind: Any) -> Any:
    """The value of `KEY=VALUE`, for a setting of type `kind`. Text is taken whole, quotes around it taken off.

    Raises ConfigError naming `source`.
    """
    if not _is_text(kind):
        return read_values(text, source, kind)
    if text in NULLS and _may_be_none(kind):
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return str(yaml.safe_load(text))
        except yaml.YAMLError:
            return text
    return text


class _Reader:
    def __init__(self, loader: _Loader, source: str, within: Within) -> None:
        self._loader, self._source, self._within = loader, source, within
        self._left = MOST_VALUES

    def value(self, node: yaml.Node, kind: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConfigError(f"{self._source}: has more than {MOST_VALUES:,} values, aliases followed")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, kind)
        if node.tag not in (TAG + "seq", TAG + "map"):
            raise self._fault(node, f"the tag {shown(node.tag.replace(TAG, '!!'))} makes no setting")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(entry, self._within(kind, "")) for entry in node.value]
        return self._section(node, kind)

    def _section(self, node: yaml.Node, kind: Any) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._fault(key, "a list or a section stands where a name should")
            if key.tag == TAG + "merge":
                for base in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(base, yaml.MappingNode):
                        raise self._fault(base, "<<: takes a section, as <<: *name")
                    merged = self.value(base, kind) | merged
                continue
            if key.value in own:
                raise self._fault(key, f"{shown(key.value)} is set a second time; one of the two has to go")
            own[key.value] = self.value(value, self._within(kind, key.value))
        return merged | own

    def _scalar(self, node: yaml.ScalarNode, kind: Any) -> Any:
        if node.tag not in SCALARS:
            raise self._fault(node, f"the tag {shown(node.tag.replace(TAG, '!!'))} makes no setting")
        if _is_text(kind) and not (node.tag == TAG + "null" and _may_be_none(kind)):
            return node.value
        try:
            return self._loader.construct_object(node)
        except Exception as error:  # a number of 5,000 digits, a tag that does not fit
            raise self._fault(node, f"{shown(node.value)} is no {node.tag.removeprefix(TAG)}") from error

    def _fault(self, node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{self._source}: line {node.start_mark.line + 1}: {what}")


def _where_and_what(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {str(error.problem)[:MOST]}"
    return explain(error)


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type alone; without what Annotated adds."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(option for part in get_args(kind) for option in _options(part))
    return (kind,)


def _is_text(kind: Any) -> bool:
    return any(
        option is str or (get_origin(option) is Literal and isinstance(get_args(option)[0], str))
        for option in _options(kind)
    )


def _may_be_none(kind: Any) -> bool:
    return types.NoneType in _options(kind)
