"""What holds for every test: no network, one thread, reproducible random numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tests.support.local_hub import LocalHub

# a hub that has its ports, but answers only in tests with the fixture `hub`: the libraries remember the address
os.environ["HF_ENDPOINT"] = (HUB := LocalHub()).url

import json
import warnings

import huggingface_hub
import pytest
import torch
import yaml

from tests.support.local_hub import client as hub_client
from tests.support.tiny_loop import build, new_accelerator_state, tokenizer  # noqa: F401  fixtures
from tests.support.tiny_publish import model_folder, send  # noqa: F401  fixtures

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Prepared data of a run that takes a second."""
    from tests.support.tiny_run import prepare

    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a tiny model to tune."""
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
    """Starts training processes; what a failed test has left running is ended."""
    yield launcher_of_the_session
    launcher_of_the_session.end()


@pytest.fixture
def recipe(tmp_path, data_dir):
    """Writes the recipe of such a run with changed settings and returns its path."""
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
    """Tests that start several processes follow each other, so that these do not wait for those of another test."""
    for item in items:
        if "launcher" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("processes"))


def pytest_unconfigure():
    HUB.close()


@pytest.fixture
def hub(request, monkeypatch, tmp_path_factory):
    """A local hub, as if new, and the clients of this process turned to it with the token of alice.

    Files go to the Xet storage as they do for users. `@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)`
    runs a test with and without.
    """
    if int(huggingface_hub.__version__.partition(".")[0]) < 2:
        pytest.skip("older clients take both ports of the hub for one server, and ask huggingface.co at times")
    # huggingface_hub itself uses what its HTTP library no longer likes
    warnings.filterwarnings("ignore", "Use 'content=<...>' to upload raw bytes", DeprecationWarning)
    HUB.reset()
    HUB.start()
    hub_client.forget()
    home = tmp_path_factory.mktemp("hub_home")
    hub_client.connect(monkeypatch, HUB, home, HUB.token(), xet=getattr(request, "param", "xet") == "xet")
    yield HUB
    hub_client.forget()
    assert not HUB.leaks, "a token of the hub was sent to the storage"
    assert not HUB.errors, "\n".join(HUB.errors)
