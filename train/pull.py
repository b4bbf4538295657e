"""Download a model of the Hugging Face Hub and compare every file with the Hub's checksum:

    scratch-gpt pull --model alice/tiny
    scratch-gpt pull --model alice/tiny@v1 --local_dir models/tiny

The client of the Hub compares sizes only. Files that Python would unpickle are left there.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .hub.client import HubName
from .hub.download import pull
from .settings.command import run_command
from .settings.recipe import option, parse_recipe, required


@dataclass
class PullArguments:
    """Settings of train.pull."""

    model: str = required("Name on the Hub, such as alice/tiny; alice/tiny@v1 for a branch, a tag or a commit.")
    local_dir: str | None = option("Folder to download to; without, the cache that every Hugging Face library shares.")
    force_download: bool = option("Download again what is there.", False)


def main(argv: Sequence[str] | None = None) -> None:
    """Download, verify, and say how to load exactly this."""
    (arguments,) = parse_recipe([PullArguments], argv, description=__doc__ or "")
    name = HubName.parse(arguments.model)
    found = pull(name, local_dir=arguments.local_dir, force_download=arguments.force_download)
    print(f"{name} at commit {found.sha}: " + ("all checksums are the Hub's" if found.is_verified else "not verified"))
    code = sorted(path.name for path in found.folder.glob("*.py"))
    if code:
        print(f"it brings code, which nothing runs unless you pass trust_remote_code=True: {', '.join(code)}")
    print(f'from_pretrained("{name.repo_id}", revision="{found.sha}") loads exactly this.')
    print(found.folder)


if __name__ == "__main__":
    sys.exit(run_command(main))
