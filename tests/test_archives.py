"""Unpacking: what comes out of good archives, and that nothing comes out of hostile or damaged ones."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_emd.archives import is_archive, unpack
from bert_emd.errors import UserError

FILES = {"a.txt": b"one\n", "folder/b.bin": bytes(range(256)) * 9, "folder/deep/c": b"", "ü.txt": "ü".encode()}


def make_zip(path: Path, files: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as opened:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive: Path, match: str, **options: object) -> None:
    """Refused in one line, and the folder around it holds nothing new."""
    place = archive.parent / "place"
    place.mkdir()
    with pytest.raises(UserError, match=match) as error:
        unpack(archive, place / "out", **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert str(archive) in str(error.value)
    assert list(place.iterdir()) == []


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": make_zip,
    "tar": make_tar,
    "tar.gz": lambda path, files: make_tar(path, files, "w:gz"),
    "tar.bz2": lambda path, files: make_tar(path, files, "w:bz2"),
}
kinds = pytest.mark.parametrize("kind", MAKERS)


@kinds
def test_a_good_archive_comes_out_as_it_went_in_whatever_it_is_called(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "download", FILES)
    assert is_archive(archive)
    assert unpack(archive, tmp_path / "new" / "out") == sorted(FILES)
    assert found(tmp_path / "new" / "out") == FILES
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


@kinds
def test_only_what_is_wanted_comes_out(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "x", FILES)
    assert unpack(archive, tmp_path / "out", wanted=lambda name: name.startswith("folder/")) == [
        "folder/b.bin",
        "folder/deep/c",
    ]
    assert set(found(tmp_path / "out")) == {"folder/b.bin", "folder/deep/c"}


def test_folders_of_their_own_and_a_dot_before_names(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as opened:
        for name in (".", "./empty"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            opened.addfile(info)
    make_zip(tmp_path / "x.zip", {"empty/": b""})
    for kind in ("zip", "tar"):
        assert unpack(tmp_path / f"x.{kind}", tmp_path / kind) == []
        assert [p.name for p in (tmp_path / kind).iterdir()] == ["empty"]


def test_an_empty_folder_is_taken_and_one_in_use_left_alone(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x", FILES)
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="in use"):
        unpack(archive, tmp_path / "out")
    with pytest.raises(UserError, match="in use"):
        unpack(archive, tmp_path / "out" / "a.txt")
    assert (tmp_path / "out" / "a.txt").read_text() == "mine"
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out" / "a.txt" / "below")


ESCAPES = (
    "../out.txt",
    "/tmp/out.txt",
    "a/../../out.txt",
    "a\\..\\out.txt",
    "C:out.txt",
    "C:/out.txt",
    "n" * 256,
)


@pytest.mark.parametrize("name", ESCAPES, ids=repr)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_out_is_refused_also_where_it_is_not_wanted(kind: str, name: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "x", {"a.txt": b"", name: b"gotcha"})
    refused(archive, "leads out of its folder", wanted=lambda member: member == "a.txt")


def test_a_zip_name_with_a_zero_in_it_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x", {"good.txt?/../../up": b""})
    archive.write_bytes(archive.read_bytes().replace(b"good.txt?", b"good.txt\0"))
    refused(archive, "leads out")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_in_a_zip_are_refused(mode: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as opened:
        info = zipfile.ZipInfo("thing")
        info.external_attr = (mode | 0o644) << 16
        opened.writestr(info, "/etc/passwd")
    refused(tmp_path / "x", "'thing', which is (a link|neither)")


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_a_tar_are_refused(type: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w") as opened:
        info = tarfile.TarInfo("thing")
        info.type, info.linkname = type, "a.txt"
        opened.addfile(info)
    refused(tmp_path / "x", "'thing', which is (a link|neither)")


def test_no_permission_of_the_archive_is_taken_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w") as opened:
        info = tarfile.TarInfo("run")
        info.mode = 0o6777
        opened.addfile(info)
    unpack(tmp_path / "x", tmp_path / "out")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


@kinds
def test_the_same_name_twice_and_a_file_as_a_folder_are_refused(kind: str, tmp_path: Path) -> None:
    for number, names in enumerate((["a", "./a"], ["a", "a/b"], ["a/b", "a"])):
        (folder := tmp_path / str(number)).mkdir()
        refused(MAKERS[kind](folder / "x", dict.fromkeys(names, b"1")), "twice|as a file and as a folder")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2"])
def test_a_bomb_is_refused(kind: str, tmp_path: Path) -> None:
    refused(MAKERS[kind](tmp_path / "x", {"zeros": bytes(70 << 20)}), "zip bomb")


def test_a_small_archive_of_zeros_is_no_bomb(tmp_path: Path) -> None:
    assert unpack(make_zip(tmp_path / "x", {"zeros": bytes(20 << 20)}), tmp_path / "out") == ["zeros"]


@kinds
def test_too_many_bytes_or_members_are_refused(kind: str, tmp_path: Path) -> None:
    for number, limits in enumerate(({"limit_bytes": 2000}, {"limit_entries": 3})):
        (folder := tmp_path / str(number)).mkdir()
        refused(MAKERS[kind](folder / "x", FILES), "unpacks to more than|more than 3 members", **limits)
    assert len(unpack(MAKERS[kind](tmp_path / "x", FILES), tmp_path / "out", limit_entries=4)) == 4


def test_a_zip_that_announces_less_than_it_holds_gives_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x", {"zeros": bytes(5 << 20)})
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<I", 5 << 20), struct.pack("<I", 10)))
    refused(archive, "damaged")


def test_a_zip_that_announces_more_than_the_disk_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x", {"a": os.urandom(5000)})
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<I", 5000), struct.pack("<I", (1 << 32) - 2)))
    refused(archive, "unpacks to more than|zip bomb|make room", limit_bytes=1 << 40)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_with_an_endless_name_is_not_read_into_memory(kind: str, tmp_path: Path) -> None:
    refused(MAKERS[kind](tmp_path / "x", {"a": b"1", "n" * (30 << 20): b""}), "header of more than 1 MiB")


@kinds
@pytest.mark.parametrize("left", [0.1, 0.5, 0.9])
def test_a_truncated_archive_gives_nothing(kind: str, left: float, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "x", {str(i): os.urandom(20_000) for i in range(5)})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(left * len(content))])
    refused(archive, "damaged|not complete")


def test_a_tar_cut_between_two_members_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "x", {"a": bytes(512), "b": bytes(512)})
    archive.write_bytes(archive.read_bytes()[:1024])
    refused(archive, "damaged")


@kinds
def test_damaged_bytes_give_nothing(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "x", {str(i): os.urandom(20_000) for i in range(5)})
    content = bytearray(archive.read_bytes())
    if kind == "tar":  # it has no checksums but those of its headers
        content[20_992 + 10 : 20_992 + 20] = b"?" * 10
    else:
        content[30_000:30_010] = bytes(10)
    archive.write_bytes(content)
    refused(archive, "damaged")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "encrypted")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x1f\x8b", b"plain text", zlib.compress(b"x"), b"PK\x03\x04" + bytes(99)]
)
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", "neither a zip nor a tar|damaged")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "x", "cannot read")


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(tmp_path / "x", FILES)

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    (tmp_path / "place").mkdir()
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "place" / "out", wanted=interrupt)
    assert list((tmp_path / "place").iterdir()) == []


@kinds
def test_a_leftover_with_a_control_character_is_in_the_way_only_where_it_is_wanted(kind: str, tmp_path: Path) -> None:
    """File managers leave members such as "Icon\\r" in published archives."""
    archive = MAKERS[kind](tmp_path / f"a.{kind}", {"a.txt": b"one\n", "folder/Icon\r": b""})
    assert unpack(archive, tmp_path / "out", limit_bytes=100, wanted=lambda name: name.endswith(".txt")) == ["a.txt"]
    assert found(tmp_path / "out") == {"a.txt": b"one\n"}
    refused(archive, "control characters", limit_bytes=100)
