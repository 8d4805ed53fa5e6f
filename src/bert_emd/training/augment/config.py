"""The configuration of an augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bert_emd.data import find_task
from bert_emd.errors import UserError
from bert_emd.models.masked_lm import MlmInput
from bert_emd.training.checked import CheckedConfig, opt
from bert_emd.training.config import DATA, METHOD, OUTPUT
from bert_emd.training.host import has_bf16

__all__ = ["AugmentConfig"]

CandidateSource = Literal["auto", "mlm", "embeddings"]
Labels = Literal["carry", "teacher"]

_PUBLISHED = {"SST-2": 20, "QNLI": 20, "MNLI": 10, "QQP": 10}
_OTHERS = 30


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(CheckedConfig):
    """`bert-emd augment`: variants of training rows, in which words are replaced by others that fit."""

    CHOICES: ClassVar[dict[str, Any]] = {"CandidateSource": CandidateSource, "Labels": Labels, "MlmInput": MlmInput}

    # fmt: off
    task_name: str | None = opt(None, "a GLUE task: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE or WNLI; without it your own file", group=DATA)
    data_dir: str | None = opt(None, "the task's folder of TSV files, the folder above it, or a local copy of the hub's nyu-mll/glue (default: the hub)", group=DATA, aliases=("glue_dir",))
    train_file: str | None = opt(None, "your own training data: .csv, .tsv or .jsonl with a text column (or two)", group=DATA)
    text_columns: tuple[str, ...] | None = opt(None, "the one or two text columns, separated by a comma (default: guessed from the usual names)", group=DATA)
    label_column: str | None = opt(None, "the column that --labels teacher leaves out (default: label)", group=DATA)
    labels: Labels = opt("carry", "carry: a variant has its source row's label (and its other columns); teacher: the label column is left out, for distillation by the teacher alone", group=DATA)
    cache_dir: str | None = opt(None, "where downloads from the hub are kept", group=DATA)
    model_name_or_path: str | None = opt(None, "a masked language model (bert-base-uncased), or any encoder for the neighbours in its embeddings: a folder or a hub id", group=DATA, aliases=("pretrained_bert_model",))
    glove_embs: str | None = opt(None, "a GloVe text file for nearest neighbours (default: the model's own input embeddings)", group=DATA)
    glove_words: int = opt(100_000, "read only so many lines of it, the most frequent words; 0 reads all", group=DATA)
    max_seq_length: int = opt(128, "only the first so many tokens of a text are looked at and replaced", group=DATA)
    no_cuda: bool = opt(False, "stay on the CPU even where there is a GPU", group=DATA, aliases=("use_cpu",))
    bf16: bool | None = opt(None, "run the masked language model in bfloat16 (default: where the machine is faster with it)", group=DATA)
    workers: int = opt(1, "processes that draw and write out variants, beside the one that runs the model", group=DATA, aliases=("num_workers",))

    candidates: CandidateSource = opt("auto", "where candidates come from: mlm (words of one piece from the masked language model, the others from the nearest neighbours), embeddings (neighbours for all words), auto (mlm where the model has such a head)", group=METHOD)
    N: int | None = opt(None, "variants of each text (default, as published: 10 for MNLI and QQP, 20 for SST-2 and QNLI, else 30)", group=METHOD, aliases=("N_a",))
    M: int = opt(15, "candidates of each word", group=METHOD, aliases=("K",))
    p: float = opt(0.4, "the probability that a word is replaced", group=METHOD, aliases=("p_t",))
    mlm_input: MlmInput = opt("pair", "what the masked language model reads: pair, the text with its mask and behind it the text as it was, as published; alone, the text with its mask", group=METHOD)
    min_similarity: float = opt(0.3, "neighbours whose cosine is below this are no candidates", group=METHOD)
    stop_words_file: str | None = opt(None, "words that stay, one a line (default: English function words, negations and numbers)", group=METHOD)
    seed: int = opt(42, "seeds the draws; each source row has draws of its own", group=METHOD)

    output_file: str | None = opt(None, "the file to write (default: train_aug.tsv beside the task's train.tsv, NAME_aug beside your own file, where `distill --aug_train` looks for it)", group=OUTPUT)
    overwrite_output_file: bool = opt(False, "replace an earlier file, or give up an interrupted one with other options", group=OUTPUT, aliases=("overwrite_output_dir",))
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "N", "M", "workers")
        self._at_least(0, "glove_words", "seed")
        self._at_least(3, "max_seq_length")
        self._between(-1, 1, "min_similarity")
        if not 0 < self.p <= 1:
            raise UserError(f"p must be above 0 and at most 1, not {self.p}")
        if self.text_columns is not None and len(self.text_columns) not in (1, 2):
            raise UserError(f"text_columns names {len(self.text_columns)} columns; name one or two")
        if self.task_name is not None:
            for name in ("train_file", "text_columns", "label_column"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"task_name {self.task_name} and {name} exclude each other; name a task or your own file"
                    )
            object.__setattr__(self, "task_name", find_task(self.task_name).name)
        if self.N is None:
            object.__setattr__(self, "N", _PUBLISHED.get(self.task_name or "", _OTHERS))
        if self.bf16 is None:
            object.__setattr__(self, "bf16", has_bf16(gpu=not self.no_cuda))

    def without_effect(self, *, mlm: bool | None = None) -> dict[str, str]:
        """The fields that have no part under the other values, each with the reason.

        Args:
            mlm: whether candidates come from a masked language model, where that is known.
        """
        found = {}
        if self.task_name is None and self.data_dir is not None:
            found["data_dir"] = "task_name is not set"
        if self.labels == "carry" and self.label_column is not None:
            found["label_column"] = "labels is carry, which keeps every column"
        if self.glove_embs is None:
            found["glove_words"] = "glove_embs is not set"
        if mlm is False or self.candidates == "embeddings" or self.model_name_or_path is None:
            found |= dict.fromkeys(("bf16", "mlm_input", "no_cuda"), "no masked language model runs")
        return found
