"""Runs at the start of each Python that has this folder on its path: makes torchvision importable.

A torchvision whose compiled operators do not fit torch registers no operators, and fails where it adds to two of them.
No policy here uses them; with their names known the rest of it works.
"""

import torch

try:
    import torchvision  # noqa: F401  # the import is the question
except RuntimeError:
    _operators = torch.library.Library("torchvision", "DEF")  # undone when it is collected
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
