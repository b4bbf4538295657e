"""TODO."""

from pathlib import Path

from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ..checkpoint.manifest import read_json
from ..hub.client import HubName
from ..hub.download import pull_or_cached
from ..settings.run_folder import ADAPTER_CONFIG_FILE


def find_model(option: str, name: str, needs_weights: bool = True) -> Path:
    """The folder of a model: as named, or where a model of the Hub was downloaded to and verified.

    Raises:
        ValueError: what is missing.
        OSError: the Hub cannot be reached, the disk is full.
    """
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(f"{option} {name} does not exist; train.quickstart makes runs/quickstart/run/model.")
        folder = pull_or_cached(HubName.parse(name))
    found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(found[:8]) or "nothing"
    if ADAPTER_CONFIG_FILE in found:
        return folder
    if "config.json" not in found:
        raise ValueError(f"{option} {name} is no model folder: it holds no config.json (but {shown}).")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{option} {name} is of the type {model_type}, which neither this project nor transformers knows; "
            "code that lies beside the weights is not run."
        )
    if needs_weights and not any(entry.endswith(".safetensors") for entry in found):
        raise ValueError(
            f"{option} {name} holds no weights (*.safetensors, but {shown}): give the folder of a trained model. "
            "(Fine-tuning can also begin with new weights: --random_weights true.)"
        )
    return folder


def load_model_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a token to pad with.

    Raises:
        ValueError: the folder has none.
    """
    path = Path(name)
    if path.is_dir() and not (path / "tokenizer_config.json").exists():
        raise ValueError(f"{name} holds no tokenizer: name its folder with --tokenizer.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad_token nor an eos_token: give it one.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
