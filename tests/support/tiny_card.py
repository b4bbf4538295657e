"""Metadata of a card, and how clients read it."""

from huggingface_hub import ModelCard

from train.hub.cards.metadata import model_metadata
from train.hub.cards.origin import Source

OWN = Source("a.txt", language=["en"])
ON_HUB = Source("dataset alice/texts big (train)", "alice/texts", "big", "train")
METRICS = {"loss": 2.0, "perplexity": 7.389056, "bits_per_byte": 1.5}


def made(trained_on=OWN, measured_on=OWN, metrics=METRICS, task="text-generation", **more):
    return model_metadata("tiny", task, ["scratch_gpt", "custom_code"], trained_on, measured_on, metrics, **more)


def read(data):
    """The metadata that a client of the Hub reads from the card."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# A model\n").data
