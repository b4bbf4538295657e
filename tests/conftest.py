"""Settings and fixtures of all tests: no network, one thread, fixed seeds."""

import os

# huggingface_hub reads these once, at its first import
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no server; the fixture `hub` replaces it by the address of one
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import warnings

import pytest
import torch
import yaml

from tests.support.skips import pytest_terminal_summary  # noqa: F401  a hook
from tests.support.tiny_loop import build, new_accelerator_state, tokenizer  # noqa: F401  fixtures
from tests.support.tiny_publish import model_folder, send  # noqa: F401  fixtures

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Prepared data for a training run that takes a second."""
    from tests.support.tiny_run import prepare

    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a tiny model to fine-tune."""
    from tests.support.tiny_base import save_base

    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def launcher_of_the_session():
    from tests.support.launcher import Launcher

    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture
def launcher(launcher_of_the_session):
    """Starts training processes, and kills those that still run when the test ends."""
    yield launcher_of_the_session
    launcher_of_the_session.end()


@pytest.fixture
def recipe(tmp_path, data_dir):
    """Writes a recipe for `data_dir` with changed settings and returns its path."""
    from tests.support.tiny_run import RECIPE, SHAPE

    def recipe(**changes):
        (tmp_path / "config.json").write_text(json.dumps(SHAPE))
        paths = {
            "data_dir": str(data_dir),
            "output_dir": str(tmp_path / "run"),
            "config": str(tmp_path / "config.json"),
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(RECIPE | paths | changes))
        return str(path)

    return recipe


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Runs tests that start several processes on the same worker, so that they do not compete for the cores."""
    for item in items:
        if "launcher" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(scope="session")
def hub_of_the_session():
    from tests.support.local_hub import LocalHub

    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub(request, monkeypatch, tmp_path_factory, hub_of_the_session):
    """An empty local Hub. The clients of this process use it with the token of alice.

    Files go to the Xet storage, as they do for users. `@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)`
    runs a test with and without Xet.
    """
    from tests.support.local_hub import client

    # huggingface_hub itself calls its HTTP library in a deprecated way
    warnings.filterwarnings("ignore", "Use 'content=<...>' to upload raw bytes", DeprecationWarning)
    hub = hub_of_the_session
    hub.reset()
    client.forget()
    home = tmp_path_factory.mktemp("hub_home")
    client.connect(monkeypatch, hub, home, hub.token(), xet=getattr(request, "param", "xet") == "xet")
    yield hub
    client.forget()
    assert not hub.leaks, "a token of the hub was sent to the storage"
    assert not hub.errors, "\n".join(hub.errors)
