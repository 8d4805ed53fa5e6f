"""What configurations of several commands have in common, a set of fields each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bert_emd.errors import UserError
from bert_emd.method import MAPPINGS, CostRule, CostScale, StateLoss, layer_map_text
from bert_emd.training.checked import CheckedConfig, opt
from bert_emd.training.host import has_bf16

__all__ = [
    "CLS_LEAVES_OUT",
    "COMMON_CHOICES",
    "DATA",
    "METHOD",
    "OUTPUT",
    "STUDENT",
    "TRAINING",
    "MachineFields",
    "MatchingFields",
    "Schedule",
    "SelectOn",
    "StudentFrom",
    "StudentInit",
    "TrainFields",
]

StudentInit = Literal["spread", "first", "last", "fresh"]
StudentFrom = Literal["teacher", "pretrained"]
Schedule = Literal["one-step", "two-stage"]
Optimizer = Literal["adamw", "bert_adam"]
Scheduler = Literal["linear", "constant", "constant_with_warmup", "cosine", "polynomial"]
SelectOn = Literal["dev", "holdout"]

DATA = "data"
STUDENT = "student"
METHOD = "method"
TRAINING = "training"
OUTPUT = "output"

COMMON_CHOICES: dict[str, Any] = {
    "StudentInit": StudentInit, "StudentFrom": StudentFrom, "Optimizer": Optimizer, "Scheduler": Scheduler,
    "Schedule": Schedule, "CostRule": CostRule, "CostScale": CostScale, "StateLoss": StateLoss, "SelectOn": SelectOn,
}  # fmt: skip

CLS_LEAVES_OUT = frozenset({"use_att", "use_rep", "use_embedding", "cost_scale", "count_padding"})
"""The options that have no part in PKD's loss."""


@dataclass(frozen=True, kw_only=True)
class MachineFields(CheckedConfig):
    """How texts become tokens, and where models run."""

    COMMON_CHOICES: ClassVar[dict[str, Any]] = COMMON_CHOICES

    # fmt: off
    max_seq_length: int = opt(128, "longer inputs are truncated to this many tokens", group=DATA)
    do_lower_case: bool | None = opt(None, "lower-case the text (default: as the tokenizer was saved)", group=DATA)
    cache_dir: str | None = opt(None, "where downloads from the hub are kept", group=DATA)
    eval_batch_size: int = opt(64, "rows a batch in evaluation", group=DATA, aliases=("per_gpu_eval_batch_size", "per_device_eval_batch_size"))
    no_cuda: bool = opt(False, "stay on the CPU even where there is a GPU", group=DATA, aliases=("use_cpu",))
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "eval_batch_size")
        self._at_least(3, "max_seq_length")


@dataclass(frozen=True, kw_only=True)
class TrainFields(MachineFields):
    """How a model is trained, and what becomes of it."""

    # fmt: off
    train_batch_size: int = opt(32, "rows a step and process, over all accumulation steps (the per_gpu and per_device names: rows of one of these)", group=TRAINING, aliases=("per_gpu_train_batch_size", "per_device_train_batch_size"))
    gradient_accumulation_steps: int = opt(1, "split each step's batch into this many parts", group=TRAINING)
    learning_rate: float = opt(5e-5, "the peak learning rate", group=TRAINING)
    num_train_epochs: float = opt(5.0, "passes over the training data", group=TRAINING)
    max_steps: int = opt(-1, "stop after this many steps, whatever num_train_epochs says (-1: no limit)", group=TRAINING)
    lr_scheduler: Scheduler = opt("linear", "the learning rate's course", group=TRAINING, aliases=("lr_scheduler_type",))
    warmup_proportion: float = opt(0.1, "the part of all steps over which the learning rate rises", group=TRAINING, aliases=("warmup_ratio",))
    warmup_steps: int | None = opt(None, "the same in steps; wins over warmup_proportion", group=TRAINING)
    optimizer: Optimizer = opt("adamw", "adamw, or bert_adam: Adam without bias correction, as published", group=TRAINING)
    weight_decay: float = opt(0.01, "decoupled weight decay", group=TRAINING)
    adam_epsilon: float = opt(1e-8, "Adam's epsilon", group=TRAINING)
    max_grad_norm: float = opt(1.0, "gradients are clipped to this norm", group=TRAINING)
    eval_step: int | None = opt(None, "evaluate every so many steps (default: once an epoch)", group=TRAINING, aliases=("eval_steps",))
    bf16: bool | None = opt(None, "train under bfloat16 autocast; reported scores are float32 all the same (default: where the machine is faster with it)", group=TRAINING)
    fp16: bool = opt(False, "train under float16 autocast with loss scaling (GPU)", group=TRAINING)
    torch_compile: bool = opt(False, "compile the models (torch.compile; needs a C++ compiler on a CPU)", group=TRAINING)
    seed: int = opt(42, "seeds the student's fresh weights, the order of the data and dropout", group=TRAINING)
    logging_steps: int = opt(50, "log the losses every so many steps", group=TRAINING)
    save_steps: int | None = opt(None, "write a checkpoint to resume from every so many steps (default: once an epoch)", group=TRAINING)
    trainer_args: dict[str, Any] = opt({}, "further fields of transformers.TrainingArguments", group=TRAINING)
    output_dir: str | None = opt(None, "where the model, its scores and the record of the run go; must be empty", group=OUTPUT)
    overwrite_output_dir: bool = opt(False, "replace the files of an earlier run in output_dir (nothing else in it is touched)", group=OUTPUT)
    resume_from_checkpoint: str | None = opt(None, "go on from the last checkpoint in output_dir (true), or from the one named", group=OUTPUT)
    strict: bool = opt(False, "turn the warnings of the checks before the first step into errors", group=OUTPUT)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "train_batch_size", "gradient_accumulation_steps")
        self._at_least(1, "eval_step", "logging_steps", "save_steps")
        self._at_least(0, "seed", "warmup_steps", "weight_decay")
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2**32, not {self.seed}")
        self._above_zero("learning_rate", "num_train_epochs", "adam_epsilon", "max_grad_norm")
        self._between(0, 1, "warmup_proportion")
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"max_steps must be a positive number or -1, not {self.max_steps}")
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"train_batch_size {self.train_batch_size} cannot be split into "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} equal parts; choose a divisor"
            )
        if self.bf16 and self.fp16:
            raise UserError("bf16 and fp16 exclude each other; keep one")
        if self.bf16 is None:
            object.__setattr__(self, "bf16", not self.fp16 and has_bf16(gpu=not self.no_cuda))


@dataclass(frozen=True, kw_only=True)
class MatchingFields(CheckedConfig):
    """A teacher, the shape of its student, and which layers learn from which."""

    COMMON_CHOICES: ClassVar[dict[str, Any]] = COMMON_CHOICES

    # fmt: off
    teacher_model: str | None = opt(None, "the fine-tuned teacher: a folder or a hub id", group=STUDENT)
    student_model: str | None = opt(None, "start the student from this checkpoint (a folder or a hub id) instead of the teacher's layers", group=STUDENT)
    student_layers: int | None = opt(None, "how many of the teacher's layers the student gets, spread evenly (default: half)", group=STUDENT)
    student_layer_ids: tuple[int, ...] | None = opt(None, "exactly these teacher layers, counted from 1: 1,3,6", group=STUDENT)
    student_init: StudentInit = opt("spread", "which teacher layers are copied: spread, first or last; fresh starts from random weights", group=STUDENT)
    student_hidden_size: int | None = opt(None, "another width than the teacher's; implies fresh weights", group=STUDENT, aliases=("student_width",))
    student_num_attention_heads: int | None = opt(None, "another number of heads; implies fresh weights", group=STUDENT, aliases=("student_heads",))
    student_intermediate_size: int | None = opt(None, "another feed-forward width; implies fresh weights", group=STUDENT, aliases=("student_intermediate",))
    projection: bool = opt(False, "train a projection from student to teacher width even where the widths agree", group=STUDENT)
    share_param: bool = opt(True, "one projection for all layers; false: one a layer", group=STUDENT)

    mapping: str = opt("uniform", f"which layers learn from which: {', '.join(MAPPINGS)}; kd: from the prediction alone; none: no teacher at all", group=METHOD)
    cost_scale: CostScale = opt("absolute", "relative divides each pair's cost by the teacher layer's own mean square, so that one beta means the same on every encoder", group=METHOD)
    state_loss: StateLoss = opt("mse", "what mappings of pairs compare: mse: attention, all hidden states and embeddings; cls: PKD's normalised [CLS] states alone", group=METHOD)
    layer_map: str | None = opt(None, "the pairs of mapping manual, student layer:teacher layer counted from 1: 1:2,2:4,3:6", group=METHOD, read=layer_map_text)
    relation_heads: int | None = opt(None, "into how many heads minilm splits queries, keys and values (default: the teacher's heads where they divide both widths, else the largest number below that does)", group=METHOD)
    relation_layer: int | None = opt(None, "the teacher layer that minilm learns from, counted from 1 (default: the last)", group=METHOD)
    T_emd: float = opt(1.0, "temperature of the layer weights (softmax rules)", group=METHOD)
    rule: CostRule = opt("ratio", "how the layer weights follow the costs: ratio, softmax, double-softmax or fixed", group=METHOD)
    seperate: bool = opt(False, "keep the layer weights of attention and hidden states apart", group=METHOD, aliases=("separate",))
    use_att: bool = opt(True, "match attention scores", group=METHOD)
    use_rep: bool = opt(True, "match hidden states", group=METHOD)
    use_embedding: bool = opt(True, "match embedding outputs", group=METHOD)
    update_weight: bool = opt(True, "false: the layer weights stay uniform (rule fixed)", group=METHOD)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._above_zero("T_emd")
        self._at_least(
            1, "student_layers", "student_hidden_size", "student_num_attention_heads", "student_intermediate_size",
            "relation_heads", "relation_layer",
        )  # fmt: skip

    @property
    def effective_mapping(self) -> str:
        """The mapping that is used in the end."""
        return self.mapping

    @property
    def effective_rule(self) -> CostRule:
        """The rule after ``update_weight``."""
        return self.rule if self.update_weight else "fixed"

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The asked-for sizes other than the depth."""
        return (self.student_hidden_size, self.student_num_attention_heads, self.student_intermediate_size)

    def has_effect(self, name: str) -> bool:
        """Whether an option of mappings concerns the one that is used."""
        mapping = MAPPINGS.get(self.effective_mapping)
        if mapping is None or name not in mapping.uses:
            return False
        states_alone = self.state_loss == "cls" and "state_loss" in mapping.uses
        return not (states_alone and name in CLS_LEAVES_OUT)

    @property
    def matches(self) -> bool:
        """Whether any intermediate loss is left."""
        switches = [getattr(self, name) for name in ("use_att", "use_rep", "use_embedding") if self.has_effect(name)]
        return self.effective_mapping in MAPPINGS and (not switches or any(switches))
