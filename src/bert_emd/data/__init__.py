"""Data: the GLUE tasks, the user's own files, metrics, encoding and prediction files.

What needs Datasets or scikit-learn is imported on first use: a download needs neither.
"""

from typing import TYPE_CHECKING

from bert_emd.data.augmented import Augmented, augmented_path, without_sources
from bert_emd.data.encode import PaddingCollator, collator, encode
from bert_emd.data.examples import Examples, relabel
from bert_emd.data.glue_tsv import read_glue_tsv
from bert_emd.data.labels import match_labels, normalise_label, order_labels
from bert_emd.data.submission import write_submission
from bert_emd.data.tasks import GLUE_TASKS, Split, Task, custom_task, find_task
from bert_emd.lazily import first_use

if TYPE_CHECKING:
    from bert_emd.data.files import from_dataset, load_file
    from bert_emd.data.glue import load_glue
    from bert_emd.data.metrics import score, trivial_score
    from bert_emd.data.splits import holdout

__all__ = [
    "GLUE_TASKS",
    "Augmented",
    "Examples",
    "PaddingCollator",
    "Split",
    "Task",
    "augmented_path",
    "collator",
    "custom_task",
    "encode",
    "find_task",
    "from_dataset",
    "holdout",
    "load_file",
    "load_glue",
    "match_labels",
    "normalise_label",
    "order_labels",
    "read_glue_tsv",
    "relabel",
    "score",
    "trivial_score",
    "without_sources",
    "write_submission",
]

__getattr__ = first_use(__name__, {
    **dict.fromkeys(("from_dataset", "load_file"), "files"),
    "load_glue": "glue",
    **dict.fromkeys(("score", "trivial_score"), "metrics"),
    "holdout": "splits",
})  # fmt: skip
