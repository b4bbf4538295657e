"""The shape comments of the modeling file are complete, and correct at run time."""

import ast
import itertools
import re
import sys
import tokenize
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache

from hf_scratch_gpt import ScratchGPTForQuestionAnswering
from hf_scratch_gpt import modeling_scratch_gpt as modeling
from tests.support.tiny import BATCH, GPT2, SEQ, tiny_ids, tiny_model

FILE = Path(modeling.__file__)
TREE = ast.parse(FILE.read_text())
PAST, CHUNK = 9, 12  # tokens in the cache; tokens per chunk of the loss, the last of 35 has 11
WORDS = {
    "batch": BATCH, "seq": SEQ, "key_seq": SEQ + PAST, "hidden": 50, "heads": 6, "kv_heads": 3, "group": 2,
    "head_dim": 20, "half": 9, "inner": 80, "vocab": 97,
    "chunk": CHUNK, "size": 50, "rows": BATCH * SEQ,
}  # fmt: skip
SEVERAL = {  # the last chunk is shorter; of the norms, two have heads
    "chunk": (CHUNK, BATCH * SEQ % CHUNK), "size": (50, 20), "rows": (BATCH * SEQ, BATCH * SEQ * 6, BATCH * SEQ * 3),
}  # fmt: skip
# Methods, functions and layers that change a shape; so do @, .T and an index with None or with several slices
RESHAPING = {
    "view", "reshape", "transpose", "expand", "unsqueeze", "squeeze", "permute", "flatten", "unflatten", "split",
    "chunk", "cat", "stack", "pad", "repeat", "repeat_interleave", "einsum", "matmul", "linear", "embedding",
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens",
    "embed_positions", "update",
}  # fmt: skip
DIMENSION = r"[a-z_0-9 */+-]+|\.\.\."
GROUP = rf"\((?:(?:{DIMENSION})(?:, (?:{DIMENSION}))*)?\)"
COMMENT = re.compile(rf"# ({GROUP}(?:, {GROUP})*)$")


def changes_shape(node):
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name in RESHAPING
    if isinstance(node, ast.BinOp | ast.AugAssign):
        return isinstance(node.op, ast.MatMult)
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        has_none = any(isinstance(part, ast.Constant) and part.value is None for part in parts)
        return has_none or (len(parts) > 1 and any(isinstance(part, ast.Slice) for part in parts))
    return isinstance(node, ast.Attribute) and node.attr in ("T", "mT")


def header(statement):
    """The nodes of a statement without the statements inside it."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return []
    if isinstance(statement, ast.If | ast.While):
        return [statement.test]
    if isinstance(statement, ast.For):
        return [statement.target, statement.iter]
    return [] if isinstance(statement, ast.With | ast.Try) else [statement]


def shape_comments():
    """Line of each shape comment -> its groups, as written."""
    with FILE.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    matches = {token.start[0]: COMMENT.match(token.string) for token in comments}
    return {line: re.findall(GROUP, match[1]) for line, match in matches.items() if match}


def commented_statements():
    """(statement, its last line, the shapes in the comment on that line or None) for every statement of the file."""
    comments = shape_comments()
    for statement in ast.walk(TREE):
        if isinstance(statement, ast.stmt) and (nodes := header(statement)):
            last = max(node.end_lineno for node in nodes)
            yield statement, last, comments.get(last)


def test_every_line_that_changes_a_shape_says_so():
    silent = [
        f"line {statement.lineno}: {ast.unparse(statement).splitlines()[0]}"
        for statement, _, groups in commented_statements()
        if groups is None and any(changes_shape(node) for part in header(statement) for node in ast.walk(part))
    ]
    assert not silent, "\n".join(silent)


def test_every_comment_follows_a_statement_and_uses_the_terms_of_the_legend():
    attached = {last for _, last, groups in commented_statements() if groups}
    assert set(shape_comments()) == attached
    legend = re.findall(r"^    ([a-z_]+) {2,}|;  ([a-z_]+):", modeling.__doc__, flags=re.MULTILINE)
    assert {"".join(words) for words in legend} == set(WORDS)
    for line, groups in shape_comments().items():
        assert set(re.findall(r"[a-z_]+", "".join(groups))) <= set(WORDS), f"line {line}: {groups}"


def test_all_dimensions_of_the_check_are_different():
    single = {word: size for word, size in WORDS.items() if word not in SEVERAL}
    assert len(set(single.values())) == len(single)


# ----------------------------------------------------------------------------------------------------------------------
# At run time
# ----------------------------------------------------------------------------------------------------------------------


class ShapeWatcher:
    """A tracer that compares the result of each commented statement with its comment, right after it ran."""

    def __init__(self, words):
        self.words = words
        self.statements = {}
        for statement, last, groups in commented_statements():
            for line in range(statement.lineno, last + 1) if not isinstance(statement, ast.If) else ():
                self.statements[line] = (statement, groups)
        self.seen = set()
        self.wrong = set()

    def __call__(self, frame, event, argument):
        return self.watch_function(frame) if frame.f_code.co_filename == str(FILE) else None

    def watch_function(self, frame):
        current = None

        def watch(frame, event, result):
            nonlocal current
            statement = self.statements.get(frame.f_lineno)
            if event == "return" and current and isinstance(current[0], ast.Return):
                self.compare(current, [result])
            elif event == "line" and statement is not current:
                if current and current[1] and not isinstance(current[0], ast.Return):
                    self.compare(current, values_of(current[0], frame.f_locals))
                current = statement
            return watch

        return watch

    def compare(self, statement, values):
        if statement[1] is None:
            return
        groups, line = statement[1], statement[0].lineno
        if len(groups) > 1:
            values = values[0] if isinstance(values[0], tuple) else values
            if len(values) != len(groups):
                self.wrong.add(f"line {line}: {len(values)} results, {len(groups)} shapes {groups}")
        for index, value in enumerate(values):
            group = groups[index if len(groups) > 1 else 0]
            if isinstance(value, torch.Tensor):
                self.seen.add((line, index if len(groups) > 1 else 0))
                if not self.fits(tuple(value.shape), group):
                    self.wrong.add(f"line {line}: {group} is really {tuple(value.shape)}")

    def fits(self, shape, group):
        dimensions = [part.strip() for part in group[1:-1].split(",") if part.strip()]
        if dimensions[:1] == ["..."]:
            dimensions = dimensions[1:]
            shape = shape[len(shape) - len(dimensions) :]
        sizes = [SEVERAL.get(word) or (eval(word, {}, self.words),) for word in dimensions]
        return shape in set(itertools.product(*sizes))


def values_of(statement, variables):
    """The values that a statement has just assigned or appended, looked up in the local variables."""
    if isinstance(statement, ast.Expr):  # parts.append(part)
        return [variables[statement.value.func.value.id][-1]]
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return [variables.get(name) for name in names]


# 18 of the 20 dimensions of a head are rotated, so that `half` is 9 and 2 dimensions remain unrotated
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.9}}


def runs():
    """(module, arguments, is_cached) that together reach every commented line."""
    ids, positions = tiny_ids(), torch.arange(SEQ).expand(BATCH, SEQ)
    base = {"hidden_size": 50, "head_dim": 20, "attn_implementation": "eager"}
    rope = tiny_model(**base, **PARTIAL)
    learned = tiny_model(**base, **GPT2)
    sinusoidal = tiny_model(**base, position_embedding_type="sinusoidal", final_logit_softcapping=2.0)
    rope.loss_chunk_tokens = sinusoidal.loss_chunk_tokens = CHUNK
    yield rope, {"input_ids": ids, "labels": ids}, False
    yield rope, {"input_ids": ids, "position_ids": positions}, False
    yield rope, {"input_ids": ids, "labels": ids, "skip_logits": True}, False
    yield rope, {"input_ids": ids}, True
    yield lambda **arguments: rope(**arguments).loss.backward(), {"input_ids": ids, "labels": ids}, False
    heads, angles = torch.randn(BATCH, SEQ, 6, 20), torch.randn(1, SEQ, 9)
    yield modeling.rotate, {"x": heads, "cosine": angles.cos(), "sine": angles.sin()}, False
    attention, cache = rope.model.layers[0].self_attn, DynamicCache(config=rope.config)
    attention(torch.randn(BATCH, PAST, 50), past_key_values=cache)
    yield attention, {"hidden_states": torch.randn(BATCH, SEQ, 50), "past_key_values": cache}, True
    yield learned, {"input_ids": ids}, True
    yield learned, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, False
    yield sinusoidal, {"input_ids": ids, "labels": ids, "skip_logits": True}, False
    spans = tiny_model(ScratchGPTForQuestionAnswering, **base, **PARTIAL)
    yield spans, {"input_ids": ids, "start_positions": ids[:, 0] % SEQ, "end_positions": ids[:, 1] % SEQ}, False
    rope.set_attn_implementation("sdpa")
    yield rope, {"input_ids": ids, "position_ids": positions % 3}, False  # packed documents
    yield rope, {"input_ids": ids}, True


def watch_all_runs():
    """The comments that were compared, and those that were wrong."""
    seen, wrong = set(), set()
    for module, arguments, is_cached in runs():
        if is_cached and "past_key_values" not in arguments:
            cache = arguments["past_key_values"] = DynamicCache(config=module.config)
            module(tiny_ids(seq=PAST), past_key_values=cache)
        watcher = ShapeWatcher({**WORDS, "key_seq": SEQ + PAST * is_cached})
        previous = sys.gettrace()  # that of coverage or a debugger
        sys.settrace(watcher)
        try:
            module(**arguments)
        finally:
            sys.settrace(previous)
        seen |= watcher.seen
        wrong |= watcher.wrong
    return seen, wrong


def test_the_comments_are_true_and_all_were_reached():
    seen, wrong = watch_all_runs()
    assert not wrong, "\n".join(sorted(wrong))
    expected = {
        (statement.lineno, index)
        for statement, _, groups in commented_statements()
        for index, _ in enumerate(groups or [])
    }
    assert seen == expected


@pytest.mark.parametrize(
    ("shape", "group", "is_right"),
    [
        ((7, 5, 6, 20), "(batch, seq, heads, head_dim)", True),
        ((7, 6, 5, 20), "(batch, seq, heads, head_dim)", False),
        ((7, 5, 120), "(batch, seq, heads * head_dim)", True),
        ((7, 5), "(batch, seq, 1)", False),
        ((1, 5, 9), "(..., seq, half)", True),
        ((1, 9, 5), "(..., seq, half)", False),
        ((11, 50), "(chunk, hidden)", True),
        ((10, 50), "(chunk, hidden)", False),
        ((), "()", True),
    ],
)
def test_a_wrong_comment_is_noticed(shape, group, is_right):
    assert ShapeWatcher(WORDS).fits(shape, group) == is_right
