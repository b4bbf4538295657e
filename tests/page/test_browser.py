"""The page of `demo` in a real browser: what a visitor does, sees and mistypes."""

import re

import pytest

from tests.support.browser import Visitor, skip_without_a_browser

skip_without_a_browser()

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer  # noqa: E402
from train import generate  # noqa: E402
from train.views.inside import look_inside  # noqa: E402

pytestmark = pytest.mark.xdist_group("browser")

EVIL = '<img src=x onerror="window.evil = 1"> $x_1$ {{value}} ${1 + 1} <b>b</b> `c` \\n'
BUTTONS = "[...document.querySelectorAll('button.lg, input')].filter((e) => e.offsetParent)"
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}


@pytest.fixture(scope="module")
def contexts(browser):
    """The profiles of the browser: a page that it has loaded before comes from its cache."""
    contexts = {}
    yield contexts
    for context in contexts.values():
        context.close()


@pytest.fixture
def visit(demo, browser, contexts, request, tmp_path):
    """Opens the page. At the end nothing may have gone wrong in it, and it has asked no other host for anything."""
    visitors = []

    def visit(**settings):
        key = str(settings)
        if key not in contexts:
            contexts[key] = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | settings)
        visitors.append(Visitor(contexts[key], demo.url))
        return visitors[-1]

    yield visit
    for number, visitor in enumerate(visitors):
        visitor.page.screenshot(path=tmp_path / f"{request.node.name}-{number}.png", full_page=True)
        requests, evil = visitor.requests, visitor.page.evaluate("window.evil")
        visitor.close()
        assert evil is None
        assert visitor.problems == []
        assert [url for url in requests if not url.startswith((demo.url, "data:", "blob:"))] == []


def write(visitor, text, length, **sliders):
    visitor.fill("write-text", text)
    for name, value in ({"length": length} | sliders).items():
        visitor.slider(name, value)
    visitor.click("#write-go")
    visitor.wait("#write-status", "Done")
    return visitor.page.locator("#write-text textarea").input_value()


def test_writing_is_streamed_and_the_same_as_that_of_generate(visit, folders, capsys):
    visitor = visit()
    text = write(visitor, "The a number 3 is", 20)
    generate.main(["--model", str(folders.model), "--prompt", "The a number 3 is", "--max_new_tokens", "20"])
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert re.search(r"Done: \d+ tokens, first after \d+ ms, \d+ tokens/s", visitor.text("#write-status"))
    visitor.click("#write-again")  # another seed
    visitor.wait(".sg-view", "Done")
    visitor.page.wait_for_function(f"document.querySelector('#write-text textarea').value != {text!r}")
    visitor.wait("#write-status", "Done")
    assert visitor.page.locator("#write-text textarea").input_value().startswith("The a number 3 is")
    visitor.click("#write-undo")
    visitor.wait("#write-status", "Undone")
    assert visitor.page.locator("#write-text textarea").input_value() == "The a number 3 is"


def test_writing_can_be_stopped_and_the_text_edited(visit):
    visitor = visit()
    box = visitor.page.locator("#write-text").bounding_box()
    visitor.fill("write-text", "The b")
    visitor.slider("length", 500)
    visitor.click("#write-go")
    visitor.wait("#write-status", "Writing")
    assert visitor.page.locator("#write-text").bounding_box() == box  # nothing has moved
    visitor.click("#write-stop")
    visitor.wait("#write-status", "Stopped")
    (count,) = map(int, re.findall(r"Stopped: (\d+) token", visitor.text("#write-status")))
    assert 0 < count < 500
    assert write(visitor, "The c number", 3, temperature=0).startswith("The c number")


def test_inside_shows_the_exact_numbers_of_the_model(visit, folders):
    visitor = visit()
    text = "The a number 3 is red. The a"
    model = ScratchGPTForCausalLM.from_pretrained(folders.model).eval()
    tokenizer = ScratchGPTTokenizer.from_pretrained(folders.model)
    inside = look_inside(model, tokenizer(text)["input_ids"])
    visitor.tab("Inside")
    visitor.fill("inside-text", text)
    visitor.click("#inside-go")
    tokens = visitor.page.locator("#inside-tokens .sg-token")
    tokens.first.wait_for()
    shown = "".join(visitor.texts("#inside-tokens .sg-token")).replace("\u00b7", " ")
    assert shown == text
    assert "bits per byte" in visitor.text("#inside-tokens")
    tokens.nth(2).click()  # one click to all views
    visitor.page.wait_for_selector("#inside-next .sg-true")
    best = inside.probabilities[2].topk(10)
    cells = visitor.texts("#inside-next tbody td:nth-child(2)")
    assert cells[:3] == [f"{100 * share:.1f} %" for share in best.values.tolist()[:3]]
    assert visitor.page.locator("#inside-lens tbody tr").count() == 3  # embedding and two layers
    assert visitor.texts("#inside-lens tbody td:nth-child(3)")[-1] == cells[0]  # the last layer is the prediction
    assert visitor.page.locator("#inside-norms tbody tr").count() == 3
    assert visitor.page.locator("#inside-heads .sg-head").count() == 4
    visitor.wait("#inside-map .sg-reading", "(3) looks most at")
    visitor.click("#inside-heads .sg-head", 3)
    visitor.wait("#inside-map h4", "Layer 2, head 2")
    square = visitor.page.locator("#inside-map .sg-square")
    size = square.bounding_box()["width"]
    cell = size / len(inside.ids)
    square.hover(position={"x": 1.5 * cell, "y": 4.5 * cell})
    weight = float(inside.attentions[1, 1, 4, 1])
    visitor.wait("#inside-map .sg-reading", f"(2): {100 * round(weight, 4):.1f} %")
    square.hover(position={"x": 6.5 * cell, "y": 4.5 * cell})
    visitor.wait("#inside-map .sg-reading", "it comes later")
    assert "random tokens read twice" in visitor.text("#inside-heads")


def test_the_keyboard_reaches_tokens_and_the_map(visit):
    visitor = visit()
    visitor.tab("Inside")
    visitor.click("#inside-go")
    first = visitor.page.locator("#inside-tokens .sg-token").first
    first.wait_for()
    first.focus()
    visitor.page.keyboard.press("Enter")
    visitor.wait("#inside-map .sg-reading", "(1) looks most at")
    assert first.get_attribute("aria-pressed") == "true"
    assert "bytes 54" in first.get_attribute("aria-label")
    visitor.page.locator("#inside-map .sg-square").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        visitor.page.keyboard.press(key)
    visitor.wait("#inside-map .sg-reading", "(3) looks at")


def test_choosing_tokens_by_hand_makes_branches(visit):
    visitor = visit()
    visitor.tab("Choose")
    visitor.fill("choose-text", "The a number")
    visitor.click("#choose-go")
    candidates = visitor.page.locator("#choose-step .sg-token")
    candidates.first.wait_for()
    visitor.slider("top-k", 3)
    visitor.wait("#choose-step", "cut off by top-k")
    assert len(visitor.texts("#choose-step tbody .sg-cut")) == 12  # of 15
    visitor.slider("min-p", 0.95)
    visitor.wait("#choose-step .sg-stages", "min-p")
    length = visitor.page.locator("#choose-texts .sg-token").count()

    def wait_for_tokens(count):
        visitor.page.wait_for_function(
            f"document.querySelectorAll('#choose-texts .sg-token').length == {count}"
        )  # fmt: skip

    candidates.nth(1).click()
    wait_for_tokens(length + 1)
    visitor.click("#choose-sample")
    wait_for_tokens(length + 2)
    visitor.click("#choose-texts .sg-token", length)  # back to the token that was forced
    visitor.page.wait_for_selector("#choose-texts .sg-later")
    candidates.nth(5).click()
    visitor.page.wait_for_function("document.querySelectorAll('#choose-texts .sg-text').length == 2")
    visitor.click("#choose-texts .sg-token", length - 1)  # of the first text
    visitor.page.wait_for_selector("#choose-texts .sg-later")
    visitor.click("#choose-cut")
    visitor.page.wait_for_function("document.querySelectorAll('#choose-texts .sg-text').length == 1")  # now part of it
    visitor.click("#choose-cut")
    visitor.page.wait_for_function("document.querySelectorAll('#choose-texts .sg-later').length == 0")


def test_chat_keeps_the_conversation_and_takes_messages_back(visit):
    visitor = visit()
    visitor.tab("Chat")
    visitor.slider("length", 8)
    for count, question in enumerate(["What is <|end|> a?", EVIL], start=1):
        visitor.fill("chat-text", question)
        visitor.click("#chat-go")
        visitor.page.wait_for_function(f"document.querySelectorAll('#chat .sg-model').length == {count}")
        visitor.wait("#chat-status", "Done")
        assert visitor.texts("#chat .sg-you pre")[-1] == question
    answer = visitor.texts("#chat .sg-model pre")[-1]
    visitor.click("#chat-again")
    visitor.page.wait_for_function(
        f"[...document.querySelectorAll('#chat .sg-model pre')].at(-1).innerText != {answer!r}"
    )
    visitor.wait("#chat-status", "Done")
    visitor.click("#chat .sg-edit")
    visitor.wait("#chat-status", "Edit your message")
    visitor.page.wait_for_function("document.querySelector('#chat-text textarea').value == 'What is <|end|> a?'")
    visitor.page.wait_for_function("document.querySelectorAll('#chat .sg-bubble').length == 0")


def test_a_text_that_is_being_written_does_not_come_back(visit):
    visitor = visit()
    visitor.fill("write-text", "The a number 3 is")
    visitor.slider("length", 500)
    visitor.click("#write-go")
    visitor.wait("#write-status", "Writing")
    visitor.click("#write-undo")
    visitor.wait("#write-status", "Undone")
    visitor.page.wait_for_timeout(1000)
    assert visitor.text("#write-status") == "Undone."
    assert visitor.page.locator("#write-text textarea").input_value() == "The a number 3 is"


@pytest.mark.parametrize(("button", "said"), [("#chat .sg-edit", "Edit your message"), ("#chat-clear", "New conv")])
def test_an_answer_that_is_being_written_does_not_come_back(visit, button, said):
    visitor = visit()
    visitor.tab("Chat")
    visitor.slider("length", 500)
    visitor.fill("chat-text", "What is a?")
    visitor.click("#chat-go")
    visitor.wait("#chat-status", "Writing")
    visitor.page.evaluate(f"document.querySelector('{button}').click()")  # the button is drawn anew with each token
    visitor.wait("#chat-status", said)
    visitor.page.wait_for_timeout(1000)  # in which the rest of the answer would be written
    assert said in visitor.text("#chat-status")
    assert visitor.page.locator("#chat .sg-bubble").count() == 0


def test_what_is_typed_is_shown_as_typed(visit):
    visitor = visit()
    write(visitor, EVIL, 2)
    visitor.tab("Inside")
    visitor.fill("inside-text", EVIL)
    visitor.click("#inside-go")
    visitor.page.wait_for_selector("#inside-tokens .sg-token")
    assert "".join(visitor.texts("#inside-tokens .sg-token")).replace("\u00b7", " ") == EVIL
    visitor.tab("Choose")
    visitor.fill("choose-text", EVIL)
    visitor.click("#choose-go")
    visitor.page.wait_for_selector("#choose-texts .sg-token")
    assert "".join(visitor.texts("#choose-texts .sg-token")).replace("\u00b7", " ") == EVIL
    visitor.tab("Compare")
    visitor.fill("compare-text", EVIL)
    visitor.slider("length", 2)
    visitor.click("#compare-go")
    visitor.page.wait_for_selector("#compare-written-b pre, #compare-error p")
    assert visitor.texts("#compare-written-a pre")[0].startswith(EVIL)


def test_training_shows_curves_and_samples_by_step_while_the_run_goes_on(visit, folders):
    visitor = visit()
    visitor.tab("Training")
    visitor.page.wait_for_selector("#training-curves svg")
    titles = " ".join(visitor.texts("#training-curves figcaption"))
    assert all(
        name in titles
        for name in ("training loss 6", "validation loss 3.4", "learning rate", "gradient norm", "tokens per second")
    )
    assert "running, step 60 of 80" in visitor.text("#training-state")
    assert "text of step 20" in visitor.text("#training-samples")
    box = visitor.page.locator("#training-slider input[type=number]")
    box.fill("3")
    box.press("Tab")
    visitor.wait("#training-samples", "text of step 60")
    with (folders.run / "samples.jsonl").open("a") as file:
        file.write('{"step": 80, "prompt": "a < b", "text": " the newest"}\n')
    visitor.wait("#training-slider", "1 to 4")


def test_two_models_are_compared(visit, folders):
    visitor = visit()
    visitor.tab("Compare")
    visitor.fill("compare-text", "The a number 3 is red.")
    visitor.page.locator("#compare-b input").fill(str(folders.run / "checkpoint-00000020"))
    visitor.page.keyboard.press("Enter")
    visitor.click("#compare-score")
    visitor.page.wait_for_selector("#compare-scored-b .sg-token")
    facts = visitor.texts("#compare-scored-a .sg-facts, #compare-scored-b .sg-facts")
    assert facts[0] == facts[1]  # the same weights
    assert "bits per byte" in facts[0]


def test_another_model_and_folders_that_are_none(visit, folders):
    visitor = visit()
    assert not visitor.page.get_by_role("tab", name="Labels").is_visible()

    def choose(name):
        visitor.page.locator("#model input").fill(str(name))
        visitor.page.keyboard.press("Enter")

    for name, reason in (
        (folders.empty, "is not a model folder"),
        (folders.without_tokenizer, "has no tokenizer"),
        (folders.top / "<b>gone", "does not exist"),
    ):
        choose(name)
        visitor.wait("#model-error", reason)
        assert str(name) in visitor.text("#model-error")
    visitor.click("#write-go")
    visitor.wait("#write-error", "does not exist")
    choose(folders.classifier)
    visitor.page.wait_for_selector("#labels-go >> visible=true")  # its tab was not there before
    visitor.fill("labels-text", "The a number 3 is red.")
    visitor.click("#labels-go")
    visitor.page.wait_for_selector("#labels tbody tr")
    assert sorted(visitor.texts("#labels tbody th")) == ["<b>sad</b>", "happy"]
    choose(folders.gpt2)  # which has no chat template
    visitor.tab("Inside")
    visitor.page.wait_for_function("document.querySelector('#model input').value.endsWith('gpt2')")
    visitor.click("#inside-go")
    visitor.page.wait_for_selector("#inside-heads .sg-head")
    visitor.tab("Chat")
    visitor.fill("chat-text", "Hello")
    visitor.click("#chat-go")
    visitor.wait("#chat-error", "has no chat template")


def test_a_phone_has_room_for_everything(visit):
    visitor = visit(**PHONE)
    views = {"Inside": ".sg-head", "Choose": "#choose-step .sg-token", "Compare": "#compare-scored-b .sg-token"}
    buttons = {"Inside": "#inside-go", "Choose": "#choose-go", "Compare": "#compare-score"}
    for name in ("Write", "Chat", *views, "Training"):
        visitor.tab(name)
        if name in views:
            visitor.click(buttons[name])
            visitor.page.wait_for_selector(views[name])
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visitor.page.evaluate(f"Math.max(...{BUTTONS}.map((e) => e.getBoundingClientRect().right)) <= 390")
    dark = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60
