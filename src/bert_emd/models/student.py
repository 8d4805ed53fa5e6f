"""Building the student: from the teacher's layers, from a checkpoint, or fresh."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, set_seed

from bert_emd.errors import UserError
from bert_emd.models.labels import label_names, set_labels
from bert_emd.models.loading import LoadReport, load_classifier, load_config, load_encoder

__all__ = ["BuiltStudent", "StudentShape", "build_student", "spread_layers"]

# Names of a size where an architecture's configuration does not map the usual one onto its own.
_SIZE_NAMES = {"distilbert": {"intermediate_size": "hidden_dim"}}


@dataclass(frozen=True, kw_only=True)
class StudentShape:
    """What the user asked for; None leaves it as in the teacher (layers: half of them)."""

    layers: int | None = None
    layer_ids: Sequence[int] | None = None
    """Teacher layers, counted from 1."""
    init: str = "spread"
    """spread, first, last or fresh."""
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The other sizes than the depth that were asked for; any of them implies fresh weights."""
        names = ("hidden_size", "num_attention_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class BuiltStudent:
    """A student and one line on where its weights came from."""

    model: PreTrainedModel
    origin: str
    layer_ids: list[int] | None = None
    """The teacher layers copied, counted from 1; None where none were."""


def spread_layers(student: int, teacher: int) -> list[int]:
    """Teacher layers ⌈i·N/M⌉ for i = 1..M, counted from 1.

    >>> spread_layers(3, 6), spread_layers(4, 6)
    ([2, 4, 6], [2, 3, 5, 6])
    """
    return [-(-i * teacher // student) for i in range(1, student + 1)]


def build_student(
    teacher: PreTrainedModel,
    shape: StudentShape,
    *,
    checkpoint: str | None = None,
    fresh: bool = False,
    pretrained: str | None = None,
    seed: int = 42,
    cache_dir: str | None = None,
    head: bool = True,
) -> BuiltStudent:
    """A student for this teacher, with its labels.

    Args:
        teacher: the fine-tuned teacher.
        shape: depth and sizes.
        checkpoint: start from this folder or hub id instead; it brings its own shape.
        fresh: take only the checkpoint's shape; without a head it may then be a configuration file.
        pretrained: copy the layers of this folder or hub id, the encoder that the teacher came from, instead of the
            teacher's.
        seed: for fresh weights.
        cache_dir: where downloads go.
        head: False makes an encoder alone, for a teacher that is one.

    Raises:
        UserError: a depth or layer that the teacher does not have, or a checkpoint from which nothing loads.
    """
    set_seed(seed)
    if checkpoint is not None:
        make = _from_checkpoint if head else _encoder_from_checkpoint
        return make(teacher, checkpoint, fresh=fresh, cache_dir=cache_dir)
    total = teacher.config.num_hidden_layers
    ids = _layer_ids(shape, total)
    config = _config_for(teacher.config, ids)
    if not head:
        _forget_labels(config)
    if shape.sizes:
        _resize(config, shape.sizes)
    try:
        model = (AutoModelForSequenceClassification if head else AutoModel).from_config(config).float()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"a student of this shape cannot be built: {str(error).splitlines()[0]}") from error
    if shape.sizes or shape.init == "fresh":
        why = f" ({', '.join(f'{k} {v}' for k, v in shape.sizes.items())})" if shape.sizes else ""
        return BuiltStudent(model=model, origin=f"student: {len(ids)} layers{why}, all weights fresh (seed {seed})")
    source, source_fresh = teacher, list[str]()
    if pretrained is not None:
        set_seed(seed)  # the same fresh head whatever the student's depth
        source, source_fresh = _pretrained_encoder(teacher, pretrained, cache_dir=cache_dir)
    copied, fresh_names, ignored = _copy_layers(source, model, ids)
    left = f", ignored: {', '.join(ignored)}" if ignored else ""
    numbers = ", ".join(map(str, ids))
    if pretrained is None:
        origin = (
            f"student: {len(ids)} layers copied from teacher layers {numbers}, with embeddings"
            f"{', pooler and head' if head else ' and pooler'} "
            f"({copied} tensors copied, {len(fresh_names)} fresh{left})"
        )
    else:
        new = sorted({*fresh_names, *source_fresh} & model.state_dict().keys())
        origin = (
            f"student: {len(ids)} layers copied from layers {numbers} of the pretrained encoder {pretrained}, with its "
            f"embeddings ({copied + len(fresh_names) - len(new)} tensors copied, fresh with seed {seed}: "
            f"{', '.join(new) or 'none'}{left})"
        )
    return BuiltStudent(model=model, origin=origin, layer_ids=ids)


def _pretrained_encoder(
    teacher: PreTrainedModel, name: str, *, cache_dir: str | None
) -> tuple[PreTrainedModel, list[str]]:
    """The encoder that the teacher came from, with a head for the teacher's labels, and its tensors that are fresh."""
    what = "the pretrained encoder"
    config = load_config(name, what, cache_dir=cache_dir)
    for field in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads"):
        theirs, ours = getattr(config, field), getattr(teacher.config, field)
        if theirs != ours:
            raise UserError(
                f"{what} {name} has {field} {theirs} but the teacher {ours}, so the teacher did not come from it; name "
                "the one that it came from with --pretrained_model"
            )
    set_labels(config, label_names(teacher.config))
    config.problem_type = teacher.config.problem_type or config.problem_type
    model, report = load_classifier(name, what, config=config, cache_dir=cache_dir, may_resize_head=True)
    if report.encoder_fresh:
        raise UserError(
            f"{what} {name} lacks {len(report.encoder_fresh)} weights ({report.encoder_fresh[0]}, …); its config.json "
            "does not fit it"
        )
    return model, report.fresh


def _layer_ids(shape: StudentShape, total: int) -> list[int]:
    if shape.layer_ids is not None:
        ids = list(shape.layer_ids)
        if bad := [i for i in ids if not 1 <= i <= total]:
            raise UserError(f"student_layer_ids names layer {bad[0]}, but the teacher's layers are 1 to {total}")
        if sorted(set(ids)) != ids:
            raise UserError(f"student_layer_ids {','.join(map(str, ids))} must rise without repeating a layer")
        return ids
    layers = shape.layers if shape.layers is not None else max(1, total // 2)
    if layers > total:
        raise UserError(
            f"the student is deeper than the teacher ({layers} layers against {total}); ask for at most {total}"
        )
    if shape.init == "first":
        return list(range(1, layers + 1))
    if shape.init == "last":
        return list(range(total - layers + 1, total + 1))
    return spread_layers(layers, total)


def _config_for(teacher: PretrainedConfig, ids: Sequence[int]) -> PretrainedConfig:
    config = copy.deepcopy(teacher)
    total = teacher.num_hidden_layers
    config.num_hidden_layers = len(ids)
    # ALBERT whose layers do not share weights after all: as many groups as layers, so the groups are chosen with them.
    if getattr(config, "num_hidden_groups", None) == total:
        config.num_hidden_groups = len(ids)
    # Some architectures describe each layer in a list (sliding or full attention, …): the chosen layers' entries.
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total and "layer" in name:
            setattr(config, name, [value[i - 1] for i in ids])
    return config


def _resize(config: PretrainedConfig, sizes: dict[str, int]) -> None:
    own_names = _SIZE_NAMES.get(config.model_type, {})
    for name, value in sizes.items():
        own = own_names.get(name, name)
        if not hasattr(config, own):
            raise UserError(f"a {config.model_type} model has no {name}; leave --student_{name} out")
        setattr(config, own, value)
    if hasattr(config, "pooler_hidden_size"):  # DeBERTa's pooler says its width a second time
        config.pooler_hidden_size = config.hidden_size
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"student_hidden_size {config.hidden_size} is not a multiple of its {config.num_attention_heads} attention "
            "heads; set --student_num_attention_heads to a divisor"
        )


def _copy_layers(
    teacher: PreTrainedModel, student: PreTrainedModel, ids: Sequence[int]
) -> tuple[int, list[str], list[str]]:
    """Copy every tensor of the student from its place in the teacher.

    Returns how many, the student's tensors that the teacher does not have, and the tensors of the chosen teacher
    layers that the student has no place for (ModernBERT's first layer lacks a norm that the others have).
    """
    prefix = _layer_list(teacher)
    source = teacher.state_dict()
    target = student.state_dict()
    pattern = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.") if prefix else None
    weights, fresh = {}, []
    ignored = {name for name in source if not (m := pattern and pattern.match(name)) or int(m[1]) + 1 in ids}
    for name, tensor in target.items():
        match = pattern.match(name) if pattern else None
        origin = f"{prefix}.{ids[int(match[1])] - 1}.{name[match.end() :]}" if match else name
        if origin in source and source[origin].shape == tensor.shape:
            weights[name] = source[origin].clone()
            ignored.discard(origin)
        else:
            fresh.append(name)
    student.load_state_dict(weights, strict=False)
    return len(weights), fresh, sorted(ignored)


def _layer_list(model: PreTrainedModel) -> str | None:
    """The path of the list of transformer blocks, or None where all layers share one block (ALBERT)."""
    total = model.config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total and len({type(m) for m in module}) == 1
    ]
    if not lists:
        return None
    name, _ = max(lists, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
    return str(name)


def _check_labels(checkpoint: str, own: Sequence[str] | None, wanted: Sequence[str] | None) -> None:
    """A head that was trained on other classes, or on the same in another order, must not pass for the teacher's."""
    if own is None or all(re.fullmatch(r"LABEL_\d+", name) for name in own):
        return
    if [_plain(name) for name in own] != [_plain(name) for name in wanted or ()]:
        raise UserError(
            f"the student {checkpoint} has the labels {', '.join(own)} but the teacher "
            f"{', '.join(wanted or ['one number'])}; use a student without a head, or one with the teacher's labels in "
            "the same order"
        )


def _plain(name: str) -> str:
    """The rule of `bert_emd.data.normalise_label`, which this floor may not import; a test holds the two together."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _forget_labels(config: PretrainedConfig) -> None:
    """An encoder alone has no classes; those of its teacher would be taken for its own later."""
    set_labels(config, ["LABEL_0", "LABEL_1"])
    config.problem_type = None


def _check_depth(config: PretrainedConfig, teacher: PreTrainedModel, checkpoint: str) -> None:
    if config.num_hidden_layers > teacher.config.num_hidden_layers:
        raise UserError(
            f"the student {checkpoint} is deeper than the teacher ({config.num_hidden_layers} layers against "
            f"{teacher.config.num_hidden_layers}); choose one with at most as many layers"
        )


def _encoder_from_checkpoint(
    teacher: PreTrainedModel, checkpoint: str, *, fresh: bool, cache_dir: str | None
) -> BuiltStudent:
    config = load_config(checkpoint, "the student", cache_dir=cache_dir, may_be_file=fresh)
    _check_depth(config, teacher, checkpoint)
    _forget_labels(config)
    if fresh:
        try:
            model = AutoModel.from_config(config).float()
        except (ValueError, RuntimeError, TypeError) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"a student of the shape of {checkpoint} cannot be built: {why}") from error
        return BuiltStudent(model=model, origin=f"student: the shape of {checkpoint}, all weights fresh")
    model, report = load_encoder(checkpoint, "the student", config=config, cache_dir=cache_dir)
    return BuiltStudent(model=model, origin=_checked_origin(report, checkpoint))


def _from_checkpoint(teacher: PreTrainedModel, checkpoint: str, *, fresh: bool, cache_dir: str | None) -> BuiltStudent:
    config = load_config(checkpoint, "the student", cache_dir=cache_dir)
    _check_depth(config, teacher, checkpoint)
    _check_labels(checkpoint, label_names(config), label_names(teacher.config))
    set_labels(config, label_names(teacher.config))
    config.problem_type = teacher.config.problem_type or config.problem_type
    if fresh:
        model = AutoModelForSequenceClassification.from_config(config).float()
        return BuiltStudent(model=model, origin=f"student: the shape of {checkpoint}, all weights fresh")
    model, report = load_classifier(checkpoint, "the student", config=config, cache_dir=cache_dir, may_resize_head=True)
    return BuiltStudent(model=model, origin=_checked_origin(report, checkpoint))


def _checked_origin(report: LoadReport, checkpoint: str) -> str:
    """Where a checkpoint's weights went, once all of its encoder is there."""
    if report.encoder_fresh:
        raise UserError(
            f"the student {checkpoint} lacks {len(report.encoder_fresh)} weights of its encoder "
            f"({report.encoder_fresh[0]}, …); its config.json does not fit it"
        )
    parts = [f"{report.loaded} tensors loaded from {checkpoint}"]
    if report.fresh:
        parts.append(f"fresh: {', '.join(report.fresh)}")
    if report.ignored:
        groups = sorted({name.split(".")[0] for name in report.ignored})
        parts.append(f"ignored: {len(report.ignored)} tensors ({', '.join(groups)})")
    return "student: " + "; ".join(parts)
