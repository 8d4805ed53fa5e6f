"""The text of the GLUE training files as a corpus: python docs/results/general/corpus.py DATA OUT.txt

DATA holds glue/<TASK>/train.tsv (and glue-qnli-9k/QNLI/train.tsv, a part of QNLI's). A row is a document, its two texts
a line each; labels are left out. A text that stood before is not written again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bert_emd.data import find_task, load_glue

TASKS = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI")


def main() -> None:
    """Write the corpus whole or not at all, and say what is in it."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    partial = out.with_name(f".{out.name}.partial")
    seen: set[str] = set()
    with partial.open("w", encoding="utf-8") as file:
        for name in TASKS:
            places = (data / "glue", data / "glue-qnli-9k")
            folders = [folder for folder in places if (folder / name / "train.tsv").is_file()]
            if not folders:
                sys.stdout.write(f"{name}: no training file in {data}\n")
                continue
            rows = load_glue(find_task(name), "train", data_dir=str(folders[0]))
            count = 0
            for texts in zip(rows.texts, *([rows.pairs] if rows.pairs is not None else []), strict=True):
                new = [" ".join(text.split()) for text in texts if text not in seen]
                seen.update(texts)
                count += len(new)
                if new:
                    file.write("\n".join(new) + "\n\n")
            sys.stdout.write(f"{name}: {len(rows)} rows of {folders[0].name}, {count} new texts\n")
    partial.rename(out)


if __name__ == "__main__":
    main()
