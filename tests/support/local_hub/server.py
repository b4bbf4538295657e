"""The hub for tests and people: two ports, their data, and methods to set up, inspect and disturb it."""

import contextlib
import hashlib
import hmac
import secrets
import shutil
import socketserver
import sys
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from . import (
    client,
    routes,  # noqa: F401  registers the routes
)
from .accounts import Accounts
from .content import read
from .faults import Faults, Gate
from .objects import Objects
from .paths import check_path
from .repository import Repository, new_commit
from .request_log import RequestLog
from .wire import Handler


class Port(ThreadingHTTPServer):
    """Reserves a port at once, but responds only after `start`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name, hub, number, host="127.0.0.1"):
        super().__init__(("127.0.0.1", number), Handler, bind_and_activate=False)
        self.name = name
        self.host = host
        self.hub = hub
        self.is_started = False
        self.server_bind()

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own would look up the name of this machine

    @property
    def url(self):
        return f"http://{self.host}:{self.server_address[1]}"

    def start(self):
        if not self.is_started:
            self.is_started = True
            self.server_activate()
            threading.Thread(
                target=self.serve_forever, args=(0.05,), name=f"local_hub {self.name}", daemon=True
            ).start()

    def stop(self):
        if self.is_started:
            self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignores disconnected clients; everything else is an error of the server."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.hub.errors.append(f"{self.name}: {error!r}")


class LocalHub:
    """A Hugging Face Hub for one machine.

    `with LocalHub() as hub:` serves at `hub.url` until the end of the block. There are the users alice and bob, and the
    organization acme with alice as a member. After a test, `hub.leaks` (tokens seen where they do not belong) and
    `hub.errors` (faults of the server itself) should be empty.
    """

    def __init__(self, port=0, storage_port=0, folder=None):
        self._hub_port = Port("hub", self, port)
        # huggingface_hub 1 compares only the names of hosts, and would send tokens to another port of the same one
        self._storage_port = Port("storage", self, storage_port, host="localhost")
        self.url = self._hub_port.url
        self.storage_url = self._storage_port.url
        self._root = folder and Path(folder)
        self._temporary = None
        self.objects = None

    def start(self):
        if self.objects is None:
            self.reset()
        self._hub_port.start()
        self._storage_port.start()
        return self

    def close(self):
        self._hub_port.stop()
        self._storage_port.stop()
        self._forget()

    __enter__ = start

    def __exit__(self, *_):
        self.close()

    def reset(self):
        """Back to the initial state: no repositories, no faults, an empty log, new tokens; the addresses stay."""
        self._forget()
        folder = self._root or Path(tempfile.mkdtemp(prefix="local_hub_"))
        self._temporary = None if self._root else folder
        self.objects = Objects(folder / "objects")
        self.repositories = {}  # (kind, id in lower case) -> Repository
        self.moved = {}  # the same by former ids
        self.uploads = {}  # key -> unfinished upload to the storage
        self.xet_tokens = {}  # token -> "read" or "write"
        self._secret = secrets.token_bytes(16)
        self.faults = Faults()
        self.requests = RequestLog()
        self.leaks = []
        self.errors = []
        self.accounts = Accounts()
        self.accounts.add_user("alice")
        self.accounts.add_user("bob")
        self.accounts.add_organization("acme", {"alice": "admin"})
        self.lock = threading.RLock()
        self.max_body = 1 << 30  # bytes
        self.part_size = 5_000_000  # bytes; larger files are uploaded in parts if the client supports it
        self.announces_xet = True  # False: files are downloaded as from a server without Xet
        self.card_error = None  # the message that refuses every model card, if set

    def _forget(self):
        if self.objects is not None:
            self.objects.delete()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    # for routes

    def download_key(self, name):
        """The signature of a storage address."""
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()[:32]

    def xet_hash(self, entry):
        """The hash for a download by Xet, or None for a plain download."""
        return self.objects.xet_hash(entry.sha256) if self.announces_xet else None

    # set up and inspect

    def token(self, user="alice", role="write"):
        return self.accounts.token(user, role)

    def find(self, name, kind="model"):
        return self.repositories.get((kind, name.lower()))

    def repo(self, name, kind="model"):
        """A repository: `files()`, `history()`, `branches`, `tags`, `discussions`, `private`, `gated`, `granted`."""
        if found := self.find(name, kind):
            return found
        raise KeyError(f"no {kind} {name}, only {sorted(self.repositories)}")

    def create(self, name, kind="model", private=False, gated=False, author=None):
        """A repository with its first commit."""
        author = author or name.partition("/")[0]
        with self.lock:
            repository = Repository(kind, name, self.objects, author, private, gated)
            self.repositories[kind, name.lower()] = repository
        return repository

    def commit(self, name, files, *, kind="model", branch="main", title="Commit", author=None, is_checked=True):
        """Puts files, path -> bytes or None to delete, into a repository, without HTTP.

        `is_checked=False` takes any path, as a malicious server would.
        """
        repository = self.repo(name, kind)
        for path in files if is_checked else ():
            check_path(path)
        with repository.lock:
            parent = repository.head(branch)
            entries = {path: entry for path, entry in parent.files.items() if path not in files}
            new = {path: repository.entry_of(path, data, parent) for path, data in files.items() if data is not None}
            commit = new_commit(parent, entries | new, title, author or repository.namespace)
            repository.advance(branch, commit)
        return commit

    def every_stored_byte(self):
        """(where, bytes) of everything that clients have stored: contents, names, commits, discussions, the log."""
        for name, content in self.objects.every_content():
            yield name, read(content)
        for repository in self.repositories.values():
            commits = {commit.id: commit for head in repository.references() for commit in repository.history(head)}
            for commit in commits.values():
                yield f"{repository.id} {commit.id}", repr([commit, sorted(commit.files)]).encode()
            yield f"{repository.id} discussions", repr([repository.discussions, repository.references()]).encode()
        for entry in list(self.requests):
            yield f"request {entry.path}", f"{entry} {entry.headers}".encode()

    def environment(self, home, token=None, xet=True):
        """The variables of a process that uses only this hub, with its files in the folder `home`."""
        return client.environment(self, home, token, xet)

    # disturb

    def fail(self, *, path="", method=None, times=1, status=503, retry_after=None, message="", port=None):
        """Responds with an error. `method` may be several, as "GET|HEAD"; `times=None` means always."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        message = message or f"Fault on purpose, {status}"
        self.faults.add(method, path, port, times, status=status, headers=headers, message=message)

    def cut_download(self, after, *, path="", method="GET", times=1, reset=False, port=None):
        """Closes the connection after `after` bytes of the response's body, with FIN or with RST."""
        self.faults.add(method, path, port, times, download=after, reset=reset)

    def cut_upload(self, after, *, path="", method="PUT|POST", times=1, reset=False, port=None):
        """Closes the connection after `after` bytes of the request's body."""
        self.faults.add(method, path, port, times, upload=after, reset=reset)

    def corrupt(self, *, path="", method="GET", times=1, port=None):
        """Changes the last byte of a response's body."""
        self.faults.add(method, path, port, times, is_corrupting=True)

    def before(self, call, *, path="", method=None, times=1, port=None):
        """Calls a function before a request is processed."""
        self.faults.add(method, path, port, times, call=call)

    def before_commit(self, call, times=1):
        """Calls a function before a commit is processed, for example to make another commit first."""
        self.before(call, path="/commit/", method="POST", times=times)

    @contextlib.contextmanager
    def hold(self, *, path="", method=None, times=1, port=None):
        """Delays requests until the block ends or `open()` is called; `reached.wait(seconds)` waits for one."""
        gate = Gate()
        self.before(gate, path=path, method=method, times=times, port=port)
        try:
            yield gate
        finally:
            gate.open()
