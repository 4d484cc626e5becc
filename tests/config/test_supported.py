"""What no run can start with is refused in one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqtrack.config import Config, ConfigError, check_supported, load_config
from seqtrack.config.supported import SETS
from seqtrack.data.datasets.catalog import OTHER_SETS

CONFIGS = Path(__file__).parents[2] / "configs"
FOUR = ["LASOT", "GOT10K_vottrain", "COCO17", "TRACKINGNET"]
ROOTS = dict.fromkeys(("LASOT", "GOT10K", "COCO17", "TRACKINGNET"), "/data")


def mixed(names: list[str], **data: Any) -> dict[str, Any]:
    settings = {"TRAIN.DATASETS_NAME": names, "TRAIN.DATASETS_RATIO": [1] * len(names), "ROOT": None} | data
    return {f"DATA.{key}": value for key, value in settings.items()}


def test_every_set_that_settings_can_name_has_a_reader() -> None:
    assert {*SETS} == {"LASOT", *OTHER_SETS}


OTHER_ROOTS = {key: place for key, place in ROOTS.items() if key != "LASOT"}


@pytest.mark.parametrize("data", [{"ROOTS": ROOTS}, {"ROOT": "/data", "ROOTS": OTHER_ROOTS}])
def test_all_published_sets_can_be_named(data: dict[str, Any]) -> None:
    check_supported(Config().with_settings(mixed(FOUR, **data)))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("seqtrack_*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_needs_nothing_but_roots(path: Path) -> None:
    config = load_config(str(path), [])
    with pytest.raises(ConfigError, match=r"(is|are) not set"):
        check_supported(config)
    check_supported(config.with_settings({"DATA.ROOTS": ROOTS}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (mixed(["VID"]), "DATA.TRAIN.DATASETS_NAME: VID cannot be trained on: no published recipe uses it"),
        (mixed(["LASOT", "IMAGENET1K"]), "IMAGENET1K cannot be trained on: no published recipe uses it"),
        (mixed(["COCO"]), "DATA.TRAIN.DATASETS_NAME: no set COCO; did you mean COCO17?"),
        (mixed([]), "DATA.TRAIN.DATASETS_NAME names no set; it can have LASOT, GOT10K_train_full"),
        (mixed(["LASOT", "LASOT"], ROOT="/data"), "DATA.TRAIN.DATASETS_NAME has LASOT 2 times"),
        (mixed(["LASOT"]), "DATA.ROOT is not set: the LaSOT folder or URI, or `synthetic`"),
        (
            mixed(FOUR, ROOTS={"COCO17": "/data"}),
            "DATA.ROOT, DATA.ROOTS.GOT10K_vottrain, DATA.ROOTS.TRACKINGNET are not set: the folder or URI of each",
        ),
        (mixed(["GOT10K_train_full"], ROOT="/data"), "made-up one (DATA.ROOT is only LaSOT's)"),
        (mixed(["LASOT"], ROOT="/data", ROOTS=ROOTS), "DATA.ROOT and DATA.ROOTS.LASOT both say where LaSOT is"),
        (mixed(["LASOT"], ROOT="/data", ROOTS={"COC17": "/d"}), "DATA.ROOTS: no set COC17; did you mean COCO17?"),
        (mixed(["LASOT"], ROOT="/data", PARTIAL=["LASOT"]), "DATA.PARTIAL: LASOT cannot be among them: DATA.SPLIT"),
        (mixed(["COCO17"], ROOTS=ROOTS, PARTIAL=["COCO17"]), "COCO17 cannot be among them: DATA.ON_MISMATCH"),
        (mixed(["LASOT"], ROOT="/data", PARTIAL=["TRACKNET"]), "no set TRACKNET; did you mean TRACKINGNET?"),
        *(
            (
                mixed(["LASOT"], ROOT="/data", SAMPLER_MODE=mode),
                f"DATA.SAMPLER_MODE {mode} is not supported, only order:",
            )
            for mode in ("causal", "interval", "trident", "stark")
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else "",
)
def test_what_no_run_can_start_with_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_supported(Config().with_settings(settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_ratio_for_another_number_of_sets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"DATASETS_RATIO has 3 entries for 1 DATASETS_NAME"):
        Config().with_settings({"DATA.TRAIN.DATASETS_NAME": ["LASOT"], "DATA.TRAIN.DATASETS_RATIO": [1, 1, 1]})


def test_roots_may_change_between_starts_and_sets_and_ratios_may_not() -> None:
    config = Config().with_settings(mixed(FOUR, ROOTS=ROOTS))
    moved = config.with_settings({"DATA.ROOTS": {"LASOT": "/elsewhere"}, "DATA.PARTIAL": ["TRACKINGNET"]})
    assert config.changed_settings(moved) == {}
    other = config.with_settings({"DATA.TRAIN.DATASETS_RATIO": [1, 1, 1, 2]})
    assert list(config.changed_settings(other)) == ["DATA.TRAIN.DATASETS_RATIO"]


def test_a_set_is_at_its_own_root_or_else_at_that_of_its_family() -> None:
    data = Config().with_settings({"DATA.ROOTS": {"GOT10K": "/all", "GOT10K_votval": "/val"}, "DATA.ROOT": "/l"}).DATA
    assert data.place_of("GOT10K_votval") == ("DATA.ROOTS.GOT10K_votval", "/val")
    assert data.place_of("GOT10K_vottrain") == ("DATA.ROOTS.GOT10K", "/all")
    assert data.place_of("LASOT") == ("DATA.ROOT", "/l")
    assert data.place_of("COCO17") == ("DATA.ROOTS.COCO17", None)


@pytest.mark.parametrize("name", ["../x", "a b", "x&y", ".", ""])
def test_a_benchmark_has_a_name_that_a_folder_and_a_metric_can_have(name: str) -> None:
    settings = {"DATA.ROOT": "/data/lasot", "EVAL.BENCHMARKS": {name: "/data/x"}}
    lasot = {"DATA.TRAIN.DATASETS_NAME": ["LASOT"], "DATA.TRAIN.DATASETS_RATIO": [1]}
    config = Config().with_settings(settings | lasot)
    with pytest.raises(ConfigError, match=r"EVAL\.BENCHMARKS .*: a name has letters, digits"):
        check_supported(config)
