"""The content-addressed store of the local Hub with the real Xet client."""

import hashlib
import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hf_xet
import numpy as np
import pytest

from tests.support.local_hub.xet import Cas, unpack_xorb

MAX_CHUNK = 128 * 1024  # bytes, of the client
RAW, LZ4, GROUPED_LZ4 = range(3)  # compression schemes


class Handler(BaseHTTPRequestHandler):
    """Just enough HTTP around a Cas for the client to upload and download."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind, name = self.path.split("/")[2], self.path.split("/")[-1]
        self.server.received[kind].append((name, body))
        body = self.server.damage.get(kind, bytes)(body)
        try:
            if kind == "xorbs":
                self.answer(200, {"was_inserted": self.server.cas.put_xorb(name, body)})
            elif kind == "shards":
                self.answer(200, {"type": "result", "result": len(self.server.cas.put_shard(body))})
            else:
                self.answer(404, {})
        except ValueError as error:
            self.server.refused.append(str(error))
            self.answer(400, {})

    def do_GET(self):
        version, kind, *_, name = self.path.split("/")[1:]
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if kind == "reconstructions" and name in self.server.cas.files:
            url = f"{self.server.endpoint}/v1/sent/{{}}".format
            self.answer(200, self.server.cas.reconstruction(name, (int(first), int(last)), int(version[1:]), url))
        elif kind == "sent":
            body = self.server.cas.read_xorb(name, int(first), int(last) + 1)
            self.server.downloaded.append((name, len(body)))
            self.answer(206, body)
        else:
            self.answer(404, {})

    def answer(self, status, body):
        body = body if isinstance(body, bytes) else json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Records uploads and refusals; `damage` changes uploads before they are parsed."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.cas = Cas(folder)
        self.received = {"xorbs": [], "shards": [], "xorb-grants": [], "telemetry": []}
        self.downloaded, self.refused, self.damage = [], [], {}

    def handle_error(self, *_):
        if not isinstance(sys.exception(), ConnectionError):  # the client may hang up
            raise  # a test fails if a handler does

    def xorbs_of(self, info):
        return {term.xorb for term in self.cas.files[info.hash].terms}


class Client:
    """The client of huggingface_hub."""

    def __init__(self, endpoint, **settings):
        settings |= {"telemetry.enabled": False, "client.retry_max_attempts": 1, "client.retry_base_delay": "10ms"}
        self.session = hf_xet.XetSession(hf_xet.XetConfig().with_config(settings))
        self.connection = {"endpoint": endpoint, "token": "a", "token_expiry_unix_secs": int(time.time()) + 3600}

    def upload(self, *contents):
        with self.session.new_upload_commit(**self.connection) as commit:
            handles = [commit.start_upload_bytes(data, sha256=hf_xet.COMPUTE_SHA256) for data in contents]
        return [handle.result().xet_info for handle in handles]

    def download(self, info, path):
        with self.session.new_file_download_group(**self.connection) as group:
            group.start_download_file(hf_xet.XetFileInfo(info.hash, info.file_size), str(path))
        return path.read_bytes()

    def read(self, info, start, end):
        group = self.session.new_download_stream_group(**self.connection)
        return b"".join(group.download_stream(hf_xet.XetFileInfo(info.hash, info.file_size), start=start, end=end))


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "client"))  # its cache of earlier uploads
    server = Server(tmp_path / "cas")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server):
    return Client(server.endpoint)


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def floats(count):
    return np.random.default_rng(0).standard_normal(count).astype("<f4")


def schemes(body):
    return {body[start + 4] for start in unpack_xorb(body)[0].packed[:-1]}


CONTENTS = {
    "tensor that cannot be compressed": (noise(1_000_000), RAW),
    "text": (b"".join(b"%d green bottles, hanging on the wall\n" % i for i in range(20_000)), LZ4),
    "float32": (floats(200_001).tobytes(), GROUPED_LZ4),
    "bfloat16": ((floats(200_001).view("<u4") >> 16).astype("<u2").tobytes() + b"\n", GROUPED_LZ4),
    "one byte": (b"a", RAW),
}


@pytest.mark.parametrize(("data", "scheme"), CONTENTS.values(), ids=CONTENTS)
def test_uploads_are_downloaded_unchanged(server, client, tmp_path, data, scheme):
    [info] = client.upload(data)
    [(_, body)] = server.received["xorbs"]
    assert schemes(body) - {RAW} == {scheme} - {RAW}
    assert server.cas.read_file(info.hash) == data
    assert client.download(info, tmp_path / "file") == data
    sha256 = hashlib.sha256(data).hexdigest()
    assert server.cas.file_of_sha256(sha256) == info.hash
    assert server.cas.size_of(info.hash) == len(data)


def test_a_file_may_be_empty(server, client, tmp_path):
    [info] = client.upload(b"")
    assert not server.received["xorbs"]
    assert server.cas.read_file(server.cas.file_of_sha256(hashlib.sha256().hexdigest())) == b""
    assert client.download(info, tmp_path / "file") == b""
    empty = {"offset_into_first_range": 0, "terms": [], "xorbs": {}}
    assert server.cas.reconstruction(info.hash) == empty


def test_several_files_in_one_upload_share_a_xorb(server, client, tmp_path):
    contents = [noise(200_000), noise(300_000, seed=1), b"short"]
    infos = client.upload(*contents)
    assert len(server.received["xorbs"]) == 1
    assert len(server.received["shards"]) == 1
    for data, info in zip(contents, infos, strict=True):
        assert client.download(info, tmp_path / "file") == data


def test_repeated_content_is_stored_once(server, client, tmp_path):
    data = bytes(3_000_000) + noise(500_000) * 3
    [info] = client.upload(data)
    assert sum(len(body) for _, body in server.received["xorbs"]) < 1_000_000
    assert len(server.cas.files[info.hash].terms) > 10  # the same chunk again and again
    assert server.cas.read_file(info.hash) == data
    assert client.download(info, tmp_path / "file") == data
    assert sum(size for _, size in server.downloaded) < 1_000_000


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_several_xorbs(server, client, tmp_path, version):
    parts = [noise(300_000, seed) for seed in range(3)]
    [before] = client.upload(b"".join(parts))
    data = parts[2] + b"changed" + parts[0] + parts[2]
    [info] = client.upload(data)
    assert len(server.xorbs_of(info) - server.xorbs_of(before)) == 1
    assert len(server.xorbs_of(info)) == 2
    assert server.cas.read_file(info.hash) == data
    other = Client(server.endpoint, **{"client.reconstruction_api_version": version})
    assert other.download(info, tmp_path / "file") == data
    assert len(server.downloaded) > 2  # one request per range, as they do not touch


def test_any_range_of_a_file(server, client):
    parts = [noise(200_000, seed) for seed in range(3)]
    client.upload(b"".join(parts))
    data = parts[1] + b"".join(parts) + parts[1]
    [info] = client.upload(data)
    terms = server.cas.files[info.hash].terms
    assert len(terms) > 3
    edges = [0, len(data), *np.cumsum([term.size for term in terms])]
    places = sorted({place + shift for place in edges for shift in (-1, 0, 1) if 0 <= place + shift <= len(data)})
    choose = random.Random(0)
    for _ in range(40):
        start, end = sorted(choose.sample(places, 2))
        answer = server.cas.reconstruction(info.hash, (start, end - 1))
        sent = sum(term["unpacked_length"] for term in answer["terms"])
        assert end - start <= sent - answer["offset_into_first_range"] < end - start + MAX_CHUNK
        assert answer["offset_into_first_range"] < MAX_CHUNK
        assert client.read(info, start, end) == data[start:end]
        assert server.cas.read_file(info.hash, start, end) == data[start:end]


def test_the_client_reports_an_unknown_file(server, client, tmp_path):
    [info] = client.upload(b"known")
    unknown = hf_xet.XetFileInfo("0e" * 32, 5)
    with pytest.raises(Exception, match="404 Not Found"):
        client.download(unknown, tmp_path / "file")
    assert client.download(info, tmp_path / "file") == b"known"


def test_the_client_reports_a_damaged_xorb(server, client):
    server.damage["xorbs"] = lambda body: body[:-1]
    with pytest.raises(Exception, match="400 Bad Request"):
        client.upload(noise(100_000))
    assert server.refused == ["Chunk 0 of the xorb is damaged: " + server.received["xorbs"][0][1][:8].hex() + "."]
    assert not server.cas.files


def test_the_client_reports_content_with_another_hash(server, client):
    server.damage["xorbs"] = lambda body: body[:-1] + bytes([body[-1] ^ 1])  # a raw chunk holds any byte
    with pytest.raises(Exception, match="400 Bad Request"):
        client.upload(noise(1000))
    assert "has SHA-256" in server.refused[0]
    assert not server.cas.files


def test_no_part_of_a_shard_may_be_missing(server, client):
    client.upload(noise(200_000), b"a")
    [(_, body)] = server.received["shards"]
    for end in range(0, len(body), 16):
        with pytest.raises(ValueError, match=r"consists of records|too early"):
            server.cas.put_shard(body[:end])
    assert len(server.cas.put_shard(body)) == 2
