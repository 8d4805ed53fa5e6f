"""The configuration of ``bert-emd download``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bert_emd.errors import UserError
from bert_emd.training.checked import CheckedConfig, opt
from bert_emd.transfer import Retry, is_local, mirror_folder

__all__ = ["DownloadConfig"]

_ALL = ("all",)
DATA, OUTPUT = "data", "output"


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(CheckedConfig):
    """`bert-emd download`: what to fetch, from where, and to which folders."""

    # fmt: off
    tasks: tuple[str, ...] | None = opt(None, "tasks of GLUE, separated by commas, or all (default: all where --data_dir is given): CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI, and AX, the diagnostic set", group=DATA, aliases=("task_name",))
    models: tuple[str, ...] | None = opt(None, "models, separated by commas: an id on the hub (owner/name, owner/name@revision), a short name (tinybert-4, minilm-l6, bert-base-uncased, …), or one of Google's TensorFlow checkpoints (uncased_L-12_H-768_A-12, …)", group=DATA, aliases=("model_name_or_path",))
    path_to_mrpc: str | None = opt(None, "a folder with msr_paraphrase_train.txt and msr_paraphrase_test.txt, to build MRPC from instead of fetching them", group=DATA)
    mirror: str | None = opt(None, "an address or a folder that stands for the publishers' address (or, for models, for the hub's; see HF_ENDPOINT): files lie there at the same path, or at the top", group=DATA)
    data_dir: str | None = opt(None, "the GLUE folder, which the other commands take under this name (default: glue_data)", group=OUTPUT)
    model_dir: str | None = opt(None, "the folder that gets a folder for each model (default: models)", group=OUTPUT)
    overwrite: bool = opt(False, "replace published files that are damaged or altered (they are refused otherwise, and whole ones always kept)", group=OUTPUT)
    checksums: bool = opt(True, "take nothing but the published files; --no_checksums takes another edition too, as long as it can be read", group=OUTPUT)
    retries: int = opt(5, "attempts in a row that bring nothing new, after which it is given up; each is waited for twice as long as the one before, from one second up to a minute", group=OUTPUT)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks is None and self.data_dir is not None:
            object.__setattr__(self, "tasks", _ALL)
        self._at_least(1, "retries")
        if self.tasks is None and self.models is None:
            raise UserError(
                "nothing to fetch; name tasks of GLUE with --tasks (--tasks all: 376 MB), or models with --models"
            )
        if self.tasks is None and self.path_to_mrpc is not None:
            raise UserError("path_to_mrpc is for the task MRPC; add --tasks MRPC, or leave it out")
        if self.models is None and self.model_dir is not None:
            raise UserError("model_dir is for models; name some with --models, or leave it out")
        if self.mirror is not None and is_local(self.mirror):
            mirror_folder(self.mirror)

    @property
    def data_folder(self) -> Path:
        """The GLUE folder."""
        return Path(self.data_dir or "glue_data")

    @property
    def model_folder(self) -> Path:
        """The folder of models' folders."""
        return Path(self.model_dir or "models")

    @property
    def mrpc_folder(self) -> Path | None:
        """The paraphrase corpus that the user has."""
        return None if self.path_to_mrpc is None else Path(self.path_to_mrpc)

    @property
    def retry(self) -> Retry:
        """How often to try again."""
        return Retry(attempts=self.retries)
