from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from seqtrack import boxes
from seqtrack.tokens import SeqFormat, boxes_to_tokens, decoder_input, decoder_target, tokens_to_boxes


@pytest.mark.parametrize("seq_format", get_args(SeqFormat))
def test_tokens_are_the_published_ones(golden: Callable[[str], Any], seq_format: SeqFormat) -> None:
    for case in golden("tokens"):
        tokens = boxes_to_tokens(torch.tensor([case["box_xywh"]]), case["bins"], seq_format)
        assert tokens[0].tolist() == case[seq_format]


@pytest.mark.parametrize("seq_format", get_args(SeqFormat))
def test_a_box_comes_back_from_its_tokens_to_within_their_spacing(seq_format: SeqFormat) -> None:
    boxes_xywh = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    back = tokens_to_boxes(boxes_to_tokens(boxes_xywh, 1000, seq_format), 1000, seq_format)
    torch.testing.assert_close(back, boxes.xywh_to_xyxy(boxes_xywh), atol=2 / 999, rtol=0)


def test_a_sentence_opens_with_start_and_closes_with_end() -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert decoder_input(tokens, bins=10).tolist() == [[11, 1, 2, 3, 4]]
    assert decoder_target(tokens, bins=10).tolist() == [[1, 2, 3, 4, 10]]
