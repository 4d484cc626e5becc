from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from seqtrack.config import Config, parse_config
from seqtrack.integrations.model_card import model_card
from seqtrack.runs.evaluations import CheckpointScores
from seqtrack.shown import shown
from tests.settings import make_tiny_settings

LASOT = {"sequences": 4, "frames": 1200, "classes": {"coin": {}, "kite": {}}, "fingerprint": "0123"}
MIXTURE = {
    "sequences": 14,
    "frames": 1210,
    "fingerprint": "4567",
    "sets": {
        "GOT10K_vottrain": {"sequences": 4, "frames": 1200, "share": 0.75, "partial": True, "fingerprint": "89"},
        "COCO17": {"sequences": 10, "frames": 10, "share": 0.25, "partial": False, "fingerprint": "ab"},
    },
}


def card_of(dataset: dict[str, Any]) -> ModelCard:
    config: Config = parse_config(make_tiny_settings(Path("lasot"), Path("runs")), "tiny")
    meta = {"dataset": dataset, "history": [], "versions": {"torch": "2", "timm": "1"}}
    return ModelCard(model_card("me/model", config, meta, "checkpoint_epoch_0001", ["checkpoint_epoch_0001"]))


def test_a_card_of_a_model_that_was_trained_on_lasot_names_its_classes() -> None:
    card = card_of(LASOT)
    assert "search 32, trained on LaSOT\n(4 sequences, 1,200 frames; classes: coin, kite).\n\n## " in card.text
    assert "LaSOT's own terms apply to what is trained on it." in card.text
    assert card.data.get("datasets") == ["l-lt/LaSOT"]


def test_a_card_names_each_of_several_training_sets() -> None:
    card = card_of(MIXTURE)
    assert (
        "search 32, trained on\n"
        "GOT10K_vottrain (4 sequences, 1,200 frames, 75 % of the samples, an incomplete copy),\n"
        "COCO17 (10 sequences, 10 frames, 25 % of the samples).\n\n## "
    ) in card.text
    assert "The data sets' own terms apply to what is trained on them." in card.text
    assert card.data.get("datasets") is None


def test_a_card_says_just_what_names_and_settings_are() -> None:
    evil = "<script>|`\n\x1b[31m![](http://x)"
    config = parse_config(make_tiny_settings(Path("```x"), Path("runs")), "tiny")
    meta = {
        "dataset": LASOT | {"classes": {evil: {}}, "fingerprint": evil},
        "history": [],
        "versions": {"torch": evil, "timm": "1"},
        "code_revision": evil,
    }
    scores = CheckpointScores("checkpoint_epoch_0001", 6, evil, "pytracking", 4, 4, {"auc": 1.0})
    card = ModelCard(model_card("me/model", config, meta, "checkpoint_epoch_0001", ["checkpoint_epoch_0001"], [scores]))
    said = r"&lt;script&gt;\|\`\n\x1b[31m![\](http://x)"
    assert f"classes: {said})." in card.text and f"{said}, 4 of 4 sequences, protocol pytracking:" in card.text
    assert r"code revision `<script>|'\n\x1b[31m![](http://x)`, seed" in card.text
    assert all(shown(line) == line for line in card.text.split("\n"))
    assert card.text.count("\n````yaml\n") == 1 and "ROOT: '```x'\n" in card.text
    assert "hf://me/model/checkpoints/checkpoint_epoch_0001" in card.text
