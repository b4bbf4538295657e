"""Publishing again: which metadata of the card on the Hub is kept, as people may have edited it."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tests.support.tiny_card import ON_HUB, OWN, made, read
from train.hub.cards.merge import merge_metadata

THEIRS = """\
---
license: mit
language: no
tags: [mine, scratch_gpt]
pipeline_tag: fill-mask
datasets: bob/more
inference: false
widget:
- text: 'Is it: "true"?'
  output: {text: "yes\\nand no"}
extra_gated_prompt: |
  You agree to

  ---
  cite us: # always
extra_gated_fields:
  Company: text
  I agree: checkbox
co2_eq_emissions: {emissions: 3.5, source: guessed}
---
# Edited
"""


def theirs(**more):
    data = ModelCard(THEIRS).data
    for key, value in more.items():
        data[key] = value
    return data


def merge(ours, there, **given):
    """The merged metadata, as read again after being written."""
    before = [ours.to_dict(), there.to_dict()]
    merged, notes = merge_metadata(ours, there, given)
    assert [ours.to_dict(), there.to_dict()] == before
    written = read(merged)
    assert written.to_dict() == merged.to_dict()
    return written, notes


def test_manual_edits_on_the_hub_are_kept():
    merged, notes = merge(made(), theirs())
    before = theirs().to_dict()
    for key in ("license", "inference", "widget", "extra_gated_prompt", "extra_gated_fields", "co2_eq_emissions"):
        assert merged.to_dict()[key] == before[key], key
    assert merged.extra_gated_prompt == "You agree to\n\n---\ncite us: # always\n"
    assert ModelCard(f"---\n{merged.to_yaml()}\n---\n\n# Text\n---\n").text == "\n# Text\n---\n"
    assert notes == ["pipeline_tag: text-generation replaces fill-mask on the Hub"]


def test_lists_are_joined():
    merged, _ = merge(made(ON_HUB), theirs())
    assert merged.tags == ["scratch_gpt", "custom_code", "mine"]
    assert merged.datasets == ["alice/texts", "bob/more"]
    assert merged.metrics == ["loss", "perplexity", "bits_per_byte"]
    assert merge(made(), theirs(language=["fr", "en"]))[0].language == ["en", "fr"]


def test_norwegian_is_not_read_as_false():
    assert theirs().language is False
    assert merge(made(), theirs())[0].language == ["en", "no"]
    assert merge(made(ON_HUB), theirs())[0].language == "no"


def test_local_values_that_describe_the_files_win():
    ours = made(base_model="alice/base")
    merged, notes = merge(ours, theirs(base_model="bob/x", base_model_relation="merge", library_name="keras"))
    assert [merged[key] for key in ("base_model", "base_model_relation", "library_name", "pipeline_tag")] == [
        "alice/base", "finetune", "transformers", "text-generation",
    ]  # fmt: skip
    assert "base_model: alice/base replaces bob/x on the Hub" in notes
    merged, notes = merge(made(), theirs(base_model="bob/x", base_model_relation="merge"))
    assert (merged.base_model, merged.base_model_relation) == ("bob/x", "merge")
    assert "base_model: keeping bob/x from the Hub; the local card has none" in notes


def test_other_values_are_kept_from_the_hub_with_a_note():
    ours = made()
    ours.license = "apache-2.0"
    merged, notes = merge(ours, theirs())
    assert merged.license == "mit"
    assert "license: keeping mit from the Hub; --license apache-2.0 would replace it" in notes
    merged, notes = merge(ours, theirs(license="apache-2.0"))
    assert not [note for note in notes if "license" in note]
    assert merge(ours, theirs(license=None))[0].license == "apache-2.0"


def test_the_command_line_wins():
    ours = made(ON_HUB)
    ours.license = "apache-2.0"
    merged, notes = merge(ours, theirs(base_model="bob/x"), license="gpl-3.0", language=["de"], base_model="eve/y")
    assert (merged.license, merged.language, merged.base_model) == ("gpl-3.0", ["de"], "eve/y")
    assert not [note for note in notes if "license" in note or "base_model" in note]
    assert merge(ours, theirs(), license=None, tags=[])[0].license == "mit"


def result(metric="loss", value=9.0, dataset=OWN.identifier, **more):
    return EvalResult("text-generation", dataset, more.pop("name", OWN.description), metric, value, **more)


def values(data):
    return {(r.dataset_type, r.metric_type, str(r.metric_args)): r.metric_value for r in data.eval_results}


def test_new_results_replace_only_those_of_the_same_measure():
    old = [
        result(name="renamed by hand"), result(dataset="wikitext"), result("accuracy"),
        result("perplexity", metric_args={"stride": 512}),
    ]  # fmt: skip
    merged, _ = merge(made(), theirs(eval_results=old, model_name="old"))
    assert merged.model_name == "tiny"
    name = OWN.identifier
    assert values(merged) == {
        (name, "loss", "None"): 2.0,
        (name, "perplexity", "None"): 7.389056,
        (name, "bits_per_byte", "None"): 1.5,
        ("wikitext", "loss", "None"): 9.0,
        (name, "accuracy", "None"): 9.0,
        (name, "perplexity", "{'stride': 512}"): 9.0,
    }
    assert merged.eval_results[0].metric_value == 2.0


def test_results_of_one_side_only():
    merged, _ = merge(made(metrics={}), theirs(eval_results=[result()], model_name="old"))
    assert (merged.model_name, values(merged)) == ("old", {(OWN.identifier, "loss", "None"): 9.0})
    assert "model-index" not in merge(made(metrics={}), theirs())[0].to_dict()


def test_a_card_without_metadata_takes_all_local_values():
    ours = made(ON_HUB, base_model="alice/base")
    ours.license = "mit"
    merged, notes = merge(ours, ModelCardData())
    assert (merged.to_dict(), notes) == (ours.to_dict(), [])


def test_publishing_again_changes_nothing():
    once, _ = merge(made(ON_HUB), theirs())
    again, notes = merge(made(ON_HUB), once)
    assert (again.to_dict(), notes) == (once.to_dict(), [])
