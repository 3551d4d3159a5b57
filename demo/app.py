"""The Gradio page."""

from __future__ import annotations

from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.gallery import examples
from demo.handlers import ASK, Handlers
from demo.limits import MOST_CHARACTERS, MOST_NEW_TOKENS
from demo.talk import Session
from vl.model import DEFAULT_PROMPT

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

NANO = "The embedded nano model knows drawn shapes and things, emoji and printed text; it is not made for photographs."
OF_THE_PAGE: dict[str, Any] = {"api_visibility": "private"}
"""Events that are of no use without the page's session: clients are not offered them."""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""The model answers the page and clients of `/ask` in turn."""


def build(model: MiniMaxVL) -> gr.Blocks:
    """The page for `model`, to be launched, and the endpoint `/ask` for clients.

    Raises InputError for a checkpoint that takes no images.
    """
    handlers = Handlers(model)
    # Uploads are deleted after a day, or when the server ends.
    with gr.Blocks(title="MiniMax-VL", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        session = gr.State(Session())
        gr.HTML(header(model))
        with gr.Row(elem_id="examples"):
            choices = [
                (gr.Button(example.label, icon=example.path, size="sm", min_width=0, scale=0), example)
                for example in examples()
            ]
        with gr.Row(elem_id="main"):
            image, overlay, layout = picture_column()
            chat, status, question, sampling = talk_column()

        progress: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": overlay} | OF_THE_PAGE
        quiet: dict[str, Any] = {"show_progress": "hidden"} | OF_THE_PAGE
        shown = [image, overlay, layout, chat, status]
        gr.on(
            [image.upload, image.clear],
            handlers.upload,
            [image, session],
            shown,
            preprocess=False,  # Gradio would decode the file itself, with messages that show paths of the server
            api_name="page_upload",
            **progress,
        )
        for number, (button, example) in enumerate(choices, 1):
            button.click(
                partial(handlers.example, example),
                session,
                [question, *shown],
                api_name=f"page_example_{number}",
                **progress,
            )
        chat.clear(handlers.clear, session, status, api_name="page_clear", **quiet)
        question.stop(handlers.stop, session, None, queue=False, api_name="page_stop", **quiet)
        asked = question.submit(
            handlers.ask,
            [question, session],
            [question, chat, status],
            trigger_mode="multiple",
            api_name="page_ask",
            **quiet,
        )
        answered = asked.then(
            handlers.answer,
            [session, *sampling],
            [question, chat, status],
            preprocess=False,  # Gradio would refuse what is out of range before `answer` could give the question back
            api_name="page_answer",
            **quiet,
            **ONE_AT_A_TIME,
        )
        answered.then(handlers.rest, session, question, api_name="page_rest", **quiet)
        gr.api(handlers.ask_once, api_name="ask", **ONE_AT_A_TIME)
    return page


def picture_column() -> tuple[gr.Image, gr.Image, gr.HTML]:
    """The image, the tiles drawn over it, and what they cost."""
    with gr.Column(scale=5, min_width=320):
        image = gr.Image(
            label="Image",
            sources=["upload", "clipboard"],
            placeholder="Drop an image here, paste one, or click to choose",
            height=280,
            buttons=[],
            elem_id="image",
        )
        overlay = gr.Image(
            label="What the model sees",
            height=340,
            format="jpeg",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="overlay",
        )
        layout = gr.HTML(elem_id="layout")
    return image, overlay, layout


def talk_column() -> tuple[gr.Chatbot, gr.HTML, gr.Textbox, list[gr.components.Component]]:
    """The conversation, the line below it, the question, and the settings of sampling."""
    with gr.Column(scale=6, min_width=320):
        chat = gr.Chatbot(
            label="Conversation",
            height=480,
            placeholder="Add an image, then ask about it.",
            render_markdown=False,  # text read from an image must appear as it was written
            feedback_options=None,
            buttons=[],
            elem_id="chat",
        )
        status = gr.HTML(elem_id="status")
        question = gr.Textbox(
            label="Question",
            placeholder=DEFAULT_PROMPT,
            max_lines=4,
            max_length=MOST_CHARACTERS,
            elem_id="question",
            **ASK,
        )
        with gr.Accordion("Sampling", open=False):
            sampling = sampling_settings()
    return chat, status, question, sampling


def header(model: MiniMaxVL) -> str:
    name = Path(model.name).name if Path(model.name).is_absolute() else model.name
    weights = model.config.quantization or str(model.dtype).removeprefix("torch.")
    where = f"{name} on {', '.join(map(str, model.devices))}, {weights}"
    about = f" {NANO}" if model.name == "nano" else ""
    return f"<header><h1>MiniMax-VL</h1><p>{escape(where)}.{about}</p></header>"


def sampling_settings() -> list[gr.components.Component]:
    """In the order in which `Handlers.answer` takes them."""
    with gr.Row():
        tokens = gr.Slider(1, MOST_NEW_TOKENS, 256, step=1, label="Max new tokens")
        temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 takes the most likely token")
    with gr.Row():
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
        seed = gr.Number(None, label="Seed", info="Empty: another answer each time", precision=0, minimum=0)
    return [tokens, temperature, top_p, seed]
