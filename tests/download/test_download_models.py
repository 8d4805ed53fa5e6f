"""Models from a server that answers as the hub does, and from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from file_server import Answer, broken_after, status
from glue_files import files_of
from hub_server import COMMIT, Hub
from tiny_encoders import tiny
from transformers import AutoModel, AutoTokenizer

from bert_emd.errors import UserError
from bert_emd.models.fetch import RECORD, carry_out_models, plan_model
from bert_emd.models.model_files import model_files
from bert_emd.transfer import Failures, UnreachableError, workplace

WEIGHTS = bytes(range(256)) * 2000
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "vocab.txt": b"a\nb\n",
    "README.md": b"# x",
}
JUNK = {
    "modeling_x.py": b"import os",
    "pytorch_model.bin": b"\x80pickle",
    "tf_model.h5": b"h5",
    "onnx/model.onnx": b"onnx",
    "1_Pooling/config.json": b"{}",
    ".gitattributes": b"x",
}


@pytest.fixture
def hub(server, monkeypatch) -> Hub:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return Hub(server)


@pytest.fixture
def bring(tmp_path, server, retry, watcher):
    def run(name, *, mirror="the server", overwrite=False):
        root = tmp_path / "models"
        place = server.url if mirror == "the server" else mirror
        step = plan_model(name, root, mirror=place, overwrite=overwrite, retry=retry, watcher=watcher)
        failures = Failures(watcher, among=1)
        with workplace(root, []) as work:
            carry_out_models([step], work, retry=retry, watcher=watcher, failures=failures, done=lambda step: None)
        failures.tell()
        return step

    return run


def of_the_model(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if name != RECORD}


def test_the_files_that_load_it_and_no_code(hub, bring, tmp_path):
    hub.put("owner/small", {**FILES, **JUNK})
    step = bring("owner/small")
    folder = tmp_path / "models" / "small"
    assert of_the_model(folder) == dict(sorted(FILES.items()))
    assert sorted(hub.asked()) == sorted(FILES)
    assert step.size == sum(map(len, FILES.values()))
    assert json.loads((folder / RECORD).read_text())["revision"] == COMMIT
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["small"]


def test_a_real_encoder_is_what_it_was(hub, bring, tmp_path, words):
    torch.manual_seed(1)
    model = tiny()
    source = tmp_path / "source"
    model.save_pretrained(source)
    words.save_pretrained(source)
    hub.put("owner/encoder", {path.name: path.read_bytes() for path in source.iterdir()})
    bring("owner/encoder")
    there = tmp_path / "models" / "encoder"
    loaded = AutoModel.from_pretrained(there).eval()
    batch = AutoTokenizer.from_pretrained(there)(["the old dog"], return_tensors="pt")
    original = AutoModel.from_pretrained(source).eval()
    assert torch.equal(loaded(**batch).last_hidden_state, original(**batch).last_hidden_state)


def test_a_whole_one_is_kept_without_asking(hub, bring, server, monkeypatch):
    hub.put("owner/small", FILES)
    bring("owner/small")
    server.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert bring("owner/small").files == ()
    assert server.requests == []


def test_short_names_and_old_ids(hub, bring, tmp_path):
    hub.put("huawei-noah/TinyBERT_General_4L_312D", FILES)
    bring("tinybert-4")
    assert (tmp_path / "models" / "TinyBERT_General_4L_312D" / "config.json").exists()
    hub.put("owner/gpt", FILES, names=("gpt",))
    server_side = hub.path("gpt", "config.json")
    for name, content in FILES.items():
        hub.server.put(hub.path("gpt", name), content)
    bring("gpt")
    assert any(request.path.endswith(server_side) for request in hub.server.requests)
    assert bring("gpt").files == ()


def test_a_revision(hub, bring, tmp_path):
    hub.put("owner/small", FILES)
    hub.put("owner/small", {**FILES, "vocab.txt": b"c\n"}, commit="b" * 40)
    bring(f"owner/small@{COMMIT}")
    assert (tmp_path / "models/small/vocab.txt").read_bytes() == b"a\nb\n"
    with pytest.raises(UserError, match=f"holds owner/small \\({COMMIT}\\), so owner/small@bbb"):
        bring(f"owner/small@{'b' * 40}")


def test_a_broken_transfer_goes_on_and_so_does_an_interrupted_one(hub, bring, server, watcher, monkeypatch, tmp_path):
    hub.put("owner/small", FILES)
    path = f"/{hub.path('owner/small', 'model.safetensors')}"
    server.answers[path] = [broken_after(100_000, WEIGHTS), broken_after(50_000, WEIGHTS), Answer(content=WEIGHTS)]

    def interrupt(text):
        if len(hub.asked()) >= len(FILES) + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(watcher, "note", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bring("owner/small")
    assert not (tmp_path / "models" / "small").exists()
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server.requests.clear()
    bring("owner/small")
    # Nothing that was there was sent again.
    assert hub.asked() == ["model.safetensors"]
    assert server.sent(path[1:]) == len(WEIGHTS) - 150_000
    assert of_the_model(tmp_path / "models" / "small") == dict(sorted(FILES.items()))


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_wrong_bytes_leave_nothing_that_looks_whole(hub, bring, server, tmp_path, name):
    hub.put("owner/small", FILES)
    server.put(hub.path("owner/small", name), bytes(len(FILES[name])))
    with pytest.raises(UserError, match=f"small/{name} .* is not the published file"):
        bring("owner/small")
    assert not (tmp_path / "models" / "small").exists()


def test_a_newer_revision_after_an_interruption_is_not_mixed_with_the_old_one(hub, bring, server, tmp_path):
    hub.put("owner/small", {**FILES, "merges.txt": b"old"})
    server.answers[f"/{hub.path('owner/small', 'model.safetensors')}"] = [status(403)]
    with pytest.raises(UserError, match="403"):
        bring("owner/small")
    new = {**FILES, "vocab.txt": b"new\n"}
    hub.put("owner/small", new, commit="b" * 40)
    bring("owner/small")
    assert of_the_model(tmp_path / "models" / "small") == dict(sorted(new.items()))


def test_a_damaged_one_is_refused_and_mended_by_a_flag(hub, bring, server, tmp_path):
    hub.put("owner/small", FILES)
    bring("owner/small")
    folder = tmp_path / "models" / "small"
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    (folder / "mine.txt").write_text("mine")
    hub.put("owner/small", {**FILES, "vocab.txt": b"new\n"}, commit="b" * 40)  # a newer one since
    hub.server.put(
        f"api/models/owner/small/revision/{COMMIT}",
        server.answers[f"/api/models/owner/small/revision/{COMMIT}"][-1].content,
    )
    server.requests.clear()
    with pytest.raises(UserError, match=r"damaged, .*model\.safetensors: it has 511,999 bytes .*--overwrite"):
        bring("owner/small")
    assert server.requests == []
    bring("owner/small", overwrite=True)
    assert hub.asked() == ["model.safetensors"]
    assert of_the_model(folder) == dict(sorted({**FILES, "mine.txt": b"mine"}.items()))
    assert bring("owner/small").files == ()


def test_a_folder_that_holds_something_else_is_left_alone(hub, bring, tmp_path):
    hub.put("owner/small", FILES)
    hub.put("other/small", FILES)
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is there already and is no download"):
            bring("owner/small", overwrite=overwrite)
    (folder / "mine.txt").unlink()
    bring("owner/small")
    with pytest.raises(UserError, match=r"holds owner/small .*name another --model_dir"):
        bring("other/small")


def test_from_a_folder(bring, tmp_path, server):
    source = tmp_path / "mirror" / "owner" / "small"
    source.mkdir(parents=True)
    for name, content in (FILES | {k: v for k, v in JUNK.items() if "/" not in k}).items():
        (source / name).write_bytes(content)
    bring("owner/small", mirror=str(tmp_path / "mirror"))
    assert of_the_model(tmp_path / "models" / "small") == dict(sorted(FILES.items()))
    assert server.requests == []
    (tmp_path / "models" / "small" / "vocab.txt").write_bytes(b"c\nd\n")
    with pytest.raises(UserError, match=r"vocab\.txt: its SHA-256"):
        bring("owner/small", mirror=str(tmp_path / "mirror"))
    bring("owner/small", mirror=str(tmp_path / "mirror"), overwrite=True)
    assert of_the_model(tmp_path / "models" / "small") == dict(sorted(FILES.items()))
    with pytest.raises(UserError, match="there is no model owner/other in"):
        bring("owner/other", mirror=str(tmp_path / "mirror"))


def test_which_files():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert model_files(["config.json", "model.safetensors.index.json", *shards, "pytorch_model.bin"]) == [
        "config.json", "model.safetensors.index.json", *shards,
    ]  # fmt: skip
    assert model_files(["pytorch_model.bin", "config.json", "spiece.model"])[-1] == "pytorch_model.bin"
    assert model_files(["config.json", "tf_model.h5", *shards]) == []
    assert model_files(["../config.json", "sub/model.safetensors", "model.safetensors.py"]) == []


def test_a_model_without_weights_for_pytorch(hub, bring):
    hub.put("owner/small", {"config.json": b"{}", "tf_model.h5": b""})
    with pytest.raises(UserError, match="PyTorch cannot load it"):
        bring("owner/small")
    hub.put("owner/bare", {"model.safetensors": b""})
    with pytest.raises(UserError, match=r"has no config\.json"):
        bring("owner/bare")


def test_the_token_is_for_the_hub_and_for_no_mirror(hub, bring, server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.put("owner/small", FILES)
    bring("owner/small")
    assert not [request for request in server.requests if "hf_secret" in str(request.headers)]
    # What HF_ENDPOINT sets.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.put("owner/private", FILES)
    bring("owner/private", mirror=None)
    assert all("hf_secret" in str(r.headers) for r in server.requests if "private" in r.path)
    assert "hf_secret" not in (tmp_path / "models" / "private" / RECORD).read_text()


def test_a_hub_that_fails_for_a_while(hub, bring, server, waits):
    hub.put("owner/small", FILES)
    server.answers["/api/models/owner/small"][:0] = [status(503), status(502)]
    bring("owner/small")
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (status(404, X_Error_Code="RepoNotFound"), "has no model owner/small"),
        (status(401), "has no model owner/small"),
        (status(403, X_Error_Code="GatedRepo"), "hf auth login"),
        (status(418), "answers 418"),
        (status(500), "answers 500, 4 times in a row"),
        (Answer(content=b"<html>", headers={"Content-Type": "text/html"}), "does not answer as the hub does"),
        (Answer(content=b"[]"), "does not answer as the hub does"),
        (Answer(content=b"{}"), "does not answer as the hub does"),
    ],
)
def test_answers_of_the_hub_that_end_it(hub, bring, server, answer, said):
    server.answers["/api/models/owner/small"] = [answer]
    with pytest.raises(UserError, match=said):
        bring("owner/small")


def test_a_name_that_is_nearly_known(hub, bring):
    with pytest.raises(UserError, match="did you mean bert-base-uncased"):
        bring("bert-base-uncasd")


@pytest.mark.parametrize("name", ["..", "/", "a b/c", "", "@main", "a//b", "x/y/z"])
def test_names_that_are_none(hub, bring, name):
    with pytest.raises(UserError):
        bring(name)


def test_offline(bring, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="owner/small has to be fetched and HF_HUB_OFFLINE"):
        bring("owner/small")


def test_where_nobody_listens(hub, bring, waits):
    with pytest.raises(UnreachableError, match="cannot be reached"):
        bring("owner/small", mirror="http://127.0.0.1:9")
    assert waits == [1.0, 2.0, 4.0]
