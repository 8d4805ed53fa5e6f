"""Encoders: loading, tapping, and building students.

What needs PyTorch or Transformers is imported on first use: a download needs neither.
"""

from typing import TYPE_CHECKING

from bert_emd.lazily import first_use
from bert_emd.models.quiet import quiet

if TYPE_CHECKING:
    from bert_emd.models.labels import label_names, set_labels
    from bert_emd.models.loading import (
        LoadReport,
        check_folder,
        has_tokenizer,
        load_classifier,
        load_config,
        load_encoder,
        load_tokenizer,
    )
    from bert_emd.models.sixteen import SixteenBitMatrices
    from bert_emd.models.student import BuiltStudent, StudentShape, build_student, spread_layers
    from bert_emd.models.tap import Tap

__all__ = [
    "BuiltStudent",
    "LoadReport",
    "SixteenBitMatrices",
    "StudentShape",
    "Tap",
    "attach_quick_dropout",
    "build_student",
    "check_folder",
    "has_tokenizer",
    "label_names",
    "load_classifier",
    "load_config",
    "load_encoder",
    "load_tokenizer",
    "quick_dropout",
    "quiet",
    "set_labels",
    "spread_layers",
]

__getattr__ = first_use(__name__, {
    **dict.fromkeys(("label_names", "set_labels"), "labels"),
    **dict.fromkeys(
        ("LoadReport", "check_folder", "has_tokenizer", "load_classifier", "load_config", "load_encoder",
         "load_tokenizer"), "loading",
    ),
    **dict.fromkeys(("attach_quick_dropout", "quick_dropout"), "dropout"),
    "SixteenBitMatrices": "sixteen",
    **dict.fromkeys(("BuiltStudent", "StudentShape", "build_student", "spread_layers"), "student"),
    "Tap": "tap",
})  # fmt: skip
