"""The routes of both ports; each module registers its own."""

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
