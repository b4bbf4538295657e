"""Download a model from the Hugging Face Hub and verify the checksum of every file:

    scratch-gpt pull --model alice/tiny
    scratch-gpt pull --model alice/tiny@v1 --local_dir models/tiny

Pickle files are never downloaded.
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
    """Settings of `scratch-gpt pull`."""

    model: str = required("Name on the Hub, such as alice/tiny, or alice/tiny@v1 for a branch, tag or commit.")
    local_dir: str | None = option("Folder to download to (default: the Hugging Face cache).", is_path=True)
    force_download: bool = option("Download again files that already exist.", False)


def main(argv: Sequence[str] | None = None) -> None:
    """Download, verify, and print how to load this version."""
    (arguments,) = parse_recipe([PullArguments], argv, description=__doc__ or "")
    name = HubName.parse(arguments.model)
    model = pull(name, local_dir=arguments.local_dir, force_download=arguments.force_download)
    print(f"{name} at commit {model.sha}: {'all checksums match' if model.is_verified else 'not verified (offline)'}")
    code = sorted(path.name for path in model.folder.glob("*.py"))
    if code:
        print(f"contains Python code, which runs only with trust_remote_code=True: {', '.join(code)}")
    print(f'load this version: from_pretrained("{name.repo_id}", revision="{model.sha}")')
    print(model.folder)


if __name__ == "__main__":
    sys.exit(run_command(main))
