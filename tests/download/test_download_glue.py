"""GLUE's folders: there whole, as the other commands read them, or not at all."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import pytest
from file_server import broken_after
from glue_files import archive_of, bundle_of, files_of, sum_of, task_files, tsv, zipped

from bert_emd.data import GLUE_TASKS, find_task, load_glue
from bert_emd.data.download import (
    CHECKPOINTS,
    GLUE,
    Kind,
    Member,
    carry_out,
    checksum_or_none,
    find_bundles,
    find_checkpoint,
    glue_fault,
    plan_checkpoint,
    plan_glue,
)
from bert_emd.errors import UserError
from bert_emd.transfer import Failures, workplace


@pytest.fixture
def bring(tmp_path, server, retry, watcher):
    """Plans and carries out; returns the names of what was done."""

    def run(bundles, *, checksums=True, overwrite=False, mirror=None, path_to_mrpc=None):
        root, done = tmp_path / "glue", []
        steps = plan_glue(root, bundles, checksums=checksums, overwrite=overwrite, path_to_mrpc=path_to_mrpc)
        failures = Failures(watcher, among=len(steps))
        with workplace(root, []) as work:
            carry_out(
                steps, work, mirror=mirror or server.url, checksums=checksums, fault=glue_fault, retry=retry,
                watcher=watcher, failures=failures, done=lambda step: done.append(step.bundle.name),
            )  # fmt: skip
        failures.tell()
        return done

    return run


@pytest.fixture
def small(server):
    """A task with an archive and a row of the table that fit each other, on the server."""

    def make(task="WNLI", archive=None, contents=None):
        archive = archive_of(task) if archive is None else archive
        bundle = bundle_of(task, archive, task_files(task) if contents is None else contents)
        server.put(bundle.remotes[0].path, archive)
        return bundle

    return make


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


# The table.


def test_the_table_has_every_file_that_the_other_commands_read():
    assert [bundle.name for bundle in GLUE] == [task.name for task in GLUE_TASKS]
    for bundle in GLUE:
        task = find_task(bundle.name)
        assert {member.name for member in bundle.members} == {s.tsv for s in task.splits if s.name != "train_aug"}
        assert bundle.folder.lower().replace("-", "") in task.folder_names
        assert all(remote.size and remote.sha256 for remote in bundle.remotes)
        assert all(member.checksum or member.rows for member in bundle.members)
    assert sum(bundle.size for bundle in GLUE) // 10**6 == 376  # as a message says


def test_the_addresses_are_the_publishers():
    hosts = {remote.host for bundle in (*GLUE, *CHECKPOINTS) for remote in bundle.remotes}
    assert hosts == {"https://dl.fbaipublicfiles.com", "https://storage.googleapis.com"}
    assert all(len(m.checksum or "md5:" + "0" * 32) in (64, 36) for b in (*GLUE, *CHECKPOINTS) for m in b.members)


def test_the_tables_checksums_hold_for_the_official_files(real_data):
    for bundle in GLUE:
        for member in bundle.members:
            path = real_data / "glue" / bundle.folder / member.name
            if path.exists():
                assert member.checksum is not None
                assert glue_fault(bundle, member, path, True) is None, path


def test_official_folders_are_kept(real_data):
    bundles = find_bundles(["cola", "SST", "mrpc", "sts", "rte", "wnli", "diagnostic"])
    assert [bundle.name for bundle in bundles] == ["CoLA", "SST-2", "MRPC", "STS-B", "RTE", "WNLI", "AX"]
    assert all(step.whole for step in plan_glue(real_data / "glue", bundles))


def test_names_of_tasks():
    assert find_bundles(["all"]) == list(GLUE)
    assert [bundle.name for bundle in find_bundles(["sst2", "SST-2", "ax"])] == ["SST-2", "AX"]
    with pytest.raises(UserError, match="did you mean MRPC"):
        find_bundles(["MRCP"])


# Fetching.


@pytest.mark.parametrize("task", [task.name for task in GLUE_TASKS if task.name not in ("MRPC", "AX")])
def test_a_task_as_the_other_commands_read_it(bring, small, tmp_path, task):
    bundle = small(task, archive_of(task, **{"original/raw.txt": b"not needed", "readme.txt": b"terms"}))
    assert bring([bundle]) == [task]
    kept = task_files(task) | ({"readme.txt": b"terms"} if task == "STS-B" else {})
    assert files_of(tmp_path / "glue" / task) == dict(sorted(kept.items()))
    assert tree(tmp_path) == sorted(["glue", f"glue/{task}", *(f"glue/{task}/{name}" for name in kept)])
    for split in find_task(task).splits:
        if split.name != "train_aug":
            assert len(load_glue(task, split.name, tmp_path / "glue")) == 3


def test_the_diagnostic_set_is_one_file(bring, server, tmp_path):
    content = tsv("AX", "diagnostic.tsv")
    bundle = bundle_of("AX", content, {"diagnostic.tsv": content})
    server.put("AX.tsv", content)  # a mirror may have all at its top
    bring([bundle])
    assert len(load_glue("AX", "test", tmp_path / "glue")) == 3


@pytest.mark.parametrize("task", ["CoLA", "SST-2", "STS-B", "RTE", "WNLI", "AX"])
def test_the_official_files_through_the_whole_way(bring, server, real_data, tmp_path, task):
    """Archives of the genuine files: what comes out has the genuine checksums, which the table knows."""
    row = next(bundle for bundle in GLUE if bundle.name == task)
    files = {m.name: (real_data / "glue" / row.folder / m.name).read_bytes() for m in row.members}
    archive = files["diagnostic.tsv"] if task == "AX" else zipped({f"{task}/{n}": c for n, c in files.items()})
    bundle = dataclasses.replace(bundle_of(task, archive, {}), members=row.members)
    server.put(bundle.remotes[0].path, archive, broken_after(len(archive) // 3, archive))
    bring([bundle])
    assert files_of(tmp_path / "glue" / row.folder) == dict(sorted(files.items()))


def test_what_is_whole_is_kept_and_not_asked_for(bring, small, server):
    bundle = small()
    assert bring([bundle]) == ["WNLI"]
    server.requests.clear()
    assert bring([bundle]) == []
    assert server.requests == []


def test_a_missing_file_is_added_and_others_stay(bring, small, tmp_path):
    bundle = small()
    folder = tmp_path / "glue" / "WNLI"
    folder.mkdir(parents=True)
    (folder / "dev.tsv").write_bytes(tsv("WNLI", "dev.tsv"))
    (folder / "notes.txt").write_text("mine")
    before = (folder / "dev.tsv").stat().st_ino
    assert bring([bundle]) == ["WNLI"]
    assert sorted(files_of(folder)) == ["dev.tsv", "notes.txt", "test.tsv", "train.tsv"]
    assert (folder / "dev.tsv").stat().st_ino == before


def test_a_damaged_file_is_refused_before_anything_is_fetched_and_replaced_by_a_flag(bring, small, server, tmp_path):
    bundle, other = small(), small("RTE")
    folder = tmp_path / "glue" / "WNLI"
    bring([bundle])
    (folder / "train.tsv").write_bytes(tsv("WNLI", "train.tsv")[:-9])
    (folder / "train_aug.tsv").write_text("mine")
    server.requests.clear()
    with pytest.raises(UserError, match=r"WNLI/train\.tsv: its SHA-256 is .*--overwrite replaces"):
        bring([other, bundle])
    assert server.requests == []
    assert not (tmp_path / "glue" / "RTE").exists()
    assert bring([bundle], overwrite=True) == ["WNLI"]
    assert files_of(folder) == {**task_files("WNLI"), "train_aug.tsv": b"mine"}


def test_a_folder_under_another_name_is_the_tasks(bring, small, tmp_path):
    bundle = small("SST-2")
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    for name, content in task_files("SST-2").items():
        (tmp_path / "glue" / "sst2" / name).write_bytes(content)
    assert bring([bundle]) == []
    (tmp_path / "glue" / "sst2" / "dev.tsv").unlink()
    assert bring([bundle]) == ["SST-2"]
    assert tree(tmp_path / "glue") == ["sst2", "sst2/dev.tsv", "sst2/test.tsv", "sst2/train.tsv"]


def test_without_a_checksum_the_number_of_examples_tells(tmp_path):
    bundle = next(bundle for bundle in GLUE if bundle.name == "QQP")
    path = tmp_path / "train.tsv"
    path.write_bytes(tsv("QQP", "train.tsv") + b"short row\n")  # left out, as the hub does
    member = Member(name="train.tsv", rows=3)
    assert glue_fault(bundle, member, path, True) is None
    assert glue_fault(bundle, Member(name="train.tsv", rows=4), path, True) == "it has 3 examples and should have 4"


def test_one_that_fails_leaves_the_others(bring, small, server, tmp_path):
    first, second, third = small("WNLI"), small("RTE"), small("CoLA")
    del server.answers[f"/{second.remotes[0].path}"]
    with pytest.raises(UserError, match=r"RTE\.zip is not at"):
        bring([first, second, third])
    assert tree(tmp_path / "glue")[::4] == ["CoLA", "WNLI"]
    del server.answers[f"/{third.remotes[0].path}"]
    (tmp_path / "glue" / "CoLA" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"RTE, CoLA could not be had: RTE\.zip is not at .*; CoLA\.zip is not at"):
        bring([first, second, third])


def test_an_interrupted_download_goes_on(bring, small, server, tmp_path, watcher, monkeypatch):
    bundle = small("STS-B", archive_of("STS-B", **{"original/big.bin": bytes(range(256)) * 8000}))
    archive = server.answers[f"/{bundle.remotes[0].path}"][0].content
    assert len(archive) > 5000

    def interrupt(done):
        raise KeyboardInterrupt

    server.answers[f"/{bundle.remotes[0].path}"].insert(0, broken_after(3000, archive))
    monkeypatch.setattr(watcher, "note", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bring([bundle])
    assert tree(tmp_path / "glue") == [
        ".downloads", ".downloads/STS-B.zip.part", ".downloads/STS-B.zip.part.json", ".downloads/lock",
    ]  # fmt: skip
    monkeypatch.undo()
    server.requests.clear()
    bring([bundle])
    assert server.sent() == len(archive) - 3000
    assert sorted(files_of(tmp_path / "glue" / "STS-B")) == ["dev.tsv", "test.tsv", "train.tsv"]


# Archives that nobody should unpack, with the checksum that the table wants.

HOSTILE = {
    "a path out": ({"../evil.tsv": b"x"}, None),
    "a path out further in": ({"WNLI/../../evil.tsv": b"x"}, None),
    "an absolute path": ({"/tmp/evil.tsv": b"x"}, None),
    "a drive": ({"C:\\evil.tsv": b"x"}, None),
    "a link": ({}, {"WNLI/link": "/etc"}),
    "a link for a file": ({}, {"WNLI/other.tsv": "../../secret"}),
}


@pytest.mark.parametrize(("more", "links"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_leave_nothing(bring, small, tmp_path, more, links):
    files = {f"WNLI/{name}": content for name, content in task_files("WNLI").items()}
    bundle = small(archive=zipped({**files, **more}, links=links))
    with pytest.raises(UserError, match="not unpacked"):
        bring([bundle])
    assert not (tmp_path / "glue" / "WNLI").exists()
    assert not list(tmp_path.rglob("evil*"))
    assert not list(tmp_path.rglob("*.tsv"))


def test_a_bomb(bring, small, tmp_path):
    bomb = zipped({**{f"WNLI/{n}": c for n, c in task_files("WNLI").items()}, "WNLI/dev.tsv": b"0" * (80 << 20)})
    with pytest.raises(UserError, match="bomb"):
        bring([small(archive=bomb)])
    assert not (tmp_path / "glue" / "WNLI").exists()


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (archive_of("WNLI")[:-40], "damaged"),
        (b"<html>please log in</html>", "neither a zip nor a tar"),
        (zipped({"WNLI/train.tsv": b"", "WNLI/dev.tsv": b""}), r"has no WNLI/test\.tsv"),
        (zipped({"train.tsv": b"", "dev.tsv": b"", "test.tsv": b""}), "has no WNLI/dev"),
        (archive_of("WNLI", **{"dev.tsv": b"other"}), r"dev\.tsv of WNLI is not the published file: its SHA-256"),
        (zipped({}), "has no WNLI/dev"),
    ],
    ids=["cut off", "a page", "a file missing", "no folder", "other bytes", "empty"],
)
def test_useless_archives_leave_nothing(bring, small, tmp_path, archive, said):
    with pytest.raises(UserError, match=said):
        bring([small(archive=archive)])
    assert not (tmp_path / "glue" / "WNLI").exists()


def test_a_damaged_member_is_refused(bring, small, tmp_path):
    archive = bytearray(archive_of("WNLI"))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        archive[opened.infolist()[0].header_offset + 50] ^= 0xFF
    with pytest.raises(UserError, match=r"damaged|not complete"):
        bring([small(archive=bytes(archive))])
    assert not (tmp_path / "glue" / "WNLI").exists()


def test_without_checksums_another_edition_is_taken_as_long_as_it_can_be_read(bring, small, server, tmp_path):
    bundle = small()
    edition = archive_of("WNLI", **{"dev.tsv": tsv("WNLI", "dev.tsv").replace(b"A b.", b"B c.")})
    server.put(bundle.remotes[0].path, edition)
    with pytest.raises(UserError, match="not the published file"):
        bring([bundle])
    bring([bundle], checksums=False)
    assert load_glue("WNLI", "validation", tmp_path / "glue").texts == ["B c."] * 3
    assert bring([bundle], checksums=False) == []
    with pytest.raises(UserError, match="--no_checksums keeps what can be read"):
        bring([bundle])
    unreadable = archive_of("WNLI", **{"dev.tsv": b"index\tsentence1\tsentence2\tlabel\n0\ta\n"})
    server.put(bundle.remotes[0].path, unreadable)
    (tmp_path / "glue" / "WNLI" / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"dev\.tsv of WNLI is not the published file: .*4 tab-separated columns"):
        bring([bundle], checksums=False)


def test_a_folder_as_a_mirror(bring, small, server, tmp_path):
    bundle = small()
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "WNLI.zip").write_bytes(archive_of("WNLI"))
    bring([bundle], mirror=mirror.as_uri())
    assert server.requests == []
    assert files_of(tmp_path / "glue" / "WNLI") == dict(sorted(task_files("WNLI").items()))


def test_a_file_in_the_way(bring, small, tmp_path):
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "WNLI").write_text("")
    with pytest.raises(UserError, match="is a file where the folder"):
        bring([small()])


# MRPC.


def originals(real: Path) -> dict[str, bytes]:
    """The corpus's files made of GLUE's: both parts in one, and labels for the test part, which GLUE leaves out."""
    head, *train = (real / "train.tsv").read_bytes().splitlines(keepends=True)
    dev = (real / "dev.tsv").read_bytes().splitlines(keepends=True)[1:]
    rows = list(train)
    for i, row in enumerate(dev):
        rows.insert(9 * i, row)
    test = [row.split(b"\t", 1)[1] for row in (real / "test.tsv").read_bytes().splitlines(keepends=True)[1:]]
    return {
        "msr_paraphrase_train.txt": head + b"".join(rows),
        "msr_paraphrase_test.txt": head + b"".join(b"%d\t" % (i % 2) + row for i, row in enumerate(test)),
        "mrpc_dev_ids.tsv": b"".join(b"\t".join(row.split(b"\t")[1:3]) + b"\n" for row in dev),
    }


def test_mrpc_is_built_to_the_byte(bring, server, real_data, tmp_path):
    real = real_data / "glue" / "MRPC"
    row = next(bundle for bundle in GLUE if bundle.kind is Kind.MRPC)
    files = originals(real)
    # The train part and the list have the published sizes; so has the test part, but for unknown labels.
    assert [len(files[remote.name]) for remote in row.remotes] == [remote.size for remote in row.remotes]
    remotes = tuple(dataclasses.replace(remote, sha256=sum_of(files[remote.name])) for remote in row.remotes)
    for remote in remotes:
        server.put(remote.path, files[remote.name])
    assert bring([dataclasses.replace(row, remotes=remotes)]) == ["MRPC"]
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        assert (tmp_path / "glue" / "MRPC" / name).read_bytes() == (real / name).read_bytes(), name


def test_mrpc_from_files_that_are_here(bring, server, real_data, tmp_path):
    real, corpus = real_data / "glue" / "MRPC", tmp_path / "corpus"
    corpus.mkdir()
    for name, content in originals(real).items():
        # Another system's line ends, as the corpus once came with.
        (corpus / name).write_bytes(content.replace(b"\n", b"\r\n"))
    bundle = next(bundle for bundle in GLUE if bundle.kind is Kind.MRPC)
    bring([bundle], path_to_mrpc=corpus)
    assert server.requests == []
    assert load_glue("MRPC", "validation", tmp_path / "glue").texts == load_glue("MRPC", "validation", real).texts
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        assert (tmp_path / "glue" / "MRPC" / name).read_bytes() == (real / name).read_bytes(), name


def test_mrpc_from_a_task_folder_that_has_only_the_originals(bring, server, real_data, tmp_path):
    folder = tmp_path / "glue" / "MRPC"
    folder.mkdir(parents=True)
    for name, content in originals(real_data / "glue" / "MRPC").items():
        (folder / name).write_bytes(content)
    assert bring([next(bundle for bundle in GLUE if bundle.kind is Kind.MRPC)]) == ["MRPC"]
    assert server.requests == []
    assert len(load_glue("MRPC", "train", tmp_path / "glue")) == 3668
    assert (folder / "msr_paraphrase_train.txt").exists()  # the user's


HEAD = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
ROWS = ["1\t10\t11\ta\tb", "0\t12\t13\tc \t d", '1\t11\t10\t"e\tf" \x85g']


def small_corpus(folder: Path, **changes: str) -> Path:
    files = {
        "msr_paraphrase_train.txt": HEAD + "".join(f"{row}\n" for row in ROWS),
        "msr_paraphrase_test.txt": HEAD + "".join(f"{row}\n" for row in ROWS[:2]),
        "dev_ids.tsv": "12\t13\n",
    }
    folder.mkdir()
    for name, content in {**files, **changes}.items():
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return folder


def test_the_rule_by_hand(bring, tmp_path):
    bundle = next(bundle for bundle in GLUE if bundle.kind is Kind.MRPC)
    bring([bundle], path_to_mrpc=small_corpus(tmp_path / "corpus"), checksums=False)
    assert {name: content.decode() for name, content in files_of(tmp_path / "glue" / "MRPC").items()} == {
        "train.tsv": HEAD + "1\t10\t11\ta\tb\n" + '1\t11\t10\t"e\tf" \x85g\n',
        "dev.tsv": HEAD + "0\t12\t13\tc \t d\n",
        "test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t10\t11\ta\tb\n1\t12\t13\tc \t d\n",
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dev_ids.tsv": "12\t13\n13\t12\n"}, "names 1 pairs that .* has not, the first of them 13 12"),
        ({"dev_ids.tsv": "12 13\n"}, r"dev_ids\.tsv:1: expected 2 tab-separated columns, found 1"),
        ({"msr_paraphrase_train.txt": HEAD + "1\t10\t11\ta\n"}, r"train\.txt:2: expected 5 tab-separated columns"),
        ({"msr_paraphrase_test.txt": ""}, r"test\.tsv of MRPC"),
        ({"msr_paraphrase_train.txt": ""}, "is empty"),
    ],
)
def test_a_corpus_that_does_not_fit(bring, tmp_path, changes, said):
    bundle = next(bundle for bundle in GLUE if bundle.kind is Kind.MRPC)
    with pytest.raises(UserError, match=said):
        bring([bundle], path_to_mrpc=small_corpus(tmp_path / "corpus", **changes), checksums=False)
    assert not (tmp_path / "glue" / "MRPC").exists()


def test_another_edition_of_the_corpus_needs_a_word(bring, tmp_path):
    bundle = next(bundle for bundle in GLUE if bundle.kind is Kind.MRPC)
    with pytest.raises(UserError, match="--no_checksums takes another edition"):
        bring([bundle], path_to_mrpc=small_corpus(tmp_path / "corpus"))
    with pytest.raises(UserError, match=r"path_to_mrpc .* has no msr_paraphrase_train\.txt, msr_paraphrase_test\.txt"):
        bring([bundle], path_to_mrpc=tmp_path)


# Checkpoints.


@pytest.fixture
def checkpoint(server, tmp_path, retry, watcher):
    row = CHECKPOINTS[0]
    files = {member.name: member.name.encode() * 100 for member in row.members}
    members = tuple(Member(name=name, checksum=sum_of(content)) for name, content in files.items())
    bundle = dataclasses.replace(row, members=members, remotes=(dataclasses.replace(row.remotes[0], size=None),))

    def run(content, **more):
        server.put(bundle.remotes[0].path, content)
        step = plan_checkpoint(bundle, tmp_path / "models", **more)
        failures = Failures(watcher, among=1)
        with workplace(tmp_path / "models", []) as work:
            carry_out(
                [step], work, mirror=server.url, checksums=True, fault=checksum_or_none, retry=retry,
                watcher=watcher, failures=failures, done=lambda step: None,
            )  # fmt: skip
        failures.tell()
        return tmp_path / "models" / row.folder

    return run, {f"{row.name}/{name}": content for name, content in files.items()}


def test_a_checkpoint_is_checked_by_its_files(checkpoint):
    run, files = checkpoint
    folder = run(zipped(files))
    assert files_of(folder) == dict(sorted((name.split("/")[1], content) for name, content in files.items()))
    (folder / "vocab.txt").write_bytes(b"other")
    with pytest.raises(UserError, match=r"vocab\.txt: its SHA-256 .*--overwrite"):
        run(zipped(files))
    assert files_of(run(zipped(files), overwrite=True))["vocab.txt"] == files[f"{folder.name}/vocab.txt"]


@pytest.mark.parametrize("kind", ["other bytes", "cut off", "a link", "a path out"])
def test_a_checkpoint_that_is_not_the_published_one(checkpoint, tmp_path, kind):
    run, files = checkpoint
    name = f"{CHECKPOINTS[0].name}/vocab.txt"
    archive = {
        "other bytes": zipped({**files, name: b"x"}),
        "cut off": zipped(files)[:-30],
        "a link": zipped({k: v for k, v in files.items() if k != name}, links={name: "/etc/passwd"}),
        "a path out": zipped({**files, "../vocab.txt": b"x"}),
    }[kind]
    with pytest.raises(UserError):
        run(archive)
    assert tree(tmp_path / "models") == []


def test_names_of_checkpoints():
    assert find_checkpoint("Uncased_L-12_H-768_A-12.zip") is CHECKPOINTS[0]
    assert find_checkpoint("bert-base-uncased") is None
