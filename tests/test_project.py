"""House rules that neither ruff nor import-linter can check: the layout, sizes, imports of files that travel alone."""

import ast
import functools
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = {
    folder: sorted((REPOSITORY / folder).rglob("*.py"))
    for folder in ("hf_scratch_gpt", "train", "tests", "benchmarks", "examples")
}
PACKAGE, TRAIN = FILES["hf_scratch_gpt"], FILES["train"]
ALL = [path for paths in FILES.values() for path in paths]
COMMANDS = [path for path in TRAIN if path.parent.name == "train" and not path.stem.startswith("__")]
MODELING = REPOSITORY / "hf_scratch_gpt" / "modeling_scratch_gpt.py"
CONFIGURATION = MODELING.with_name("configuration_scratch_gpt.py")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


def imports(path):
    """Full names of all modules that a file imports, at any depth; relative ones with their dots."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names if not node.level)}
    return names


def top_level(path):
    return {name.partition(".")[0] for name in imports(path) if not name.startswith(".")}


def offenders(paths, found):
    """The result of `found` for each file for which there is one, by its path in the repository."""
    return {str(path.relative_to(REPOSITORY)): result for path in paths if (result := found(path))}


# ----------------------------------------------------------------------------------------------------------------------
# Layout
# ----------------------------------------------------------------------------------------------------------------------


def test_the_wheel_is_built_from_what_git_knows_and_new_files(tmp_path):
    """Not from what earlier builds have left, which setuptools would take into the wheel."""
    checkout, copy = tmp_path / "checkout", tmp_path / "a copy"
    names = (".ci/copy_source", ".gitignore", "pkg/old name.py", "pkg/gone.py")
    for name in (*names, "pkg/new.py", "build/lib/pkg/stale.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("build/\n")
    shutil.copy(REPOSITORY / ".ci" / "copy_source", checkout / ".ci")
    for command in (["git", "init", "-q"], ["git", "add", *names], ["rm", "pkg/gone.py"]):
        subprocess.run(command, cwd=checkout, check=True)
    (checkout / "pkg" / "old name.py").write_text("changed")
    subprocess.run([checkout / ".ci" / "copy_source", copy], check=True)
    copied = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert copied == {".ci/copy_source", ".gitignore", "pkg/old name.py", "pkg/new.py"}
    assert (copy / "pkg" / "old name.py").read_text() == "changed"


def test_train_contains_commands_and_at_most_twelve_folders():
    """`ls train` is the list of commands. The demo has two: `views/` computes, also in notebooks, and `page/` draws."""
    entries = [path for path in (REPOSITORY / "train").iterdir() if path.name[0] != "." and path.name != "__pycache__"]
    assert {path.name for path in entries if path.is_file()} <= {
        *(path.name for path in COMMANDS), "__init__.py", "__main__.py"
    }  # fmt: skip
    folders = [path for path in entries if path.is_dir() and set(path.rglob("*.*")) - set(path.rglob("*.pyc"))]
    assert len(folders) <= 12


def test_commands_describe_themselves_and_have_a_main():
    def missing(path):
        docstring = ast.get_docstring(tree_of(path)) or ""
        parts = {
            "a docstring with an example": f"scratch-gpt {path.stem}" in docstring,
            "main": "main" in {node.name for node in functions(path)},
        }
        return [part for part, is_there in parts.items() if not is_there]

    assert len(COMMANDS) > 10
    assert offenders(COMMANDS, missing) == {}


def test_each_folder_says_in_one_sentence_what_it_is_for():
    def is_wrong(path):
        return not path.exists() or not re.fullmatch(r"[A-Z]((?![.!?]\s).)+\.", docstring_of(path), re.DOTALL)

    assert offenders(sorted({path.with_name("__init__.py") for path in TRAIN}), is_wrong) == {}


def docstring_of(path):
    return ast.get_docstring(tree_of(path)) or ""


def test_no_file_is_a_drawer_for_everything():
    assert not {path.stem for path in ALL} & {"utils", "util", "common", "helpers", "helper", "misc", "manager"}


# ----------------------------------------------------------------------------------------------------------------------
# Imports. `[tool.importlinter]` in pyproject.toml has the rules about folders.
# ----------------------------------------------------------------------------------------------------------------------


def test_the_modeling_file_imports_only_torch_transformers_and_its_config():
    """`save_pretrained` copies it next to the weights, with the files that it imports relatively."""
    assert {name for name in imports(MODELING) if name.startswith(".")} == {".configuration_scratch_gpt"}
    assert top_level(MODELING) <= {"collections", "functools", "math", "re", "typing", "torch", "transformers"}


def test_the_model_is_written_from_scratch():
    def copied(path):
        tables = "transformers.models.auto"  # of names of classes
        return [
            name for name in imports(path) if name.startswith("transformers.models") and not name.startswith(tables)
        ]

    assert offenders([MODELING, CONFIGURATION], copied) == {}


def test_files_of_a_checkpoint_import_each_other_flatly():
    assert not [name for name in imports(CONFIGURATION) if name.startswith(".")]
    copied = [path for path in PACKAGE if path.parent.name == "hf_scratch_gpt"]  # beside the weights
    assert not [name for path in copied for name in imports(path) if name.startswith("..")]


def test_the_product_needs_no_tests_examples_or_benchmarks():
    assert offenders(PACKAGE + TRAIN, lambda path: top_level(path) & {"tests", "examples", "benchmarks"}) == {}


def test_test_files_do_not_import_each_other():
    """Shared parts are in tests/support/."""

    def imported(path):
        return [name for name in imports(path) if re.search(r"(^|\.)(test_\w+|conftest)(\.|$)", name)]

    assert offenders(FILES["tests"], imported) == {}


# ----------------------------------------------------------------------------------------------------------------------
# Sizes
# ----------------------------------------------------------------------------------------------------------------------


def code_lines(function):
    """Lines of a function without its docstring, decorators and comments above it."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def functions(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_functions_are_short():
    def too_long(path):
        return {node.name: lines for node in functions(path) if (lines := code_lines(node)) > 50}

    assert offenders(ALL, too_long) == {}


@pytest.mark.parametrize("paths", [PACKAGE, TRAIN], ids=["hf_scratch_gpt", "train"])
def test_most_functions_are_very_short(paths):
    lengths = [code_lines(node) for path in paths for node in functions(path)]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[-1] <= 30


def test_files_are_short():
    """Except the modeling file, which is a single file so that a checkpoint can contain it."""

    def too_long(path):
        lines = len(path.read_text().splitlines())
        return lines if lines > 400 else None

    assert offenders([path for path in ALL if path != MODELING], too_long) == {}


# ----------------------------------------------------------------------------------------------------------------------
# Contents
# ----------------------------------------------------------------------------------------------------------------------


def calls(path):
    return [ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


def test_the_package_does_not_print():
    assert offenders(PACKAGE, lambda path: "print" in calls(path)) == {}


def test_no_conflict_of_a_merge_is_left():
    marks = ["git", "grep", "--untracked", "-nE", "^(<{7}|>{7}) "]
    found = subprocess.run(marks, cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 1, found.stdout + found.stderr  # git grep: 1 for no match


def test_no_command_in_the_documentation_ends_in_a_comment():
    # zsh, the shell of macOS, takes a "#" behind a command that is pasted for an argument.
    blocks = []
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/**/*.md")]:
        blocks += re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert any(line.startswith("make quickstart") for line in lines)
    assert [line for line in lines if re.search(r"^[^#].*\s#\s", line)] == []


def test_sources_are_ascii_outside_of_the_tests():
    assert offenders(set(ALL) - set(FILES["tests"]), lambda path: not path.read_text().isascii()) == {}


def test_nothing_is_loaded_that_can_run_code():
    """No pickles: only safetensors and JSON are read."""
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    functions = {"load_state", "save_state", "register_for_checkpointing", "read_pickle", "unsafe_load", "full_load"}
    options = {"allow_pickle", "weights_only"}

    def unsafe(path):
        names = {name for name in calls(path) if name in ("torch.load", "torch.save", "yaml.load_all")}
        names |= {name for name in calls(path) if name.rpartition(".")[2] in functions}
        names |= {node.arg for node in ast.walk(tree_of(path)) if isinstance(node, ast.keyword)} & options
        return names | top_level(path) & modules

    assert offenders(PACKAGE + TRAIN, unsafe) == {}
