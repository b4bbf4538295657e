"""Text as people have it: other encodings, .gz, line ends of Windows; what cannot be read is named with a remedy."""

import gzip
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from train.data.text_files import CHUNK_SIZE, read_text, text_lines
from train.settings.reading import Reading, suffix_of

CAFE = "Café «Müller» \u2013 naïve\n" * 50
RUSSIAN = "Все счастливые семьи похожи друг на друга\n"  # noqa: RUF001


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16", "utf-16-le", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.TXT.GZ"])
def test_every_encoding_is_read_also_compressed(tmp_path, encoding, name):
    text = CAFE.replace("ï", "i").replace("«", "").replace("»", "") if encoding == "gb18030" else CAFE
    text = text if encoding != "gb18030" else "汉字\n" + text.replace("é", "e")
    path = write(tmp_path / name, text.encode(encoding))
    reading = Reading(encoding=encoding)
    assert read_text(path, reading) == text
    assert list(text_lines(path, reading)) == text.splitlines(keepends=True)


def test_line_ends_of_windows_become_line_feeds_unless_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.text_files.CHUNK_SIZE", 3)  # CR and LF are in different chunks
    for content in (b"ab\r\ncd\r\n", b"\r\n\r\n", b"a\r", b"a\rb\r\r\n", b"\xef\xbb\xbfa\r\nb"):
        path = write(tmp_path / "a.txt", content)
        text = content.decode("utf-8-sig")
        assert read_text(path) == text.replace("\r\n", "\n")
        assert read_text(path, Reading(keep_crlf=True)) == text


def test_characters_that_span_chunks(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", CAFE.encode())
    monkeypatch.setattr("train.data.text_files.CHUNK_SIZE", 7)
    assert read_text(path) == CAFE
    bad = CAFE.encode()[:200] + b"\xff"
    with pytest.raises(ValueError, match=rf"byte {len(bad) - 1} is 0xff"):
        read_text(write(path, bad))


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = "a\u2028b\x85c\rd\n" + "x" * (3 * CHUNK_SIZE) + "\nlast"
    assert list(text_lines(write(tmp_path / "a.txt", text.encode()))) == [
        *(f"{one}\n" for one in text.split("\n")[:2]),
        "last",
    ]
    assert list(text_lines(write(tmp_path / "a.txt", b""))) == []


@pytest.mark.parametrize(
    ("content", "name", "option", "iconv"),
    [
        ("Café naïve\n".encode("latin-1"), "Latin-1", "latin-1", "-f ISO-8859-1"),
        ("“Café” and Müller, still naïve: \u2013\n".encode("cp1252"), "Windows-1252", "cp1252", "-f WINDOWS-1252"),
        ("Café\n".encode("utf-16"), "UTF-16", "utf-16", "-f UTF-16 "),
        ("Cafe, plain\n".encode("utf-16-le"), "UTF-16", "utf-16-le", "-f UTF-16LE"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_likely_encoding_is_named_and_both_remedies_work(tmp_path, content, name, option, iconv, suffix):
    path = write(tmp_path / f"it's {option}.txt{suffix}", content)
    with pytest.raises(ValueError, match=rf"is not (UTF-8 )?text: byte \d+ is .*looks like|It is.*{name}") as error:
        read_text(path)
    message = str(error.value)
    assert f"--encoding {option}," in message
    assert iconv in message
    text = read_text(path, Reading(encoding=option))
    assert "Caf" in text
    if not shutil.which("iconv"):
        pytest.skip("there is no iconv")
    command = message.partition("convert it with ")[2]
    subprocess.run(["bash", "-c", command], check=True)
    converted = Path(shlex.split(command)[-1])
    assert converted.name == f"it's {option}.utf8.txt"
    assert read_text(converted).removeprefix("\ufeff") == text


def test_what_does_not_look_like_latin_letters_gets_no_guess(tmp_path):
    with pytest.raises(ValueError, match=r"another encoding, such as cp1251 \(Russian\).*: name it with --encoding"):
        read_text(write(tmp_path / "a.txt", RUSSIAN.encode("cp1251")))
    with pytest.raises(ValueError, match=r"Most of it is UTF-8: the byte is damaged.*iconv -c -f UTF-8"):
        read_text(write(tmp_path / "a.txt", ("Café naïve Müller\n" * 3).encode() + b"\xe9\n"))


@pytest.mark.parametrize("content", [b"Caf\xe9\n", "Café\n".encode("utf-16"), RUSSIAN.encode("cp1251")])
def test_no_option_is_suggested_where_there_is_none(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(ValueError, match=r"is not UTF-8 text: byte .*convert it .*with iconv") as error:
        read_text(path, Reading(has_encoding_option=False))
    assert "--encoding" not in str(error.value)


@pytest.mark.parametrize("spelling", ["utf8", "UTF8", "utf_8", "U8", "cp65001", "utf_8_sig", "UTF-8"])
def test_utf_8_has_many_spellings(tmp_path, spelling):
    """With the same message, and the same identity of a corpus."""
    assert Reading(encoding=spelling) == Reading()
    with pytest.raises(ValueError, match=r"is not UTF-8 text: byte 3 is 0xe9\. It looks like Latin-1"):
        read_text(write(tmp_path / "a.txt", "caf\xe9".encode("latin-1")), Reading(encoding=spelling))


def test_a_null_byte_in_another_encoding_with_16_in_its_name(tmp_path):
    with pytest.raises(ValueError, match="It looks like UTF-16: read it with --encoding utf-16-le"):
        read_text(write(tmp_path / "a.txt", "caffe".encode("utf-16-le")), Reading(encoding="iso8859-16"))


def test_a_wrong_encoding_is_named_with_the_place(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt is not cp1252 text at byte 3 .*choose another --encoding"):
        read_text(write(tmp_path / "a.txt", b"abc\x81"), Reading(encoding="cp1252"))
    with pytest.raises(ValueError, match=r"a\.txt is not utf-16 text"):
        read_text(write(tmp_path / "a.txt", b"abc"), Reading(encoding="utf-16"))
    for unknown in ("latin-99", "hex"):
        with pytest.raises(ValueError, match=rf"--encoding {unknown} is unknown: .*cp1252"):
            Reading(encoding=unknown)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.4\n%\xe2\xe3", r"byte 10 .* It is a PDF file\. Extract its text"),
        (b"PK\x03\x04\x14\x00", r"byte 5 is NUL\. It is a ZIP file\. Unpack it"),
        (gzip.compress(b"text", mtime=0), r"It is a gzip file\. Let its name end in \.gz"),
    ],
)
def test_formats_that_are_not_text_are_recognized(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a\.txt is not text: .*{message}"):
        read_text(write(tmp_path / "a.txt", content))


def test_damaged_gz_files_are_named(tmp_path):
    whole = gzip.compress(os.urandom(5000))
    for content in (whole[:-100], b"not compressed", whole[:30] + b"\0" * 20 + whole[50:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.txt\.gz is not a complete \.gz file|a\.txt\.gz is not text"):
            read_text(tmp_path / "a.txt.gz")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text", mtime=0)[:-4])
    with pytest.raises(ValueError, match=r"a\.txt\.gz is not a complete \.gz file \(Compressed file ended"):
        read_text(tmp_path / "a.txt.gz")


def test_a_file_name_that_is_not_utf_8_gets_the_command_that_renames_it(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 'x'.txt"))
    try:
        path.write_text("text")
    except OSError:
        pytest.skip("this file system allows no such names")
    with pytest.raises(ValueError, match=r"caf\\xe9 .* is not UTF-8: rename it, for example with mv ") as error:
        read_text(path)
    subprocess.run(["bash", "-c", str(error.value).partition("with ")[2]], check=True, cwd=tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["caf_ 'x'.txt"]


def test_the_suffix_of_a_file():
    names = {"a.txt": ".txt", "A.TXT": ".txt", "a.jsonl.gz": ".jsonl", "b.CSV.GZ": ".csv", "x.gz": "", "README": ""}
    assert {name: suffix_of(Path(name)) for name in names} == names
