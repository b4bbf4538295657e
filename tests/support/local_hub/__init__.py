"""A Hugging Face Hub on this machine, with its protocol, its storage and its accounts, for tests over real HTTP.

Read `server.py` first; `routes/` is what it answers, `wire.py` how. Run one by hand:
`python -m tests.support.local_hub`.
"""

from .server import LocalHub

__all__ = ["LocalHub"]
