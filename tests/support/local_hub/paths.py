"""Rules for file names: invalid ones, those in `.gitignore`, and those that `.gitattributes` stores outside of Git."""

import re

from .refusals import Refusal

LARGE = 10_000_000  # bytes; the limit for files in Git
LFS_NAMES = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel"),
    *("*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt"),
    *("*.pth", "*.rar", "*.safetensors", "saved_model/**/*", "*.tar.*", "*.tar", "*.tflite", "*.tgz", "*.wasm"),
    *("*.xz", "*.zip", "*.zst", "*tfevents*"),
)
GIT_ATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES).encode()


def check_path(path):
    """Raises a 422 for a name that is unsafe on the machine of a reader."""
    parts = path.split("/") if isinstance(path, str) else [""]
    forbidden = {"", ".", "..", ".git"}
    is_bad = any(part.lower() in forbidden for part in parts) or parts[:2] == [".cache", "huggingface"]
    if (
        is_bad
        or re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", path)
        or re.match(r"[A-Za-z]:", path)
        or len(path.encode()) > 1024
    ):
        raise Refusal(422, f"Invalid path in a commit: {path!r}")


def check_no_file_is_a_folder(paths):
    for path in paths:
        parts = path.split("/")
        above = next((parent for end in range(1, len(parts)) if (parent := "/".join(parts[:end])) in paths), None)
        if above:
            raise Refusal(422, f"{above!r} cannot be both a file and the folder of {path!r}")


def is_ignored(path, gitignore):
    """Whether the last pattern that matches the path, or a folder above it, is not negated."""
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        if _decision("/".join(parts[:end]), _lines(gitignore), is_folder=end < len(parts)):
            return True  # as in Git, files in an ignored folder cannot be included again
    return False


def _decision(path, patterns, is_folder):
    ignored = False
    for line in patterns:
        pattern = line.removeprefix("!")
        if pattern.endswith("/") and not is_folder:
            continue
        if _matches(path, pattern.rstrip("/")):
            ignored = not line.startswith("!")
    return ignored


def is_lfs(path, size, sample, gitattributes):
    """Whether a file belongs in the object storage: by its name, its size, or because it is not text."""
    if size == 0:
        return False
    return size > LARGE or _has_lfs_filter(path, gitattributes) or _is_binary(sample)


def _has_lfs_filter(path, gitattributes):
    found = False
    for line in _lines(gitattributes):
        pattern, *attributes = line.split()
        if _matches(path, pattern):
            found = "filter=lfs" in attributes or (found and "-filter" not in attributes)
    return found


def _is_binary(sample):
    if b"\0" in sample:
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.end < len(sample) - 3  # the end of the sample may cut a character
    return False


def _lines(content):
    lines = (line.strip() for line in content.decode(errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _matches(path, pattern):
    """Git's rule: a pattern with a slash (except at the end) is anchored, others match the last part only."""
    if "/" not in pattern:
        path = path.rpartition("/")[2]
    return re.fullmatch(_expression(pattern.removeprefix("/")), path) is not None


def _expression(pattern):
    pieces = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|/\*\*$|\*\*|\*|\?|\[[^\]]+\]|\\.|.", pattern)
    return "".join(
        pieces.get(token) or (token.replace("[!", "[^") if token[0] == "[" and len(token) > 2 else re.escape(token[-1]))
        for token in tokens
    )
