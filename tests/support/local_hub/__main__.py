"""Run a local Hub from a shell: `python -m tests.support.local_hub --port 8000`."""

import argparse
import contextlib
import signal
from pathlib import Path

import yaml

from .server import LocalHub


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.support.local_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="Port of the hub; 0 takes a free one.")
    parser.add_argument("--storage-port", type=int, default=0, help="Port of the storage.")
    parser.add_argument("--folder", type=Path, help="New folder for uploads; it is emptied at the end.")
    parser.add_argument(
        "--accounts", type=Path,
        help="YAML file with `users` (name: full name) and `organizations` (name: {fullname, members: {user: role}, "
        "private_by_default}) to add.",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # even if the shell ignores the first one
        signal.signal(number, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        LocalHub(arguments.port, arguments.storage_port, arguments.folder) as hub,
    ):
        if arguments.accounts:
            add_accounts(hub, yaml.safe_load(arguments.accounts.read_text()))
        print(f"export HF_ENDPOINT={hub.url}")
        print(f"export HF_TOKEN={hub.token()}")
        for user in hub.accounts.users:
            print(f"# {user}: {' '.join(hub.token(user, role) for role in ('write', 'read'))}")
        print("# All data is deleted when this process ends (Ctrl-C).", flush=True)
        signal.pause()


def add_accounts(hub, described):
    for name, fullname in (described.get("users") or {}).items():
        hub.accounts.add_user(name, fullname)
    for name, about in (described.get("organizations") or {}).items():
        hub.accounts.add_organization(name, **about)


if __name__ == "__main__":
    main()
