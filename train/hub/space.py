"""A Space on the Hugging Face Hub that shows a model with the page of `scratch-gpt demo`.

https://huggingface.co/docs/hub/spaces-sdks-gradio
"""

import json

from huggingface_hub import ModelCard

from hf_scratch_gpt._version import __version__

from ..settings.run_folder import CARD_FILE
from .client import HubName
from .upload import RemoteState, UploadPlan, is_on_hub
from .upload_files import UploadFile

APP_FILE, REQUIREMENTS_FILE = "app.py", "requirements.txt"
GRADIO_VERSION = "6.31.0"  # which the tests run with
MARK = "scratch-gpt demo"  # in the app.py of each of our Spaces

APP = f'''\
"""A look inside a language model: the page of `{MARK}`."""

from hf_scratch_gpt.training.demo import main

if __name__ == "__main__":
    main(["--model", %s, "--host", "0.0.0.0", "--port", "7860"])
'''
CARD = """\
---
title: %(title)s
emoji: "\U0001f50d"
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: %(version)s
app_file: app.py
pinned: false
models:
- %(repo_id)s
---

Write with [%(repo_id)s](https://huggingface.co/%(repo_id)s), see what it expects at each token, and look into its
attention heads. If the model is private, add a secret `HF_TOKEN` with read access to the settings of this Space.
"""


def space_files(model: HubName) -> dict[str, UploadFile]:
    """The files of a Space for a model on the Hub, by name."""
    title = f"A look inside {model.repo_id.rpartition('/')[2]}"
    values = {"title": json.dumps(title[:60]), "version": GRADIO_VERSION, "repo_id": model.repo_id}
    texts = {
        APP_FILE: APP % json.dumps(str(model)),
        REQUIREMENTS_FILE: f"hf_scratch_gpt[train,demo]=={__version__}\n",
        CARD_FILE: CARD % values,
    }
    return {name: UploadFile(name, text.encode("utf-8")) for name, text in texts.items()}


def plan_space(
    name: HubName, model: HubName, remote: RemoteState | None, app: str | None, *, private: bool, overwrite: bool
) -> UploadPlan:
    """Compare the files of a Space with those on the Hub.

    Args:
        name: of the Space.
        model: what it shows.
        remote: the Space as it is; None if it does not exist.
        app: the app.py that it has.
        private: the visibility of a new Space.
        overwrite: replace the program of another Space.

    Raises:
        ValueError: the Space shows something else.
    """
    files = space_files(model)
    if remote is not None and app is not None and MARK not in app and not overwrite:
        raise ValueError(
            f"--space {name.repo_id} is a Space with another program. Give another name, or replace it with "
            "--overwrite true."
        )
    on_hub = remote.files if remote else {}
    unchanged = [file for file in files.values() if is_on_hub(file, on_hub)]
    has_branch = remote.has_branch if remote else name.revision is None
    return UploadPlan(
        name=name,
        private=remote.private if remote else private,
        is_new_repo=remote is None,
        is_new_branch=not has_branch,
        create_pr=False,
        parent=remote.sha if remote else None,
        card=ModelCard(files[CARD_FILE].text),
        upload=[file for file in files.values() if file not in unchanged],
        unchanged=unchanged,
        delete=[],
        repo_type="space",
    )
