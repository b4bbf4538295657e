"""Conversations: rows to messages, messages to tokens with a mask of the answers, and packing."""

import bisect
import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_scratch_gpt import ScratchGPTTokenizer
from hf_scratch_gpt.tokenization_scratch_gpt import END_OF_TURN
from tests.support.tiny_base import chat, save_base
from train.data.conversations import (
    IGNORE_INDEX,
    REFUSED_COLUMNS,
    Conversation,
    Encoded,
    PackedConversations,
    encode_conversations,
    end_of_turn,
    limit_length,
    pack,
    parse_conversations,
    truncate,
    unread_columns,
)
from train.data.plain_text import prompt_ids
from train.data.rows import Row

QUESTION, ANSWER = "What is 1?", "The a number 1."


@pytest.fixture(scope="module")
def chat_tokenizer(base):
    return ScratchGPTTokenizer.from_pretrained(base)


@pytest.mark.parametrize(
    "cells",
    [
        {"messages": chat(QUESTION, ANSWER)},
        {"prompt": QUESTION, "completion": ANSWER},
        {"prompt": chat(QUESTION), "completion": [{"role": "assistant", "content": ANSWER}]},
        {"instruction": QUESTION, "output": ANSWER},
        {"instruction": QUESTION, "input": "", "output": ANSWER, "text": "ignored"},
        {"messages": None, "prompt": QUESTION, "completion": ANSWER},  # a table with columns of several formats
    ],
)
def test_every_format_gives_the_same_messages(cells):
    assert parse_conversations([Row("x:1", cells)])[0].messages == chat(QUESTION, ANSWER)


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "cells",
    [
        {"system": "Be brief.", "messages": chat("a", "b", QUESTION, ANSWER)},
        {"system_prompt": "Be brief.", "history": [["a", "b"]], "prompt": QUESTION, "completion": ANSWER},
        {"system": "Be brief.", "history": [["a", "b"]], "instruction": QUESTION, "input": None, "output": ANSWER},
        {"conversations": [SYSTEM, *chat("a", "b", QUESTION, ANSWER)], "system": "", "tools": [], "chosen": None},
        {
            "system": "Be brief.",
            "conversations": [
                {"from": role, "value": text}
                for role, text in (("human", "a"), ("gpt", "b"), ("human", QUESTION), ("gpt", ANSWER))
            ],
        },
    ],
)
def test_system_and_history_are_part_of_the_conversation(cells):
    (one,) = parse_conversations([Row("x:1", cells)])
    assert one.messages == [SYSTEM, *chat("a", "b", QUESTION, ANSWER)]
    assert not one.unread


@pytest.mark.parametrize("column", sorted(REFUSED_COLUMNS))
def test_columns_that_decide_about_answers_are_refused_by_name(column):
    for cells in ({"messages": chat(QUESTION, ANSWER)}, {"instruction": QUESTION, "output": ANSWER}):
        with pytest.raises(ValueError, match=f"x:1: the column '{column}' affects the answers, but is not supported"):
            parse_conversations([Row("x:1", cells | {column: ["x"]})])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"messages": chat("q", "a"), "history": [["a", "b"]]}, "x:7: the column 'history' .* with messages"),
        ({"messages": [SYSTEM, *chat("q", "a")], "system": "x"}, "x:7: there are two system messages: join them"),
        ({"prompt": "q", "completion": "a", "label": False}, "x:7: the column 'label' affects"),
        ({"prompt": "q", "completion": "a", "history": ["b"]}, r"x:7: column 'history' must be a list of \[question"),
        ({"instruction": "q", "output": "a", "history": [["b", 3]]}, r"message 2 \(assistant\) must be text, not 3"),
        ({"instruction": "q", "input": 0, "output": "a"}, "x:7: column 'input' has the value 0 of type int, not a str"),
        ({"instruction": ["q"], "output": "a"}, r"x:7: column 'instruction' has the value \['q'\] of type list"),
        ({"instruction": "q", "output": 5}, r"x:7: the content of message 2 \(assistant\) must be text, not 5"),
        ({"prompt": 5, "completion": "a"}, r"x:7: the content of message 1 \(user\) must be text, not 5"),
        ({"prompt": "q", "completion": "a", "system": 5}, r"message 1 \(system\) must be text, not 5"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "message 1 has the role 'function_call'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"message 1 has the role \['user'\]"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}, "message 1 has 'tool_calls', which"),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            "weight of message 1 is 0.5: it must be",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "x:7: every answer has the weight 0"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(cells, message):
    with pytest.raises(ValueError, match=message):
        parse_conversations([Row("x:7", cells)])


def test_other_columns_are_named():
    first = {"instruction": "q", "output": "a", "text": "q a", "id": 7, "label": 1}
    second = {"messages": chat("q", "a"), "prompt": "q", "source": "web", "id": ""}
    conversations = parse_conversations([Row("x:1", first), Row("x:2", second)])
    assert unread_columns(conversations) == "columns that are not read: id, label, prompt, source, text"
    assert unread_columns(parse_conversations([Row("x:1", {"messages": chat("q", "a")})])) == ""


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_answers_of_weight_0_are_read_but_not_learned(chat_tokenizer, key):
    messages = chat("a", "bad", "b", "good", "c", "bad again")
    for number, weight in ((1, 0), (3, 1), (5, False)):
        messages[number] = messages[number] | {key: weight}
    conversation = parse_conversations([Row("x:1", {"messages": messages})])[0]
    plain = Conversation("x:1", chat("a", "bad", "b", "good", "c", "bad again"))
    (one,), (other,) = (encode_conversations(chat_tokenizer, [some]) for some in (conversation, plain))
    assert one.ids.tolist() == other.ids.tolist()
    assert chat_tokenizer.decode(one.ids[one.is_answer]) == f"good{END_OF_TURN}"
    assert end_of_turn([one]) == chat_tokenizer.convert_tokens_to_ids(END_OF_TURN)


def test_weights_need_a_template_that_marks_each_answer(chat_tokenizer):
    messages = chat("a", "b", "c", "d")
    messages[1]["weight"] = 0
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{% generation %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endgeneration %}"
    with pytest.raises(
        ValueError, match=r"x:1: an answer has the weight 0, but the chat template.*--chat_template own"
    ):
        encode_conversations(tokenizer, [Conversation("x:1", messages)])


def test_the_conversation_that_cannot_be_encoded_is_named(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}"
    some = [Conversation(f"x:{number}", chat("a", "b")) for number in range(5)]
    with pytest.raises(ValueError, match="x:99: the conversation cannot be encoded: too many"):
        encode_conversations(tokenizer, [*some, Conversation("x:99", chat("a", "b", "c", "d")), *some])


def test_an_alpaca_input_follows_the_instruction():
    (one,) = parse_conversations([Row("x:1", {"instruction": "Sum.", "input": "1 2", "output": "3"})])
    assert one.messages == chat("Sum.\n\n1 2", "3")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"messages": chat(QUESTION)}, "x:7: no message is from the assistant"),
        (
            {"text": "x"},
            "x:7: .* needs the columns messages; conversations; prompt and completion; or instruction.*, not text",
        ),
        ({"messages": []}, "x:7: no message is from the assistant"),
        ({"messages": "hello"}, "x:7: message 1 must be an object with role and content, not 'hello'"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "x:7: message 1 has the role 'robot', .* system, user, assistant",
        ),
        ({"messages": [{"role": "user", "content": None}]}, r"x:7: .* message 1 \(user\) must be text, not None"),
        ({"messages": chat(QUESTION, "  ")}, r"x:7: .* message 2 \(assistant\) must be text, not '  '"),
        ({"prompt": QUESTION, "completion": ""}, r"x:7: .* message 2 \(assistant\) must be text, not ''"),
    ],
)
def test_rows_without_a_conversation_are_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        parse_conversations([Row("x:7", cells)])


def test_the_mask_covers_answers_and_their_end_only(chat_tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, *chat(QUESTION, ANSWER, "Sure?", "Yes.")]
    (one,) = encode_conversations(chat_tokenizer, [Conversation("x", messages)])
    assert chat_tokenizer.decode(one.ids[one.is_answer]) == f"{ANSWER}{END_OF_TURN}Yes.{END_OF_TURN}"
    start = prompt_ids(chat_tokenizer, messages[:2])
    assert one.ids[: len(start)].tolist() == start
    assert not one.is_answer[: len(start)].any()
    assert one.is_answer[len(start)]
    assert end_of_turn([one]) == chat_tokenizer.convert_tokens_to_ids(END_OF_TURN)


def test_control_tokens_in_a_message_are_refused(chat_tokenizer):
    with pytest.raises(ValueError, match=r"x:3: a message contains the control token '<\|end\|>'"):
        encode_conversations(chat_tokenizer, [Conversation("x:3", chat("a <|end|> b", "c"))])


def test_a_template_without_an_end_is_refused(chat_tokenizer):
    with pytest.raises(ValueError, match=r"does not end every answer with the same token.*--chat_template own"):
        end_of_turn([Encoded(np.array([1, 2]), np.array([False, True])), Encoded(np.array([3]), np.array([True]))])


# Length

END = 9
LONG = Encoded(np.array([1, 1, 7, 7, END, 1, 1, 8, 8, END]), np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1], bool))


@pytest.mark.parametrize(
    ("max_length", "ids"),
    [
        (10, LONG.ids.tolist()),
        (9, [1, 1, 7, 7, END]),
        (5, [1, 1, 7, 7, END]),
        (4, [1, 1, 7, END]),
        (3, None),
        (2, None),
    ],
)
def test_truncated_conversations_end_with_the_end_of_an_answer(max_length, ids):
    shorter = truncate(LONG, max_length)
    assert (shorter and shorter.ids.tolist()) == ids
    if shorter:
        assert shorter.is_answer[-1]
        assert len(shorter.is_answer) == len(shorter.ids) <= max_length


def test_too_long_conversations(chat_tokenizer):
    short, long = Conversation("x:1", chat("a", "b")), Conversation("x:2", chat("a", "b" * 50))
    with pytest.raises(ValueError, match=r"1 of 2 conversations .* --max_length \(20 tokens\).*x:2 .*--too_long"):
        limit_length([short, long], chat_tokenizer, 20, "error")
    kept, counts = limit_length([short, long], chat_tokenizer, 20, "truncate")
    assert [len(one.ids) for one in kept] == [6, 20]
    assert counts == {"truncated": 1, "skipped": 0}
    assert chat_tokenizer.decode(kept[1].ids[-2:]).endswith(f"b{END_OF_TURN}")
    kept, counts = limit_length([short, long], chat_tokenizer, 20, "skip")
    assert ([len(one.ids) for one in kept], counts) == ([6], {"truncated": 0, "skipped": 1})
    question = Conversation("x:3", chat("a" * 50, "b"))
    assert limit_length([short, question], chat_tokenizer, 20, "truncate")[1] == {"truncated": 0, "skipped": 1}


# Rows


def test_packing_fills_rows_and_keeps_every_conversation():
    lengths = np.random.default_rng(0).integers(1, 30, 500).tolist()
    rows = pack(lengths, 64)
    assert sorted(number for row in rows for number in row) == list(range(500))
    assert max(sum(lengths[number] for number in row) for row in rows) <= 64
    assert sum(lengths) / (64 * len(rows)) > 0.99
    assert pack([3, 2, 5, 4], 7) == [[2, 1], [3, 0]]


def simple_pack(lengths, capacity):
    """Best-fit decreasing with one sorted list: simple, but quadratic."""
    rows, spaces = [], []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(spaces, (lengths[number], -1))
        space, row = spaces.pop(place) if place < len(spaces) else (capacity, len(rows))
        rows += [[]] * (row == len(rows))
        rows[row] = [*rows[row], number]
        bisect.insort(spaces, (space - lengths[number], row))
    return rows


def test_packing_is_the_simple_algorithm_for_many_rows():
    generator = np.random.default_rng(0)
    for longest, count in ((3, 50), (20, 400), (63, 1000), (64, 1000)):
        lengths = generator.integers(1, longest + 1, count).tolist()
        assert pack(lengths, 64) == simple_pack(lengths, 64)


def rows_of(tokenizer, packing=True):
    texts = [("ab", "c"), ("d", "efg hij"), ("klm", "n"), ("o", "pq"), ("rs", "The a number 3. " * 3)]
    found = [Conversation(str(i), chat(*pair)) for i, pair in enumerate(texts)]
    encoded = encode_conversations(tokenizer, found)
    return PackedConversations(encoded, 1, packing)


def test_a_batch_shifts_labels_and_restarts_positions(chat_tokenizer):
    rows = rows_of(chat_tokenizer)
    batch = rows.batch(range(len(rows)))
    lengths = [one.num_inputs for one in rows.encoded]
    assert {tensor.shape for tensor in batch.values()} == {(3, max(lengths))} == {(3, rows.longest)}
    assert len(rows) == 5  # conversations, of which short ones share a row
    for number, row in enumerate(pack(lengths, max(lengths))):
        start = 0
        for index in row:
            one = rows.encoded[index]
            end = start + len(one.ids) - 1
            assert batch["input_ids"][number, start:end].tolist() == one.ids[:-1].tolist()
            assert batch["position_ids"][number, start:end].tolist() == list(range(end - start))
            expected = np.where(one.is_answer[1:], one.ids[1:], IGNORE_INDEX).tolist()
            assert batch["shift_labels"][number, start:end].tolist() == expected
            start = end
        assert (batch["shift_labels"][number, start:] == IGNORE_INDEX).all()
        assert (batch["position_ids"][number, start:] == 0).all()


def loss_sum(model, rows, indices):
    batch = rows.batch(indices)
    labels = batch.pop("shift_labels")
    return model(**batch, labels=labels, shift_labels=labels, num_items_in_batch=1, use_cache=False).loss


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal"])
def test_packed_conversations_do_not_attend_to_each_other(chat_tokenizer, tmp_path, positions):
    model = AutoModelForCausalLM.from_pretrained(save_base(tmp_path, position_embedding_type=positions))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    packed, single = rows_of(chat_tokenizer), rows_of(chat_tokenizer, packing=False)
    together = loss_sum(model, packed, range(len(packed)))
    alone = sum(loss_sum(model, single, [i]) for i in range(5))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    gradients = []
    for loss in (together, alone):
        model.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_predictions_on_prompts_get_exactly_no_gradient(chat_tokenizer, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = rows_of(chat_tokenizer)
    batch = rows.batch(range(len(rows)))
    labels = batch.pop("shift_labels")
    logits = model(**batch, use_cache=False).logits
    logits.retain_grad()
    model.loss_function(logits=logits, labels=labels, shift_labels=labels).backward()
    is_answer = labels != IGNORE_INDEX
    assert (logits.grad[~is_answer] == 0).all()
    assert (logits.grad[is_answer].abs().sum(-1) > 0).all()
