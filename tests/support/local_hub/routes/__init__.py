"""What the two ports answer; each module registers its part."""

# ruff: noqa: F401
from . import (
    account,
    cards,
    discussions,
    files,
    history,
    large_files,
    lfs,
    metadata,
    references,
    repositories,
    uploads,
    xet,
)
