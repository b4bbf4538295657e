"""Metadata of a card, and how it is read again."""

from huggingface_hub import ModelCard

from train.hub.cards.metadata import Source, card_data, front

OWN = Source("a.txt", language=["en"])
ON_HUB = Source("dataset alice/texts big (train)", "alice/texts", "big", "train")
FIGURES = {"loss": 2.0, "perplexity": 7.389056, "bits_per_byte": 1.5}


def made(trained_on=OWN, measured_on=OWN, figures=FIGURES, task="text-generation", **more):
    return card_data("tiny", task, ["scratch_gpt", "custom_code"], trained_on, measured_on, figures, **more)


def read(data):
    """What a client of the Hub reads of the card."""
    return ModelCard(front(data, "# A model\n")).data
