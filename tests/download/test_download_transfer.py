"""One file from a server that drops, lies, changes its mind and refuses: the right bytes, or one line and nothing."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest
from file_server import Answer, broken_after, status

from bert_emd.errors import UserError
from bert_emd.transfer import (
    UnreachableError,
    Wanted,
    addresses,
    announced_size,
    check_room,
    checksum_fault,
    checksum_of,
    fetch,
    workplace,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OTHER = bytes(reversed(CONTENT))


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def get(tmp_path, retry, watcher):
    """Fetches to one file, whose checksum and size are known unless told otherwise."""

    def run(*places, content=CONTENT, size=True, checksum=True, **more):
        wanted = Wanted(
            name="x.zip",
            addresses=places,
            size=len(content) if size else None,
            checksum=sum_of(content) if checksum else None,
            **more,
        )
        target = tmp_path / "out" / "x.zip"
        fetch(wanted, target, retry=retry, watcher=watcher)
        return target

    return run


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_file_appears_whole_and_nothing_else_is_left(server, get, tmp_path, watcher):
    assert get(server.put("a/x.zip", CONTENT)).read_bytes() == CONTENT
    assert left(tmp_path) == ["x.zip"]
    assert watcher.at[-1] == len(CONTENT)
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_a_file_that_is_there_as_wanted_is_not_asked_for(server, get):
    address = server.put("x.zip", CONTENT)
    get(address)
    get(address)
    assert len(server.requests) == 1


def test_a_file_that_is_there_and_is_not_as_wanted_is_fetched(server, get, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.zip").write_bytes(OTHER)
    assert get(server.put("x.zip", CONTENT)).read_bytes() == CONTENT


def test_a_broken_connection_is_gone_on_with(server, get, waits, watcher):
    path = server.put("x.zip", CONTENT, broken_after(300_000, CONTENT), broken_after(200_000, CONTENT))
    assert get(path).read_bytes() == CONTENT
    # No byte was sent twice.
    assert [request.sent for request in server.requests] == [300_000, 200_000, len(CONTENT) - 500_000]
    assert server.requests[1].headers["Range"] == "bytes=300000-"
    assert server.requests[1].headers["If-Range"] == server.answers["/x.zip"][0].etag()
    # Each attempt brought something, so none is waited for longer than the first.
    assert waits == [1.0, 1.0]
    assert "the connection broke after 300,000 of 1,048,576 bytes" in watcher.notes[0]


def test_waits_double_while_nothing_new_comes(server, get, waits):
    assert get(server.put("x.zip", CONTENT, status(503), status(502), status(429))).read_bytes() == CONTENT
    assert waits == [1.0, 2.0, 4.0]


def test_a_server_that_asks_to_wait_is_waited_for(server, get, waits):
    assert get(server.put("x.zip", CONTENT, status(503, Retry_After="7"))).read_bytes() == CONTENT
    assert waits == [7.0]


def test_a_server_that_asks_to_wait_for_an_hour_is_not(server, get, waits):
    with pytest.raises(UserError, match="answers 503"):
        get(server.put("x.zip", CONTENT, status(503, Retry_After="3600")))
    assert waits == []


def test_a_server_that_goes_on_failing_is_given_up_and_what_came_is_kept(server, get, tmp_path, waits):
    path = server.put("x.zip", b"")
    server.answers["/x.zip"] = [broken_after(400_000, CONTENT), status(500)]
    with pytest.raises(UserError, match=r"answers 500.*4 attempts in a row.*400,000 bytes are kept"):
        get(path)
    assert waits == [1.0, 1.0, 2.0, 4.0]
    assert left(tmp_path) == ["x.zip.part", "x.zip.part.json"]
    server.requests.clear()
    server.put("x.zip", CONTENT)
    assert get(path).read_bytes() == CONTENT
    assert server.sent() == len(CONTENT) - 400_000
    assert left(tmp_path) == ["x.zip"]


def test_an_interruption_keeps_what_came(server, get, tmp_path, watcher, monkeypatch):
    path = server.put("x.zip", CONTENT)

    def interrupt(done, total):
        if done > 500_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(watcher, "moved", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(path)
    kept = (tmp_path / "out" / "x.zip.part").stat().st_size
    assert kept > 500_000
    assert not (tmp_path / "out" / "x.zip").exists()
    monkeypatch.undo()
    assert get(path).read_bytes() == CONTENT
    assert [r.sent for r in server.requests if r.headers.get("Range") == f"bytes={kept}-"] == [len(CONTENT) - kept]


def test_a_server_without_ranges_begins_anew(server, get, waits):
    more = {"ranges": False}
    path = server.put("x.zip", CONTENT, broken_after(300_000, CONTENT, **more), **more)
    assert get(path).read_bytes() == CONTENT
    assert [request.sent for request in server.requests] == [300_000, len(CONTENT)]


def test_a_server_without_ranges_that_always_breaks_at_one_place_is_given_up(server, get, waits):
    server.put("x.zip", b"")
    server.answers["/x.zip"] = [broken_after(300_000, CONTENT, ranges=False)]
    with pytest.raises(UserError, match="brought nothing more"):
        get(f"{server.url}/x.zip")
    assert len(server.requests) == 5  # one that brought something, four that did not


@pytest.mark.parametrize("heeded", [True, False], ids=["if-range", "no if-range"])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_that_changed_between_two_tries_is_begun_anew(server, get, heeded, checksum):
    path = server.put("x.zip", OTHER, broken_after(300_000, CONTENT), if_range=heeded)
    assert get(path, content=OTHER, checksum=checksum, size=checksum).read_bytes() == OTHER


@pytest.mark.parametrize("checksum", [True, False])
def test_dates_mark_versions_too(server, get, checksum):
    old, new = ("Mon, 06 Jul 2026 10:00:00 GMT", "Tue, 07 Jul 2026 10:00:00 GMT")
    weak = {"tag": 'W/"1"'}
    path = server.put("x.zip", OTHER, broken_after(300_000, CONTENT, modified=old, **weak), modified=new, **weak)
    assert get(path, content=OTHER, checksum=checksum).read_bytes() == OTHER
    assert server.requests[1].headers["If-Range"] == old


def test_a_file_that_changed_without_a_mark_is_found_out_by_its_checksum(server, get, watcher):
    path = server.put("x.zip", OTHER, broken_after(300_000, CONTENT, tag=None), tag=None)
    assert get(path, content=OTHER).read_bytes() == OTHER
    assert [request.sent for request in server.requests] == [300_000, len(OTHER) - 300_000, len(OTHER)]
    assert any("the pieces do not fit together" in note for note in watcher.notes)


def test_without_mark_and_checksum_nothing_is_gone_on_with(server, get, tmp_path, retry):
    server.put("x.zip", b"")
    server.answers["/x.zip"] = [broken_after(300_000, CONTENT, tag=None), *[status(500)] * 4, Answer(content=OTHER)]
    with pytest.raises(UserError):
        get(f"{server.url}/x.zip", checksum=False)
    assert get(f"{server.url}/x.zip", content=OTHER, checksum=False).read_bytes() == OTHER
    assert "Range" not in server.requests[-1].headers


def test_bytes_of_another_address_are_not_gone_on_with(server, get):
    first = server.put("a/x.zip", b"")
    server.answers["/a/x.zip"] = [broken_after(300_000, CONTENT), status(403)]
    with pytest.raises(UserError, match="403"):
        get(first)
    assert get(server.put("b/x.zip", CONTENT)).read_bytes() == CONTENT
    assert "Range" not in server.requests[-1].headers


def test_a_part_whose_record_is_damaged_is_not_gone_on_with(server, get, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.zip.part").write_bytes(OTHER[:1000])
    (tmp_path / "out" / "x.zip.part.json").write_text("{")
    assert get(server.put("x.zip", CONTENT)).read_bytes() == CONTENT
    assert server.sent() == len(CONTENT)


def test_a_part_that_is_complete_is_not_asked_for(server, get, tmp_path):
    path = server.put("x.zip", CONTENT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.zip.part").write_bytes(CONTENT)
    record = {"source": path, "checksum": sum_of(CONTENT), "validator": None}
    (tmp_path / "out" / "x.zip.part.json").write_text(json.dumps(record))
    assert get(path).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("length", [len(CONTENT) - 1000, len(CONTENT) + 1000], ids=["too small", "too large"])
def test_a_size_that_is_not_the_published_one_is_refused_at_once(server, get, tmp_path, length, waits):
    with pytest.raises(UserError, match=r"announces .* and the published file has 1,048,576"):
        get(server.put("x.zip", CONTENT, length=length))
    assert (left(tmp_path), waits) == ([], [])


def test_a_size_that_is_too_large_by_the_server_alone_ends_where_the_file_ends(server, get):
    path = server.put("x.zip", CONTENT, Answer(content=CONTENT, length=len(CONTENT) + 1000))
    assert get(path, size=False).read_bytes() == CONTENT
    # It asked for the rest, and was told that there is none.
    assert server.requests[1].headers["Range"] == f"bytes={len(CONTENT)}-"


def test_a_size_that_is_too_small_by_the_server_alone_is_found_out_by_the_checksum(server, get, tmp_path):
    with pytest.raises(UserError, match="is not the published file: its SHA-256 is"):
        get(server.put("x.zip", CONTENT, length=len(CONTENT) - 1000), size=False)
    assert left(tmp_path) == []


def test_wrong_bytes_are_refused_and_not_kept(server, get, tmp_path):
    with pytest.raises(UserError, match="is not the published file"):
        get(server.put("x.zip", OTHER), content=CONTENT)
    assert left(tmp_path) == []
    assert len(server.requests) == 1


def test_a_page_of_a_networks_login_is_refused(server, get):
    with pytest.raises(UserError, match="announces 26 bytes"):
        get(server.put("x.zip", b"<html>please log in</html>"))


def test_a_file_without_end_is_stopped(server, get, tmp_path):
    endless = Answer(content=CONTENT * 3, headers={"Content-Length": None, "Connection": "close"}, drop_after=10**9)
    server.put("x.zip", b"")
    server.answers["/x.zip"] = [endless]
    with pytest.raises(UserError, match="goes on past 1,048,576 bytes"):
        get(f"{server.url}/x.zip")
    with pytest.raises(UserError, match="goes on past 2,000,000 bytes"):
        get(f"{server.url}/x.zip", size=False, checksum=False, limit=2_000_000)
    assert left(tmp_path) == []


def test_what_was_compressed_on_the_way_is_refused(server, get):
    with pytest.raises(UserError, match="compressed"):
        get(server.put("x.zip", CONTENT, headers={"Content-Encoding": "gzip"}))


def test_the_next_address_is_tried_where_one_has_nothing(server, get):
    path = server.put("x.zip", CONTENT)
    assert get(f"{server.url}/glue/x.zip", path).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"x\.zip is not at .*/a nor at .*/b"):
        get(f"{server.url}/a", f"{server.url}/b", content=OTHER)


@pytest.mark.parametrize(
    ("code", "said"), [(401, "401 Unauthorized; it may need a login"), (403, "403"), (418, "418"), (204, "204")]
)
def test_refusals_are_final(server, get, code, said, waits):
    server.put("x.zip", b"")
    server.answers["/x.zip"] = [status(code)]
    with pytest.raises(UserError, match=said):
        get(f"{server.url}/x.zip")
    assert waits == []


def test_redirects_are_followed_without_the_users_token(server, get):
    other = server.url.replace("127.0.0.1", "localhost")
    server.put("real/x.zip", CONTENT)
    server.put("x.zip", b"", status=302, headers={"Location": f"{other}/real/x.zip"})
    assert get(f"{server.url}/x.zip", headers={"Authorization": "Bearer secret"}).read_bytes() == CONTENT
    assert server.requests[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.requests[1].headers


def test_a_circle_of_redirects_is_refused(server, get):
    server.put("x.zip", b"", status=302, headers={"Location": "/x.zip"})
    with pytest.raises(UserError, match="without end"):
        get(f"{server.url}/x.zip")


def test_where_nobody_listens(get, waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1 cannot be reached .*4 times in a row.*online"):
        get(f"http://127.0.0.1:{port}/x.zip")
    assert waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/x.zip", "http://[::1/x.zip", "http://a b/x.zip"])
def test_addresses_that_are_none(get, address):
    with pytest.raises(UserError):
        get(address)


def test_a_file_from_a_folder(get, tmp_path):
    (tmp_path / "x.zip").write_bytes(CONTENT)
    assert get(tmp_path / "nothing" / "x.zip", tmp_path / "x.zip").read_bytes() == CONTENT
    (tmp_path / "x.zip").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="it has 1,048,575 bytes and should have 1,048,576"):
        get(tmp_path / "x.zip", content=CONTENT[:-2] + b"xx")
    (tmp_path / "x.zip").write_bytes(OTHER)
    with pytest.raises(UserError, match="is not the published file"):
        get(tmp_path / "x.zip", content=CONTENT[:-2] + b"xx")


def test_a_folder_that_cannot_be_written(server, retry, tmp_path):
    (tmp_path / "file").write_text("")
    wanted = Wanted(name="x.zip", addresses=[server.put("x.zip", CONTENT)])
    with pytest.raises(UserError, match="cannot be written"):
        fetch(wanted, tmp_path / "file" / "x.zip", retry=retry)


def test_passwords_are_neither_shown_nor_kept(server, get, tmp_path):
    server.put("x.zip", b"")
    server.answers["/x.zip"] = [broken_after(300_000, CONTENT), status(403)]
    with pytest.raises(UserError, match="403") as raised:
        get(f"{server.url}/x.zip".replace("//", "//me:s3cret@"))
    assert "s3cret" not in str(raised.value)
    assert "s3cret" not in (tmp_path / "out" / "x.zip.part.json").read_text()
    assert server.requests[0].headers["Authorization"].startswith("Basic ")


def test_mirrors():
    there = ("https://a.example", "glue/data/CoLA.zip")
    assert addresses(*there, None) == ("https://a.example/glue/data/CoLA.zip",)
    assert addresses(*there, "http://b")[0] == "http://b/glue/data/CoLA.zip"


def test_a_folder_as_a_mirror(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    expected = (folder / "glue/data/CoLA.zip", folder / "CoLA.zip")
    assert addresses("https://a", "glue/data/CoLA.zip", str(folder)) == expected
    assert addresses("https://a", "glue/data/CoLA.zip", folder.as_uri()) == expected
    with pytest.raises(UserError, match=r"is no folder; give an address that begins https://"):
        addresses("https://a", "x", "dl.example.org")


def test_the_size_that_a_server_announces(server, tmp_path):
    server.put("x.zip", CONTENT)
    (tmp_path / "y").write_bytes(b"four")
    assert announced_size([f"{server.url}/no", f"{server.url}/x.zip"], timeout=5) == len(CONTENT)
    assert announced_size([tmp_path / "x", tmp_path / "y"], timeout=5) == 4
    assert announced_size([f"{server.url}/no", "nonsense"], timeout=5) is None


def test_checksums(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    # As `sha256sum`, `md5sum` and `git hash-object` print them.
    known = {
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "md5": "b1946ac92492d2347c6235b4d2611184",
        "git": "ce013625030ba8dba906f756967f9e9ca394464a",
    }
    for kind, value in known.items():
        assert checksum_of(path, kind) == value
        assert checksum_fault(path, value if kind == "sha256" else f"{kind}:{value}") is None
        assert checksum_fault(path, f"{kind}:{'0' * 32}") is not None
    assert checksum_fault(path, None) is None


def test_no_room(tmp_path):
    with pytest.raises(UserError, match=r"has no room: .* GB are needed"):
        check_room(tmp_path / "not" / "yet", 10**18)


def test_one_download_at_a_time_in_a_folder(tmp_path):
    with (
        workplace(tmp_path / "data", []),
        pytest.raises(UserError, match="another download is at work"),
        workplace(tmp_path / "data", []),
    ):
        pass
    assert not (tmp_path / "data").exists()  # nothing came of it


def test_the_workplace_keeps_what_is_under_way(tmp_path):
    with workplace(tmp_path / "data", []) as work:
        (work / "x.part").write_bytes(b"1")
    assert (work / "x.part").exists()
    with pytest.raises(UserError, match="no room"), workplace(tmp_path / "data", [("x", 10**18)]):
        pass
    # What is there already needs no room.
    with workplace(tmp_path / "data", [("x", 1)]) as work:
        (work / "x.part").unlink()
    assert not (tmp_path / "data" / ".downloads").exists()
