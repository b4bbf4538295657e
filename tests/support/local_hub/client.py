"""Makes the clients of this process or of another one talk to a local hub, and leave their files in one folder."""

import os
import socket
import sys
from pathlib import Path

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # else a thread asks a service of Hugging Face to convert pickles
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else datasets asks Amazon
    "NO_PROXY": "127.0.0.1,localhost",
    "NO_COLOR": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def environment(hub, home, token, xet):
    """All variables of another process; it inherits only PATH."""
    variables = {
        **QUIET,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(home),
        "HF_HOME": str(Path(home) / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "OMP_NUM_THREADS": "1",
    }
    return variables | ({"HF_TOKEN": token} if token else {})


def connect(monkeypatch, hub, home, token, xet):
    """Switches this process over for one test.

    The libraries read most variables once, when they are imported, so their copies are changed as well. HF_ENDPOINT
    must be an address on 127.0.0.1 at that time, which may have no server.
    """
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
        monkeypatch.delenv(name)
    for name, value in environment(hub, home, token, xet).items():
        if name not in ("PATH", "HOME", "OMP_NUM_THREADS"):
            monkeypatch.setenv(name, value)
    _refuse_other_hosts(monkeypatch, hub)
    _replace_endpoint(monkeypatch, hub.url)
    _connect_huggingface_hub(monkeypatch, Path(home) / "hf", xet)
    if "transformers" in sys.modules:
        _connect_transformers(monkeypatch, Path(home) / "hf")
    if "datasets" in sys.modules:
        _connect_datasets(monkeypatch, Path(home) / "hf")


def forget():
    """Clears the caches of the clients in this process, and closes their connections."""
    from huggingface_hub import HfFileSystem, _tree_cache
    from huggingface_hub.utils import _detect_agent, _http, _xet

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    _xet.XET_CONNECTION_INFO_CACHE.clear()
    _xet._GLOBAL_XET_HOLDER._session = None  # it caches uploads and the paths of their files
    _detect_agent._registry = None
    HfFileSystem.clear_instance_cache()
    _http.close_session()
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def _refuse_other_hosts(monkeypatch, hub):
    """Records every lookup of another host, also if a library continues without it."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "127.0.0.1", "::1", "localhost", socket.gethostname()):
            hub.errors.append(f"a client looked for {name}")
            raise socket.gaierror(f"{name} is not this machine")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def _replace_endpoint(monkeypatch, url):
    """Changes every variable of a library that begins with the value of HF_ENDPOINT, and the clients made at import."""
    from huggingface_hub import HfApi, HfFileSystem, constants

    old = constants.ENDPOINT
    if not old.startswith("http://127.0.0.1:"):  # tokens would be refused: see constants.HF_URL_HOSTS
        raise RuntimeError(f"HF_ENDPOINT must be on 127.0.0.1 before huggingface_hub is imported, but it is {old}")
    libraries = ("huggingface_hub", "transformers", "datasets", "evaluate")
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] in libraries]:
        for name, value in list(vars(module).items()):
            if isinstance(value, str) and f"{value}/".startswith(f"{old}/"):
                monkeypatch.setattr(module, name, url + value.removeprefix(old))
            elif isinstance(value, HfApi | HfFileSystem):
                monkeypatch.setattr(value, "endpoint", url)
                if isinstance(value, HfFileSystem):
                    monkeypatch.setattr(value._api, "endpoint", url)


def _connect_huggingface_hub(monkeypatch, home, xet):
    from huggingface_hub import constants

    changes = {
        "HF_HUB_OFFLINE": False,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_XET_CACHE": str(home / "xet"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_XET": not xet,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_UPDATE_CHECK": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    bars = sys.modules["huggingface_hub.utils.tqdm"]  # the attribute of that name is a class
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)


def _connect_transformers(monkeypatch, home):
    from transformers import dynamic_module_utils
    from transformers.utils import hub as transformers_hub

    modules = str(home / "modules")
    for module in (dynamic_module_utils, transformers_hub):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", list(sys.path))  # where the folder of modules is added


def _connect_datasets(monkeypatch, home):
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(config, "HF_CACHE_HOME", str(home))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(config, "HF_MODULES_CACHE", home / "modules")
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
    monkeypatch.setattr(config, "EXTRACTED_DATASETS_PATH", home / "datasets" / "downloads" / "extracted")
