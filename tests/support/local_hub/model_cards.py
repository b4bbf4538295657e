"""The YAML block at the top of a README.md, and the Hub's checks of it."""

import re

import yaml

from .refusals import Refusal

BLOCK = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9-]+)?|multilingual|code")
LICENSES = {
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "openrail++", "openmdw-1.0"),
    *("bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause"),
    *("bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0"),
    *("cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "wtfpl"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "epl-1.0", "epl-2.0", "isc"),
    *("etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1"),
    *("lgpl-3.0", "lgpl-lr", "lppl-1.3c", "h-research", "intel-research", "ms-pl", "apple-ascl", "apple-amlr"),
    *("mpl-2.0", "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl"),
    *("deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2"),
    *("llama3.3", "llama4", "gemma", "grok2-community", "unknown", "other"),
}


def metadata_of(readme):
    """The values of the block; {} if it is missing or invalid."""
    try:
        values = _parsed(readme)
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def problems(readme, kind="model"):
    """(errors, warnings) as messages."""
    try:
        values = _parsed(readme)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {' '.join(str(error).split())}"], []
    if not values:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(values, dict):
        return ["YAML Metadata Error: the metadata must be names with values"], []
    return [*_common_errors(values), *(_model_errors(values) if kind == "model" else ())], []


def check_card(readme, kind):
    errors, _ = problems(readme, kind)
    if errors:
        raise Refusal(400, f"Invalid metadata in README.md: {errors[0]}")


def _parsed(readme):
    block = BLOCK.search(readme)
    return yaml.safe_load(block[1].decode(errors="replace")) if block else None


def _common_errors(values):
    for name, is_sound, wanted in (
        ("license", lambda value: value in LICENSES, "one of the licenses that the hub knows"),
        ("language", lambda value: isinstance(value, str) and LANGUAGE.fullmatch(value), "an ISO 639 code"),
        ("tags", lambda value: isinstance(value, str), "text"),
    ):
        found = values.get(name)
        for value in found if isinstance(found, list) else [found]:
            if value is not None and not is_sound(value):
                yield f'"{name}" with value {value!r} is not valid: it must be {wanted}.'


def _model_errors(values):
    for name in ("pipeline_tag", "library_name", "license_name"):
        if not isinstance(values.get(name, ""), str):
            yield f'"{name}" must be a string'
    for name, of in (("base_model", "model"), ("datasets", "dataset")):
        found = values.get(name)
        for value in found if isinstance(found, list) else [found]:
            if value is not None and not (isinstance(value, str) and REPOSITORY.fullmatch(value)):
                yield f'"{name}" with value {value!r} is not valid. Use a {of} id from https://hf.co/{of}s.'
    yield from _index_errors(values.get("model-index"))


def _index_errors(index):
    if index is None:
        return
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for number, model in enumerate(index):
        place = f'"model-index[{number}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f'{place}.name" is required'
        elif not isinstance(model.get("results"), list):
            yield f'{place}.results" is required'
        else:
            for position, result in enumerate(model["results"]):
                yield from _result_errors(f"{place}.results[{position}]", result)


def _result_errors(place, result):
    if not isinstance(result, dict):
        yield f'{place}" must be an object'
        return
    for part, fields in (("task", ("type",)), ("dataset", ("type", "name"))):
        for name in fields:
            if not isinstance((result.get(part) or {}).get(name), str):
                yield f'{place}.{part}.{name}" is required'
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not all(isinstance(m, dict) and {"type", "value"} <= set(m) for m in metrics):
        yield f'{place}.metrics" must be a list of objects with a type and a value'
