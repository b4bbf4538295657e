"""The tab Chat: a conversation with a model that has a chat template."""

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..data.plain_text import Message, prompt_ids
from ..model.conversation import Conversation
from .events import when
from .library import OpenModel
from .markup import caption, escaped, picks
from .parts import Page, length_of, sampling_of, sampling_sliders, sentence, session, view
from .write_tab import status
from .writing import Writing

MAX_TURNS = 100


def build(page: Page) -> None:
    """Add the tab to the page."""
    gr.Markdown(
        "Talk to the model; it sees the whole conversation. Edit takes a message back and writes on from there."
    )
    chat = view("chat", value=chat_view([]), max_height=380, autoscroll=True)
    facts = gr.HTML(status("Ready."), elem_id="chat-status", elem_classes=["sg-view"], apply_default_css=False)
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            label="Message", lines=1, max_lines=5, elem_id="chat-text", scale=5, min_width=220,
            max_length=page.library.max_prompt_tokens * 16,
        )  # fmt: skip
        go = gr.Button("Send", variant="primary", elem_id="chat-go", scale=1, min_width=90)
    with gr.Row(elem_classes="sg-buttons"):
        stop = gr.Button("Stop", variant="stop", elem_id="chat-stop", min_width=90)
        again = gr.Button("Answer again", elem_id="chat-again", min_width=90)
        clear = gr.Button("New conversation", elem_id="chat-clear", min_width=90)
    errors = sentence("chat-error")
    system = gr.Textbox(label="System message", lines=1, elem_id="chat-system", placeholder="none")
    sliders = sampling_sliders(page.max_new_tokens)
    turns = gr.State([])
    outputs, talks = [chat, facts, question, turns], Talks(page)

    def on(triggers: list[Any], function: Any, inputs: list[Any], **settings: Any) -> None:
        inputs = [page.model, turns, *inputs, system, *sliders]
        when(triggers, function, inputs, outputs, errors, show_progress="hidden", **settings)

    on([go.click, question.submit], talks.ask, [question], api_name="chat")
    on([again.click], talks.ask_again, [])
    for event in (stop.click, chat.select, clear.click):
        event(page.stop, queue=False, api_visibility="private")
    # these wait for the answer that was stopped: what it still shows would replace theirs
    when([chat.select], talks.edit, [turns], outputs, errors, show_progress="hidden")
    when([clear.click], lambda: shown([], "New conversation.", ""), [], outputs, errors, show_progress="hidden")


def shown(turns: list[Message], text: str, question: str) -> tuple[str, str, str, list[Message]]:
    """The conversation, the line under it, the text of the question, and the messages."""
    return chat_view(turns), status(text), question, turns


def chat_view(turns: list[Message]) -> str:
    """The messages as bubbles."""
    if not turns:
        return caption("No message yet.")
    bubbles = []
    for number, turn in enumerate(turns):
        is_user = turn["role"] == "user"
        label = f'{picks(edit=number)} aria-label="edit message {number + 1}"'
        edit = f'<button type="button" class="sg-edit" {label}>edit</button>' if is_user else ""
        name = "you" if is_user else "model"
        bubbles.append(
            f'<div class="sg-bubble sg-{name}"><small>{name} {edit}</small><pre>{escaped(turn["content"])}</pre></div>'
        )
    return f'<div class="sg-chat" role="log" aria-label="conversation">{"".join(bubbles)}</div>'


class Talks:
    """What the buttons of the tab do. The outputs are those of `shown`."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def ask(
        self, request: gr.Request, name: str, turns: list[Message], question: str, system: str, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a new question."""
        if not question.strip():
            raise ValueError("Type a message first.")
        yield from self._answer(request, name, turns, question.strip(), system, settings)

    def ask_again(
        self, request: gr.Request, name: str, turns: list[Message], system: str, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Answer the last question in another way, with a random seed."""
        questions = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
        if not questions:
            raise ValueError("There is no question yet.")
        changed = (*settings[:5], random.randrange(1, 10**6), *settings[6:])
        before, question = turns[: questions[-1]], turns[questions[-1]]["content"]
        yield from self._answer(request, name, before, question, system, changed)

    def edit(self, event: gr.EventData, turns: list[Message]) -> tuple[Any, ...]:
        """Take a message back, and all that followed."""
        number = int(event._data["edit"])
        text = turns[number]["content"] if 0 <= number < len(turns) else ""
        return shown(turns[:number], "Edit your message and send it again.", text)

    def _answer(
        self, request: gr.Request, name: str, turns: list[Message], question: str, system: str, settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        with self.page.library.lock:
            opened = self.page.library.open(name)
        *chosen, wanted = settings
        conversation = conversation_of(opened, turns, system, length_of(wanted, self.page.max_new_tokens))
        conversation.add_question(question)
        ids = prompt_ids(opened.tokenizer, conversation.messages)
        writing = Writing(self.page.library, opened, ids, sampling_of(*chosen), conversation.room)
        asked = [*turns, {"role": "user", "content": question}]
        self.page.running[session(request)] = writing
        answer = ""
        try:
            yield shown(asked, "Reading the message ...", "")
            for answer in writing.texts():
                yield shown([*asked, {"role": "assistant", "content": answer}], f"Writing: {writing.pace}", "")
        finally:
            self.page.running.pop(session(request), None)
        end = "Stopped" if writing.was_stopped else "Done"
        yield shown([*asked, {"role": "assistant", "content": answer}], f"{end}: {writing.pace}", "")


def conversation_of(opened: OpenModel, turns: list[Message], system: str, limit: int) -> Conversation:
    """The conversation so far.

    Raises:
        ValueError: the model cannot chat, or the conversation is too long for this page.
    """
    opened.refuse_classifier()
    if opened.tokenizer.chat_template is None:
        raise ValueError(f"{opened.name} has no chat template: use the tab Write, or fine-tune it for chat.")
    if len(turns) > MAX_TURNS:
        raise ValueError("This conversation is too long: begin a new one.")
    opened.ids("".join(str(turn["content"]) for turn in turns) + system, opened.max_prompt_tokens * 4)
    first: list[Message] = [{"role": "system", "content": system.strip()}] if system.strip() else []
    positions = opened.positions
    return Conversation(opened.tokenizer, first, positions, min(limit, positions // 2), list(turns))
