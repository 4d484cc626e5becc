from __future__ import annotations

import torch

from seqtrack import boxes


def test_formats_convert_into_each_other() -> None:
    boxes_xywh = torch.tensor([[1.0, 2.0, 4.0, 6.0]])
    boxes_xyxy = boxes.xywh_to_xyxy(boxes_xywh)
    boxes_cxcywh = boxes.xyxy_to_cxcywh(boxes_xyxy)
    assert boxes_xyxy.tolist() == [[1, 2, 5, 8]]
    assert boxes_cxcywh.tolist() == [[3, 5, 4, 6]]
    assert boxes.cxcywh_to_xyxy(boxes_cxcywh).tolist() == [[1, 2, 5, 8]]


def test_iou_is_shared_area_over_joint_area() -> None:
    square = torch.tensor([0.0, 0.0, 2.0, 2.0])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 2.0, 3.0, 3.0]])
    torch.testing.assert_close(boxes.iou(square.expand(3, 4), others), torch.tensor([1.0, 1 / 3, 0.0]))


def test_empty_boxes_do_not_overlap() -> None:
    empty = torch.zeros(1, 4)
    assert boxes.iou(empty, empty).tolist() == [0.0]
