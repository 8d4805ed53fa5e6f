"""The configuration of a general distillation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bert_emd.data.corpus import DocumentBreak, is_store
from bert_emd.errors import UserError
from bert_emd.method import MAPPINGS
from bert_emd.training.checked import opt
from bert_emd.training.config import DistillConfig
from bert_emd.training.effects import of_mapping, of_student, of_training
from bert_emd.training.shared import DATA, METHOD, OUTPUT, STUDENT, TRAINING, MatchingFields, TrainFields

__all__ = ["CORPORA", "GeneralDistillConfig"]

CORPORA = ("train_corpus", "dataset_name", "pregenerated_data")
"""The fields of which one says what the corpus is."""

_MASKING = ("masked_lm_prob", "do_whole_word_mask", "max_predictions_per_seq", "epochs_to_generate")
_NO_PREDICTIONS = ("eval_accumulation_steps",)


@dataclass(frozen=True, kw_only=True)
class GeneralDistillConfig(TrainFields, MatchingFields):
    """`bert-emd general-distill`: a small student of a pre-trained encoder, from plain text."""

    CHOICES: ClassVar[dict[str, Any]] = {"DocumentBreak": DocumentBreak}

    # fmt: off
    train_corpus: tuple[str, ...] | None = opt(None, "the corpus: UTF-8 text files (a sentence or paragraph a line, blank lines between documents), Parquet or JSON-lines files, or folders of them, separated by commas", group=DATA, aliases=("corpus",))
    dataset_name: str | None = opt(None, "a data set of the hub as corpus, read as a stream (or a local folder that `datasets` reads); needs max_steps", group=DATA)
    dataset_config_name: str | None = opt(None, "which configuration of it", group=DATA)
    dataset_split: str = opt("train", "which split of it", group=DATA)
    dataset_revision: str | None = opt(None, "which commit, tag or branch of it", group=DATA)
    pregenerated_data: str | None = opt(None, "a corpus prepared earlier with prepare_only, or a corpus as in train_corpus", group=DATA)
    prepare_only: bool = opt(False, "only prepare the corpus in output_dir, for any number of later runs", group=DATA)
    text_columns: tuple[str, ...] | None = opt(None, "the columns of text in Parquet, JSON-lines and hub rows, joined in this order, separated by a comma (default: text, or the only one)", group=DATA)
    document_break: DocumentBreak = opt("blank", "what ends a document in a text file: blank, a blank line; line, every line", group=DATA)
    clean_corpus: bool = opt(False, "cut lines of more than a megabyte and remove control characters; otherwise a text file with such is refused", group=DATA)
    max_seq_length: int = opt(128, "tokens of a sequence, special ones among them; longer documents go on in the next", group=DATA, aliases=("max_seq_len",))
    short_seq_prob: float = opt(0.0, "the part of the sequences that end early, at a random length, and are padded (the reference's preparation: 0.1)", group=DATA)
    eval_share: float = opt(0.01, "the part of the sequences, evenly spread, that is left out of training and measured on; 0: none", group=DATA)
    max_eval_sequences: int = opt(512, "hold out at most so many", group=DATA)
    num_workers: int = opt(1, "processes that tokenise the corpus", group=DATA)
    corpus_cache_dir: str | None = opt(None, "where prepared corpora are kept, each found again by its content (default: prepared-corpora in cache_dir, or in ~/.cache/bert-emd)", group=DATA)
    masked_lm_prob: float | None = opt(None, "the reference's; nothing is masked here", group=DATA)
    do_whole_word_mask: bool | None = opt(None, "the reference's; nothing is masked here", group=DATA)
    max_predictions_per_seq: int | None = opt(None, "the reference's; nothing is predicted here", group=DATA)
    epochs_to_generate: int | None = opt(None, "the reference's; without masks every epoch reads the same sequences, in another order", group=DATA)
    reduce_memory: bool | None = opt(None, "the reference's; the corpus is never in memory anyway", group=DATA)

    teacher_model: str | None = opt(None, "the pre-trained teacher: a folder or a hub id; a head that it has is left out", group=STUDENT)
    student_model: str | None = opt(None, "the student's shape: a folder, a hub id or a config.json; its weights too where it has some (see continue_train)", group=STUDENT)
    continue_train: bool | None = opt(None, "true: start from student_model's weights; false: take its shape alone and fresh weights (default: weights where it has some)", group=STUDENT)
    mapping: str = opt("uniform", f"which layers learn from which: {', '.join(MAPPINGS)}", group=METHOD)

    num_train_epochs: float = opt(3.0, "passes over the corpus", group=TRAINING)
    eval_step: int | None = opt(1000, "measure the held-out losses every so many steps", group=TRAINING, aliases=("eval_steps",))
    save_steps: int | None = opt(1000, "write a checkpoint to resume from every so many steps", group=TRAINING)
    output_dir: str | None = opt(None, "where the student and the record of the run go, or with prepare_only the prepared corpus; must be empty", group=OUTPUT)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "num_workers", "max_eval_sequences")
        self._between(0, 1, "short_seq_prob")
        if not 0 <= self.eval_share < 1:
            raise UserError(f"eval_share must be at least 0 and below 1, not {self.eval_share}")
        given = [name for name in CORPORA if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} each name a corpus; keep one")
        if self.dataset_name is not None and self.max_steps < 1:
            raise UserError("a hub stream is read as far as training needs it; say how far with --max_steps")
        if self.prepare_only and self.pregenerated_data is not None:
            raise UserError("prepare_only makes what pregenerated_data reads; name the text with --train_corpus")
        if bad := [name for name in _NO_PREDICTIONS if name in self.trainer_args]:
            raise UserError(f"{bad[0]} is not available: held-out losses need no predictions")
        if self.mapping not in MAPPINGS:
            raise UserError(f"mapping must be one of {', '.join(MAPPINGS)}, not {self.mapping!r}")
        if not self.matches:
            raise UserError("with use_att, use_rep and use_embedding all false nothing is left to learn; keep one")
        if self.continue_train and self.student_model is None:
            raise UserError("continue_train starts from the weights of a student_model; name one")
        self.as_distillation()  # checks student and mapping as `distill` does

    def as_distillation(self) -> DistillConfig:
        """The same student and method as `distill` has them: the intermediate losses alone."""
        shared = {f.name for cls in (TrainFields, MatchingFields) for f in dataclasses.fields(cls)}
        return DistillConfig(**{name: getattr(self, name) for name in shared}, one_step=False)

    def without_effect(self) -> dict[str, str]:
        """The fields that have no part under the other values, each with the reason."""
        distillation = self.as_distillation()
        mine = {f.name for f in dataclasses.fields(self)}
        found = of_training(self) | of_mapping(distillation) | of_student(distillation)
        found = {name: why for name, why in found.items() if name in mine}
        if self.prepare_only:
            needed = {"teacher_model", "output_dir", "seed", "max_steps"}
            groups = {f.name: f.metadata["group"] for f in dataclasses.fields(self)}
            idle = [name for name, group in groups.items() if group != DATA and name not in needed]
            found |= dict.fromkeys(
                (*idle, "corpus_cache_dir", "eval_share", "max_eval_sequences"), "prepare_only is set"
            )
        found |= dict.fromkeys(
            _MASKING, "nothing is masked and no token predicted: the student learns the teacher's layers"
        )
        found["reduce_memory"] = "the corpus is read from the disk as it is needed, never kept in memory"
        if self.dataset_name is None:
            for name in ("dataset_config_name", "dataset_split", "dataset_revision"):
                found[name] = "dataset_name is not set"
        else:
            found["document_break"] = "a row of a data set is a document"
            found["clean_corpus"] = "control characters in a data set's rows are removed anyway"
        if self.pregenerated_data is not None and is_store(Path(self.pregenerated_data)):
            made = (
                "document_break",
                "clean_corpus",
                "text_columns",
                "short_seq_prob",
                "num_workers",
                "corpus_cache_dir",
            )
            found |= dict.fromkeys(made, "pregenerated_data is prepared already")
        if self.student_model is None:
            found["continue_train"] = "student_model is not set"
        if not self.eval_share:
            found |= dict.fromkeys(("eval_step", "eval_batch_size", "max_eval_sequences"), "eval_share is 0")
        return found
