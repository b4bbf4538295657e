"""Storage: small files as Git blobs in memory, large ones on disk by their SHA-256 or in the Xet storage."""

import hashlib
import shutil
import uuid

from .content import InMemory, InXet, OnDisk
from .refusals import Refusal
from .xet import Cas


class Objects:
    def __init__(self, folder):
        self.folder = folder
        self.blobs = {}
        self.cas = Cas(folder / "xet")
        (folder / "lfs").mkdir(parents=True)

    def put_blob(self, data):
        """The Git id of these bytes."""
        oid = blob_id(data)
        self.blobs[oid] = data
        return oid

    def put_lfs(self, sha256, size, pieces):
        """Stores an upload if it has the announced size and hash."""
        part = self.folder / f"{uuid.uuid4().hex}.part"
        digest, received = hashlib.sha256(), 0
        try:
            with part.open("wb") as file:
                for piece in pieces:
                    received += len(piece)
                    digest.update(piece)
                    file.write(piece)
            if received != size:
                raise Refusal(400, f"Size of the upload is {received}, {size} was announced")
            if digest.hexdigest() != sha256:
                raise Refusal(400, f"SHA-256 of the upload is {digest.hexdigest()}, {sha256} was announced")
            part.replace(self._lfs_path(sha256))
        finally:
            part.unlink(missing_ok=True)

    def has(self, sha256):
        return self._lfs_path(sha256).exists() or self.xet_hash(sha256) is not None

    def xet_hash(self, sha256):
        """The hash of a large file in the Xet storage, or None if it is elsewhere."""
        try:
            return self.cas.file_of_sha256(sha256)
        except KeyError:
            return None

    def lfs_size(self, sha256):
        return self.lfs_content(sha256).size

    def content(self, entry):
        """The content of a file of a commit."""
        if entry.sha256 is None:
            return InMemory(self.blobs[entry.oid])
        return self.lfs_content(entry.sha256)

    def lfs_content(self, sha256):
        path = self._lfs_path(sha256)
        return OnDisk(path) if path.exists() else InXet(self.cas, self.cas.file_of_sha256(sha256))

    def every_content(self):
        """(name, content) of everything that is stored, also without a commit, as it is on the disk."""
        for oid, data in list(self.blobs.items()):
            yield f"blob {oid}", InMemory(data)
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            yield str(path.relative_to(self.folder)), OnDisk(path)

    def delete(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lfs_path(self, sha256):
        return self.folder / "lfs" / sha256


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(sha256, size):
    """The pointer that Git stores for a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
