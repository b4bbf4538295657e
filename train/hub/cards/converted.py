"""The model card of a converted model."""

from pathlib import Path

from huggingface_hub import ModelCardData

from ...settings.json_files import read_json
from ...settings.run_folder import CARD_FILE, CONFIG_FILE
from .metadata import model_tags
from .origin import hub_name
from .template import render_card

TASKS = {  # by the ending of the class
    "LMHeadModel": "text-generation",
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}


def write_converted_card(folder: Path, source: str, architecture: str, dtype: str | None) -> None:
    """Write the README.md of a converted model.

    Args:
        folder: contains the model.
        source: the model it was converted from: a name on the Hub or a folder.
        architecture: the class that it was converted to.
        dtype: that the weights were rounded to; None: they were not changed.
    """
    name = hub_name(source)
    task = next(task for ending, task in TASKS.items() if architecture.endswith(ending))
    config = read_json(folder / CONFIG_FILE)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=model_tags(str(config["model_type"]), folder),
        base_model=name,
    )
    values = {"source": name, "architecture": architecture, "task": task, "dtype": dtype}
    card = render_card("converted.md.jinja", metadata, title=f"{Path(source).name} as {architecture}", **values)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
