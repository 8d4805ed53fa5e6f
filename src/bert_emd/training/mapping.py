"""From the configuration and two models' shapes to the mapping between them."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from bert_emd.errors import UserError
from bert_emd.method import MAPPINGS, Mapping, MappingOptions, build_mapping
from bert_emd.training.config import DistillConfig

__all__ = ["Shape", "make_mapping", "shape_of"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a mapping has to know of a model before it runs."""

    layers: int
    heads: int
    width: int


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape that a model's configuration describes."""
    return Shape(layers=config.num_hidden_layers, heads=config.num_attention_heads, width=config.hidden_size)


def make_mapping(config: DistillConfig, student: Shape, teacher: Shape, *, seed: int | None = None) -> Mapping | None:
    """The mapping that the configuration names; None where it has none (``kd``, ``none``).

    Raises:
        UserError: it cannot be defined for these shapes.
    """
    if config.effective_mapping not in MAPPINGS:
        return None
    try:
        return build_mapping(
            config.effective_mapping,
            MappingOptions(
                num_student=student.layers,
                num_teacher=teacher.layers,
                student_heads=student.heads,
                teacher_heads=teacher.heads,
                student_width=student.width,
                teacher_width=teacher.width,
                attention=config.use_att,
                hidden=config.use_rep,
                embedding=config.use_embedding,
                rule=config.effective_rule,
                T_emd=config.T_emd,
                joint=not config.seperate,
                cost_scale=config.cost_scale,
                state_loss=config.state_loss,
                layer_map=config.layer_map,
                relation_heads=config.relation_heads,
                relation_layer=config.relation_layer,
                seed=config.seed if seed is None else seed,
            ),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
