"""The method: distances, transport, cost attention, mappings and losses. Pure tensors, readable beside the paper."""

from bert_emd.method.cost_attention import CostAttention, CostRule
from bert_emd.method.distances import attention_distances, hidden_distances
from bert_emd.method.features import Features, Needs
from bert_emd.method.mappings import (
    MAPPINGS,
    CostScale,
    Mapping,
    MappingLoss,
    MappingOptions,
    StateLoss,
    build_mapping,
    layer_map_text,
)
from bert_emd.method.prediction import hard_loss, prediction_loss, soft_loss
from bert_emd.method.projected import Projected
from bert_emd.method.scores import Scores, attention_scores
from bert_emd.method.transport import transport_plan

__all__ = [
    "MAPPINGS",
    "CostAttention",
    "CostRule",
    "CostScale",
    "Features",
    "Mapping",
    "MappingLoss",
    "MappingOptions",
    "Needs",
    "Projected",
    "Scores",
    "StateLoss",
    "attention_distances",
    "attention_scores",
    "build_mapping",
    "hard_loss",
    "hidden_distances",
    "layer_map_text",
    "prediction_loss",
    "soft_loss",
    "transport_plan",
]
