"""Publish a model on the Hugging Face Hub, as one commit, private unless told otherwise:

    scratch-gpt publish --folder_path runs/quickstart/run/model --repo_id alice/tiny --dry_run
    scratch-gpt publish --folder_path runs/quickstart/run/model --repo_id alice/tiny

Weights, config, code, tokenizer, model card and pictures are sent and nothing else; weights of an earlier push that
are not sent again are removed. The same command again sends only what has changed.
"""

import sys
from collections.abc import Sequence

from .hub.upload import PublishArguments, publish
from .settings.command import run_command
from .settings.recipe import parse_recipe


def main(argv: Sequence[str] | None = None) -> None:
    """List, send, and say how to load what was sent."""
    (arguments,) = parse_recipe([PublishArguments], argv, description=__doc__ or "")
    done = publish(arguments)
    if arguments.dry_run:
        print(f"{done.table()}\nnothing was sent (--dry_run)")
        return
    if done.url is None:
        print(f"{done.table()}\nthe Hub holds all of it already: nothing was sent")
    else:
        print(f"published, and the Hub lists the checksums of what lies here: {done.pull_request or done.url}")
    print(f'load exactly this: from_pretrained("{done.name.repo_id}", revision="{done.sha}")')


if __name__ == "__main__":
    sys.exit(run_command(main))
