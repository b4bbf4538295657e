"""The rules of the house that a machine can check: who imports whom, and how long things are."""

import ast
import functools
import graphlib
import statistics
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = sorted((REPOSITORY / "hf_scratch_gpt").glob("*.py"))
TRAIN = sorted((REPOSITORY / "train").glob("*.py"))
ALL = [
    path for folder in ("hf_scratch_gpt", "train", "tests", "benchmarks", "examples")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]  # fmt: skip
SCRIPTS = {
    *("train_tokenizer", "prepare_data", "pretrain", "evaluate", "generate", "quickstart"),
    *("plan", "report", "rollback", "finetune", "finetune_classifier", "chat", "publish", "pull"),
}
# who may know whom, from the bottom to the top; parts that are not named stand alone
LAYERS = {
    "run": {"arguments", "parallel"},
    "stability": {"run"},
    "optimizer": {"parallel"},
    "order": {"run"},
    "language_modeling": {"metrics", "schedule"},
    "corpora": {"tables"},
    "scores": {"metrics"},
    "minimal_pairs": {"scores", "tables"},
    "rows": {"arguments", "tables"},
    "tuning": {"arguments"},
    "classification": {"rows", "scores"},
    "conversations": {"metrics", "rows"},
    "download": {"hub", "manifest"},
    "base_model": {"build", "checkpoint", "download", "hub", "manifest", "run", "schedule", "tuning"},
    "outgoing": {"base_model", "checkpoint", "hub", "manifest", "model_card"},
    "card_data": {"hub", "rows", "tuning"},
    "model_card": {"card_data"},
    "tuned_card": {"card_data", "model_card"},
    "checkpoint": {"manifest", "parallel", "run"},
    "resume": {"checkpoint", "manifest", "metrics", "optimizer", "run"},
    "loop": {"checkpoint", "metrics", "parallel", "resume", "run", "schedule", "stability"},
    "build": {
        *("arguments", "cost", "data", "device", "language_modeling", "metrics", "optimizer", "order", "parallel"),
        *("run", "schedule"),
    },
    "session": {
        *("arguments", "build", "checkpoint", "device", "heartbeat", "loop", "manifest", "parallel", "resume", "run"),
        "status",
    },
}
MODELING = REPOSITORY / "hf_scratch_gpt" / "modeling_scratch_gpt.py"


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


def imports(path):
    """Full names of all modules that a file imports, wherever in it; relative ones with their dots."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def top_level(path):
    return {name.partition(".")[0] for name in imports(path) if not name.startswith(".")}


def siblings(path):
    """The modules of `train` that a file imports."""
    names = imports(path)
    absolute = {name.split(".")[1] for name in names if name.startswith("train.")}
    return (absolute | {name.lstrip(".") for name in names if name.startswith(".")}) & {part.stem for part in TRAIN}


def ids(path):
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", PACKAGE, ids=ids)
def test_the_package_needs_neither_training_nor_its_libraries(path):
    assert not top_level(path) & {"train", "tests", "accelerate", "datasets", "yaml", "peft", "matplotlib", "evaluate"}


def test_the_modeling_file_imports_only_torch_transformers_and_its_config():
    """`save_pretrained` copies it beside the weights: what it needs must be there."""
    names = imports(MODELING)
    assert {name for name in names if name.startswith(".")} == {".configuration_scratch_gpt"}
    assert top_level(MODELING) <= {"math", "collections", "typing", "torch", "transformers"}


@pytest.mark.parametrize("path", [MODELING, MODELING.with_name("configuration_scratch_gpt.py")], ids=ids)
def test_the_model_is_written_from_scratch(path):
    assert not [name for name in imports(path) if name.startswith("transformers.models")]


def test_files_of_a_checkpoint_import_each_other_flatly():
    configuration = MODELING.with_name("configuration_scratch_gpt.py")
    assert not [name for name in imports(configuration) if name.startswith(".")]
    assert not [name for path in PACKAGE for name in imports(path) if name.startswith("..")]


@pytest.mark.parametrize(
    "path", [path for path in TRAIN if path.stem not in SCRIPTS | {"build", "cost", "outgoing"}], ids=ids
)
def test_only_scripts_know_the_model(path):
    assert "hf_scratch_gpt" not in top_level(path)


@pytest.mark.parametrize("path", [path for path in TRAIN if path.stem not in SCRIPTS], ids=ids)
def test_parts_of_training_know_only_the_layers_below(path):
    assert siblings(path) <= LAYERS.get(path.stem, set())


def test_layers_have_no_circle():
    below = {
        part: LAYERS.get(part, set()) for part in {*LAYERS, *(name for names in LAYERS.values() for name in names)}
    }
    graphlib.TopologicalSorter(below).prepare()
    assert not {name for names in LAYERS.values() for name in names} & SCRIPTS


@pytest.mark.parametrize("path", PACKAGE + TRAIN, ids=ids)
def test_the_product_needs_no_tests_examples_or_benchmarks(path):
    assert not top_level(path) & {"tests", "examples", "benchmarks"}


def test_no_file_is_a_drawer_for_everything():
    assert not {path.stem for path in ALL} & {"utils", "util", "common", "helpers", "helper", "misc", "manager"}


def code_lines(function):
    """Lines of a function without its docstring, decorators and comments above it."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def functions(path):
    tree = tree_of(path)
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_functions_are_short(path):
    too_long = {node.name: lines for node in functions(path) if (lines := code_lines(node)) > 50}
    assert not too_long


def test_most_functions_are_very_short():
    lengths = [code_lines(node) for path in PACKAGE + TRAIN for node in functions(path)]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[-1] <= 30


@pytest.mark.parametrize("path", [path for path in ALL if path != MODELING], ids=ids)
def test_files_are_short(path):
    """But for the modeling file, which is one so that a checkpoint can carry it."""
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", PACKAGE, ids=ids)
def test_the_package_does_not_print(path):
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_sources_are_ascii_outside_of_the_tests(path):
    assert "tests" in path.parts or path.read_text().isascii()


@pytest.mark.parametrize("path", PACKAGE + TRAIN, ids=ids)
def test_nothing_is_loaded_that_can_run_code(path):
    """Pickles can: neither they nor what reads them may be named; safetensors and JSON are read only."""
    assert not top_level(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = [ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    unsafe = {"torch.load", "torch.save", "load_state", "save_state", "register_for_checkpointing", "yaml.load_all"}
    assert not [call for call in calls if call in unsafe or call.rpartition(".")[2] in unsafe]
    loaders = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.keyword)]
    assert not [node.value for node in loaders if node.arg in ("allow_pickle", "weights_only")]
