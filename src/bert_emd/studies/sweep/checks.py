"""Which space is searched, and what is refused or said about it before anything runs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from bert_emd.data import find_task
from bert_emd.errors import UserError
from bert_emd.models import label_names, load_config
from bert_emd.studies.sweep.config import SweepConfig
from bert_emd.studies.sweep.space import Range, Space, read_space
from bert_emd.training.inputs import RunData, load_run_data
from bert_emd.training.presets import published_values
from bert_emd.training.start import check_start
from bert_emd.training.values import show

__all__ = ["check_models_and_data", "check_space", "idle_options", "planned_trials", "space_of"]

_MOST_COMBINATIONS = 2048
_LARGEST_GRID = 100_000
_DEFAULT_TRIALS = 20
_OF_SHAPES = frozenset({
    "mapping", "use_emd", "pkd", "pred_distill", "student_model", "student_from", "pretrained_model", "layer_map",
    "student_layers", "student_layer_ids", "student_hidden_size", "student_num_attention_heads", "relation_heads",
    "relation_layer",
})  # fmt: skip
"""The options that decide whether a student and its mapping can be made."""


def space_of(config: SweepConfig, file: Mapping[str, Any] | None = None) -> tuple[Space, list[str]]:
    """Return the space that preset, file and configuration make, each winning over the one before, and notes.

    Args:
        config: its ``space`` and ``space_preset`` count.
        file: what ``space_file`` holds.

    Raises:
        UserError: there is nothing to search, or a space that cannot be searched.
    """
    preset = read_space(published_values() if config.space_preset else {}, "space_preset")
    listed = read_space(file or {}, f"{config.space_file}:")
    typed = read_space(config.space)
    found = Space(preset.dimensions | listed.dimensions | typed.dimensions)
    if not found.dimensions:
        raise UserError(
            "what should be searched? Name options with --space learning_rate=1e-5..1e-3:log beta=0.1,1,10, "
            "with --space_file, or with --space_preset paper"
        )
    idle, notes = idle_options(config, found), []
    for name, reason in idle.items():
        if name not in found.dimensions:
            continue
        if name in preset.dimensions and name not in listed.dimensions | typed.dimensions:
            found = found.without(name)
            notes.append(f"{name} is left out of the space: it has no effect ({reason})")
        else:
            raise UserError(f"{name} is searched but has no effect in any trial: {reason}; take it out of the space")
    return found, notes


def idle_options(config: SweepConfig, space: Space) -> dict[str, str]:
    """Options that have no effect in any of the space's trials, each with the reason."""
    idle: dict[str, str] | None = None
    for values in _combinations(space):
        try:
            here = config.trial(values).without_effect()
        except UserError:
            continue  # `check_space` says so
        idle = here if idle is None else {name: idle[name] for name in idle if name in here}
    return idle or {}


def check_space(config: SweepConfig, space: Space) -> None:
    """Refuse a space in which some combination of values is no distillation.

    Every combination of choices and ends of ranges is tried, of a very large space 2,048 of them.

    Raises:
        UserError: naming the values that are refused and why.
    """
    for values in _combinations(space):
        try:
            config.trial(values)
        except UserError as error:
            alone = [name for name in values if not _accepted(config, {name: values[name]})]
            shown = " ".join(f"{name}={show(values[name])}" for name in alone or values)
            raise UserError(f"the space holds {shown}, which is refused: {error}") from None
    if config.sampler != "grid":
        return
    size = space.size()
    if size is None:
        name = next(name for name, dimension in space.dimensions.items() if dimension.values() is None)
        raise UserError(f"sampler grid needs an end of values, and {name} has none; list them, or add :step=N to it")
    if size > _LARGEST_GRID:
        raise UserError(f"a grid of {size:,} combinations has no end; list fewer values, or take sampler random")


def _accepted(config: SweepConfig, values: dict[str, Any]) -> bool:
    try:
        config.trial(values)
    except UserError:
        return False
    return True


def _combinations(space: Space) -> Iterator[dict[str, Any]]:
    names = list(space.dimensions)
    corners = [space.dimensions[name].corners() for name in names]
    if math.prod(map(len, corners)) <= _MOST_COMBINATIONS:
        yield from (dict(zip(names, values, strict=True)) for values in itertools.product(*corners))
        return
    chance = random.Random(0)
    for i in range(_MOST_COMBINATIONS):
        # Each value in turn, so that every one of them comes up, in random company.
        yield {
            name: values[i] if i < len(values) else chance.choice(values)
            for name, values in zip(names, corners, strict=True)
        }


def planned_trials(config: SweepConfig, space: Space) -> int:
    """How many trials there will be: no more than there are combinations."""
    size = space.size()
    wanted = config.n_trials
    if wanted is None:
        wanted = size if size is not None and config.sampler == "grid" else _DEFAULT_TRIALS
    return wanted if size is None else min(wanted, size)


def check_models_and_data(config: SweepConfig, space: Space) -> RunData:
    """Read the teacher's configuration and the data once, as every trial will; returns the data.

    Raises:
        UserError: what every trial would stumble over.
    """
    if not config.teacher_model:
        raise UserError("which teacher? Name its folder or hub id with --teacher_model")
    if config.task_name is not None:
        find_task(config.task_name)
    teacher = load_config(config.teacher_model, "the teacher", cache_dir=config.cache_dir)
    depth = getattr(teacher, "num_hidden_layers", None)
    layers = space.dimensions.get("student_layers")
    deepest = max((n for n in layers.corners() if n is not None), default=0) if layers is not None else 0
    if depth is not None and deepest > depth:
        where = "its upper end" if isinstance(layers, Range) else "one of its values"
        raise UserError(f"--space student_layers: {where} is {deepest}, and the teacher has {depth} layers")
    _check_shapes(config, space)
    names = label_names(teacher)
    base = config.trial(next(_combinations(space)))
    return load_run_data(
        base, None, None, model_names=names, regression=names is None,
        needs_labels=base.needs_labels(regression=names is None), augmented=base.augmented,
    )  # fmt: skip


def _check_shapes(config: SweepConfig, space: Space) -> None:
    """Refuse values that no student of this teacher can have, and mappings that cannot be defined for them."""
    # Numbers from a continuous range have no part in that.
    shapes = Space({name: d for name, d in space.dimensions.items() if not isinstance(d, Range) or d.whole})
    for values in _combinations(shapes):
        trial = config.trial(values)
        try:
            check_start(trial, config.teacher_model, None, trial.student_model)
        except UserError as error:
            shown = " ".join(f"{name}={show(value)}" for name, value in values.items() if name in _OF_SHAPES)
            raise UserError(f"the space holds {shown}, which is refused: {error}" if shown else str(error)) from None
