"""Requests and responses: HTTP/1.1 with persistent connections, streamed bodies, ranges, and faults on purpose."""

import contextlib
import functools
import json
import os
import re
import socket
import struct
import traceback
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from time import sleep
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

from .accounts import ANYONE
from .content import PIECE, InMemory
from .faults import Cut
from .refusals import Refusal
from .request_log import Logged
from .routing import dispatch


@dataclass
class Reply:
    status: int = 200
    content: object = field(default_factory=lambda: InMemory(b""))
    headers: dict[str, str] = field(default_factory=dict)
    start: int = 0
    end: int | None = None


def json_reply(value, status=200, headers=None):
    content = InMemory(json.dumps(value, default=str).encode())
    return Reply(status, content, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def page(request, items, size):
    """The items of one page, with a link to the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if start + size < len(items):
        query = [(name, value) for name, value in parse_qsl(request.raw_query) if name != "cursor"]
        query.append(("cursor", str(start + size)))
        headers["Link"] = f'<{request.hub.url}{request.raw_path}?{urlencode(query)}>; rel="next"'
    return json_reply(items[start : start + size], headers=headers)


def ranged(request, content, headers):
    """The content, or the range that the client requests."""
    headers = {"Accept-Ranges": "bytes", **headers}
    size = content.size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not match or match.groups() == ("", ""):
        return Reply(200, content, headers)
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= end:
        raise Refusal(416, f"Range not satisfiable: {match[0]} of {size}", headers={"Content-Range": f"bytes */{size}"})
    return Reply(206, content, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}, start, end)


class Body:
    """The body of a request, of known length or in chunks, up to a limit."""

    def __init__(self, file, headers, limit, logged):
        self.file = file
        self.limit = limit
        self.logged = logged
        self.cut_at = None
        self.reset = False
        self.is_begun = self.is_read = False
        self.is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "0")
        self.length = int(length) if length.isdigit() else limit + 1  # refused below

    def pieces(self):
        """Can be read once; raises if the client disconnects."""
        self.is_begun = True
        self._check(0 if self.is_chunked else self.length)
        for size in self._sizes():
            while size:
                allowed = PIECE if self.cut_at is None else min(PIECE, self.cut_at - self.logged.received)
                if not allowed:
                    raise Cut(self.reset)
                piece = self.file.read(min(size, allowed))
                if not piece:
                    raise ConnectionError("the body of the request ends too early")
                size -= len(piece)
                self.logged.received += len(piece)
                self._check(self.logged.received)
                yield piece
        self.is_read = True

    def read(self):
        return b"".join(self.pieces())

    def drain(self):
        """Reads the rest of the body; returns whether the connection can be used for the next request."""
        try:
            for _ in () if self.is_begun else self.pieces():
                pass
        except Refusal:
            return False
        return self.is_read

    def _check(self, size):
        if size > self.limit:
            raise Refusal(413, f"The body is larger than {self.limit} bytes")

    def _sizes(self):
        if not self.is_chunked:
            yield self.length
            return
        while size := int(self.file.readline(64).split(b";")[0] or b"0", 16):
            yield size
            self.file.readline(64)
        while self.file.readline(1024).strip():
            pass  # trailers


class Request:
    def __init__(self, handler):
        parts = urlsplit(handler.path)
        self.hub = handler.server.hub
        self.port = handler.server.name
        self.method = handler.command
        self.raw_path = parts.path
        self.path = unquote(parts.path)
        self.raw_query = parts.query
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.caller = ANYONE
        authorization = self.headers.get("authorization")
        shown = {name: value for name, value in self.headers.items() if name != "authorization"}
        self.logged = Logged(self.port, self.method, self.path, parts.query, shown, authorization is not None)
        self.body = Body(handler.rfile, self.headers, self.hub.max_body, self.logged)

    @property
    def bearer(self):
        return self.headers.get("authorization", "").partition(" ")[2]

    @functools.cached_property
    def json(self):
        try:
            value = json.loads(self.body.read() or b"{}")
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refusal(400, "The body is not a JSON object")
        return value

    def flag(self, name):
        return self.query.get(name, [""])[0].lower() in ("1", "true")


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.name` says to which of the two ports."""

    protocol_version = "HTTP/1.1"
    server_version = "local_hub"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = PIECE
    timeout = 60

    def answer(self):
        request = Request(self)
        request.hub.requests.append(request.logged)
        try:
            faults = request.hub.faults.take(request)
            reply = self._reply(request, faults)
            self.close_connection = not request.body.drain() or self.close_connection
            self._send(request, reply, faults)
        except Cut as cut:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self._cut(cut.reset)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass

    def _reply(self, request, faults):
        try:
            for fault in faults:
                if fault.upload is not None:
                    request.body.cut_at, request.body.reset = fault.upload, fault.reset
                if fault.call:
                    fault.call()
                if fault.status:
                    raise Refusal(fault.status, fault.message, headers=fault.headers)
            self._identify(request)
            return dispatch(request)
        except Refusal as refusal:
            return json_reply(refusal.body, refusal.status, refusal.all_headers)
        except (Cut, ConnectionError, TimeoutError):
            raise
        except Exception:  # a bug of the server, which a test must not mistake for a client's error
            request.hub.errors.append(f"{request.logged}\n{traceback.format_exc()}")
            return json_reply({"error": "The local hub has failed"}, 500)

    def _identify(self, request):
        if request.port == "hub":
            request.caller = request.hub.accounts.caller(request.headers.get("authorization"))
            request.logged.user = request.caller.name
        elif request.hub.accounts.is_token(request.bearer):
            request.hub.leaks.append(str(request.logged))
            raise Refusal(500, "A token of the hub was sent to the storage")

    def _send(self, request, reply, faults):
        start, end = reply.start, reply.content.size if reply.end is None else reply.end
        request.logged.status = reply.status
        self.send_response(reply.status)
        headers = {"Content-Length": str(end - start), "X-Request-Id": uuid.uuid4().hex, **reply.headers}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = next((fault for fault in faults if fault.download is not None), None)
            pieces = reply.content.pieces(start, end)
            if any(fault.is_corrupting for fault in faults):
                pieces = corrupted(pieces, end - start)
            self._send_body(request, pieces, cut)
        self.wfile.flush()

    def _send_body(self, request, pieces, cut):
        for piece in pieces:
            if cut and request.logged.sent + len(piece) >= cut.download:
                piece = piece[: cut.download - request.logged.sent]
            request.logged.sent += len(piece)
            self.wfile.write(piece)
            if cut and request.logged.sent == cut.download:
                self.wfile.flush()
                raise Cut(cut.reset)

    def _cut(self, reset):
        if reset:
            sleep(0.05)  # let the sent bytes arrive: RST discards the others
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        else:
            self.connection.settimeout(5)
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(PIECE):
                pass  # unread data would turn FIN into RST


def corrupted(pieces, size):
    """The same bytes, with the last one changed."""
    for piece in pieces:
        size -= len(piece)
        yield piece if size else piece[:-1] + bytes([piece[-1] ^ 0xFF])
