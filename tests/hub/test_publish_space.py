"""`publish --space` with a local Hub: the program that shows a model."""

import ast

import pytest

from hf_scratch_gpt import __version__
from tests.support.tiny_publish import log_in
from train import publish
from train.hub.client import HubName
from train.hub.space import GRADIO_VERSION, space_files
from train.publish import main
from train.settings.command import run_command

SPACE = {".gitattributes", "README.md", "app.py", "requirements.txt"}


@pytest.fixture
def show(model_folder, send):
    """Runs `publish --space`, and returns its exit code. `send` takes away the waiting."""
    line = ["--folder_path", str(model_folder), "--repo_id", "alice/tiny", "--space", "alice/tiny-demo"]
    return lambda *options: run_command(main, [*line, *options])


def space_of(hub, name="alice/tiny-demo"):
    return hub.find(name, "space")


def test_the_space_has_the_program_for_the_model(hub, show, capsys):
    assert show() == 0
    files = space_of(hub).files("main")
    assert set(files) == SPACE
    assert space_of(hub).private
    assert '"alice/tiny"' in files["app.py"].decode()
    assert files["requirements.txt"].decode() == f"hf_scratch_gpt[train,demo]=={__version__}\n"
    card = files["README.md"].decode()
    assert all(line in card for line in ("sdk: gradio", f"sdk_version: {GRADIO_VERSION}", "app_file: app.py"))
    assert "config.json" in hub.find("alice/tiny", "model").files("main")
    printed = capsys.readouterr().out
    assert "Space alice/tiny-demo (new, private), branch main:" in printed
    assert "/spaces/alice/tiny-demo" in printed.splitlines()[-1]


def test_the_same_again_uploads_nothing(hub, show, capsys):
    show()
    before = len(space_of(hub).history("main"))
    capsys.readouterr()
    assert show() == 0
    assert len(space_of(hub).history("main")) == before
    assert capsys.readouterr().out.count("nothing to upload") == 2


def test_a_dry_run_changes_nothing(hub, show, monkeypatch, capsys):
    log_in(monkeypatch, None)
    assert show("--dry_run", "true") == 0
    assert space_of(hub) is None
    assert "Space alice/tiny-demo (new, private)" in capsys.readouterr().out


def test_another_program_is_protected(hub, show, capsys):
    show("--private", "false")
    assert not space_of(hub).private
    from huggingface_hub import HfApi

    HfApi().upload_file(
        path_or_fileobj=b"print('mine')", path_in_repo="app.py", repo_id="alice/tiny-demo", repo_type="space"
    )
    assert show() == 2
    assert "--space alice/tiny-demo is a Space with another program" in capsys.readouterr().err
    assert space_of(hub).files("main")["app.py"] == b"print('mine')"
    assert show("--overwrite", "true") == 0
    assert b"scratch-gpt demo" in space_of(hub).files("main")["app.py"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--space", "a b"], "a b is not a name on the Hub"),
        (["--create_pr", "true"], "--space requires --create_pr false"),
    ],
)
def test_mistakes_are_found_before_anything_is_uploaded(hub, show, capsys, options, message):
    assert show(*options) == 2
    assert message in capsys.readouterr().err
    assert hub.find("alice/tiny", "model") is None


def test_the_program_starts_the_page_for_the_model_at_the_port_of_a_space(monkeypatch):
    from train import demo

    given = []
    monkeypatch.setattr(demo, "main", given.append)
    source = space_files(HubName("alice/tiny", "v1"))["app.py"].text
    tree = ast.parse(source.replace("hf_scratch_gpt.training.demo", "train.demo"))
    exec(compile(tree, "app.py", "exec"), {"__name__": "__main__"})
    assert given == [["--model", "alice/tiny@v1", "--host", "0.0.0.0", "--port", "7860"]]
    arguments = publish.parse_recipe([demo.DemoArguments], given[0])[0]
    assert arguments.host not in demo.THIS_MACHINE  # so the page opens only this model


def test_the_versions_are_those_that_the_tests_run_with():
    from pathlib import Path

    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"gradio=={GRADIO_VERSION}" in pins
