"""Distil a fine-tuned transformer encoder into a small, fast student (BERT-EMD).

The method's functions, the two things one does (`finetune`, `distill`) and their configuration. Names are imported on
first use, so that ``import bert_emd`` is quick.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from bert_emd.lazily import first_use

if TYPE_CHECKING:
    from bert_emd.errors import UserError
    from bert_emd.method import (
        CostAttention,
        attention_distances,
        hidden_distances,
        prediction_loss,
        transport_plan,
    )
    from bert_emd.studies.compare.config import CompareConfig
    from bert_emd.studies.compare.study import CompareResult, compare
    from bert_emd.studies.sweep.config import SweepConfig
    from bert_emd.studies.sweep.search import SweepResult, sweep
    from bert_emd.training.augment.config import AugmentConfig
    from bert_emd.training.augment.job import AugmentResult, augment
    from bert_emd.training.config import DistillConfig, EvaluateConfig, FinetuneConfig
    from bert_emd.training.convert import ConvertConfig, ConvertResult, convert
    from bert_emd.training.distill import DistillResult, distill
    from bert_emd.training.evaluation import evaluate, predict
    from bert_emd.training.finetune import FinetuneResult, finetune
    from bert_emd.training.general.config import GeneralDistillConfig
    from bert_emd.training.general.job import general_distill
    from bert_emd.training.trainer import DistillTrainer

__all__ = [
    "AugmentConfig",
    "AugmentResult",
    "CompareConfig",
    "CompareResult",
    "ConvertConfig",
    "ConvertResult",
    "CostAttention",
    "DistillConfig",
    "DistillResult",
    "DistillTrainer",
    "EvaluateConfig",
    "FinetuneConfig",
    "FinetuneResult",
    "GeneralDistillConfig",
    "SweepConfig",
    "SweepResult",
    "UserError",
    "attention_distances",
    "augment",
    "compare",
    "convert",
    "distill",
    "evaluate",
    "finetune",
    "general_distill",
    "hidden_distances",
    "predict",
    "prediction_loss",
    "sweep",
    "transport_plan",
]

try:
    __version__ = version("bert-emd")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__getattr__ = first_use(
    __name__,
    {
        "UserError": "errors",
        **dict.fromkeys(
            ("CostAttention", "attention_distances", "hidden_distances", "prediction_loss", "transport_plan"), "method"
        ),
        **dict.fromkeys(("DistillConfig", "EvaluateConfig", "FinetuneConfig"), "training.config"),
        **dict.fromkeys(("ConvertConfig", "ConvertResult", "convert"), "training.convert"),
        **dict.fromkeys(("DistillResult", "distill"), "training.distill"),
        **dict.fromkeys(("FinetuneResult", "finetune"), "training.finetune"),
        "GeneralDistillConfig": "training.general.config",
        "general_distill": "training.general.job",
        **dict.fromkeys(("evaluate", "predict"), "training.evaluation"),
        "DistillTrainer": "training.trainer",
        "CompareConfig": "studies.compare.config",
        **dict.fromkeys(("CompareResult", "compare"), "studies.compare.study"),
        "SweepConfig": "studies.sweep.config",
        "AugmentConfig": "training.augment.config",
        **dict.fromkeys(("AugmentResult", "augment"), "training.augment.job"),
        **dict.fromkeys(("SweepResult", "sweep"), "studies.sweep.search"),
    },
)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
