"""``bert-emd augment`` as a user types it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from masked_models import random_model, sentence, tokenizer_in
from tiny_encoders import save, tiny

from bert_emd.cli.main import main
from bert_emd.training.augment.resumable import ResumableFile


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("masked")
    random_model().save_pretrained(folder)
    tokenizer_in(folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    lines = [f"{i}\t{sentence(random.Random(i))}\tthe dog ate\t{i % 6}.0\n" for i in range(40)]
    (tmp_path / "STS-B").mkdir()
    text = "index\tsentence1\tsentence2\tscore\n" + "".join(lines)
    (tmp_path / "STS-B" / "train.tsv").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_references_flags_work_as_they_are(masked, glue, capsys):
    words = ["augment", "--pretrained_bert_model", masked, "--glue_dir", str(glue), "--task-name", "sts-b"]
    assert main([*words, "--N", "2", "--M", "5", "--p", "0.4"]) == 0
    out = capsys.readouterr().out
    written = glue / "STS-B" / "train_aug.tsv"
    assert f"wrote {written}: 40 rows and" in out
    assert "the masked language model for words of one piece" in out
    assert f"bert-emd distill --task_name STS-B --data_dir {glue} --aug_train" in out
    assert written.read_text().splitlines()[0] == "index\tsentence1\tsentence2\tscore"
    assert main([*words, "--N", "2"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--N", "2", "--overwrite_output_file"]) == 0


def test_the_published_number_of_variants_is_shown(masked, glue, capsys):
    words = ["augment", "--model_name_or_path", masked, "--data_dir", str(glue), "--task_name", "STS-B"]
    assert main([*words, "--candidates", "embeddings"]) == 0
    shown, _, idle = capsys.readouterr().out.partition("off, not set or not used")
    assert any(line.split()[:2] == ["N", "30"] for line in shown.splitlines())
    assert "mlm_input" in idle


def test_an_interruption_is_130_and_the_same_command_goes_on(masked, glue, capsys, monkeypatch):
    words = ["augment", "--model_name_or_path", masked, "--data_dir", str(glue), "--task_name", "STS-B"]
    append = ResumableFile.append

    def interrupt(file, text, progress):
        if progress["rows"]:
            raise KeyboardInterrupt
        append(file, text, progress)

    monkeypatch.setattr(ResumableFile, "append", interrupt)
    assert main(words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert sorted(p.name for p in (glue / "STS-B").iterdir()) == [
        ".train_aug.tsv.partial", ".train_aug.tsv.progress.json", "train.tsv",
    ]  # fmt: skip
    monkeypatch.setattr(ResumableFile, "append", append)
    assert main(words) == 0
    files = sorted(p.name for p in (glue / "STS-B").iterdir())
    assert files == ["train.tsv", "train_aug.tsv", "train_aug.tsv.run.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--p", "2"], "p must be above 0 and at most 1, not 2"),
        (["--candidates", "glove"], "--candidates must be one of auto, mlm, embeddings"),
        (["--teacher_model", "x"], "--teacher_model is an option of `bert-emd distill`"),
        (["--Nn", "3"], "unknown flag --Nn; did you mean --N?"),
        (["--data_dir", "nowhere/at/all"], "no folder 'nowhere/at/all'"),
        (["--glove_embs", "nothing.txt"], "glove_embs nothing.txt cannot be read"),
        (["--model_name_or_path", "./nothing"], "the model ./nothing does not exist"),
        (["--output_file", "new.csv"], "output_file new.csv must end in .tsv"),
        (["--stop_words_file", "nothing.txt"], "cannot read nothing.txt"),
        (["--preset", "paper"], "unknown flag --preset"),
    ],
)
def test_mistakes_are_2_in_one_line_and_leave_nothing(masked, glue, capsys, monkeypatch, change, message):
    monkeypatch.chdir(glue)
    flags = {"--model_name_or_path": masked, "--data_dir": str(glue), "--task_name": "STS-B"}
    flags[change[0]] = change[1]
    assert main(["augment", *(word for pair in flags.items() for word in pair)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(p.name for p in glue.rglob("*")) == ["STS-B", "train.tsv"]


def test_a_model_without_tokenizer_or_head(glue, words, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("models")
    save(tiny("bert"), None, folder / "bare")
    save(tiny("bert"), words, folder / "classifier")
    flags = ["augment", "--data_dir", str(glue), "--task_name", "STS-B", "--N", "1", "--model_name_or_path"]
    assert main([*flags, str(folder / "bare")]) == 2
    assert "bare has no vocabulary" in capsys.readouterr().err
    assert main([*flags, str(folder / "classifier"), "--candidates", "mlm"]) == 2
    assert "is no masked language model" in capsys.readouterr().err
    assert main([*flags, str(folder / "classifier")]) == 0
    assert "nearest neighbours of" in capsys.readouterr().out


def test_no_data_and_no_source_of_candidates(capsys):
    assert main(["augment", "--model_name_or_path", "x"]) == 2
    assert "there is no data; name a GLUE task with --task_name, or your own file with --train_file" in (
        capsys.readouterr().err
    )
    assert main(["augment", "--train_file", "x.csv"]) == 2
    assert "where should candidates come from?" in capsys.readouterr().err


def test_values_may_come_from_a_file(masked, glue, capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"pretrained_bert_model: {masked}\nN_a: 1\ntask_name: sts-b\nmin_similarity: -1\n", encoding="utf-8"
    )
    assert main(["augment", "--config", str(path), "--data_dir", str(glue)]) == 0
    assert "40 rows and 80 variants" in capsys.readouterr().out
