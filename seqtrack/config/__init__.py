"""Every setting of a run: its type, its default, its meaning, and the checks that need no data."""

from seqtrack.config.config import (
    Config,
    ConfigError,
    key_of,
    parse_config,
    parse_model,
    setting_docs,
    shown,
    shown_key,
)
from seqtrack.config.loading import find_recipe, load_config, load_settings, read_yaml, recipe_names, with_overrides
from seqtrack.config.settings import (
    DataConfig,
    DataTrainConfig,
    PositiveFloat,
    PositiveInt,
    SearchConfig,
    SyntheticConfig,
    TemplateConfig,
    TrainConfig,
)
from seqtrack.config.supported import check_supported
from seqtrack.config.values import kind_of, kind_within
from seqtrack.sums import SETTINGS_FILE

__all__ = [
    "SETTINGS_FILE",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataTrainConfig",
    "PositiveFloat",
    "PositiveInt",
    "SearchConfig",
    "SyntheticConfig",
    "TemplateConfig",
    "TrainConfig",
    "check_supported",
    "find_recipe",
    "key_of",
    "kind_of",
    "kind_within",
    "load_config",
    "load_settings",
    "parse_config",
    "parse_model",
    "read_yaml",
    "recipe_names",
    "setting_docs",
    "shown",
    "shown_key",
    "with_overrides",
]
