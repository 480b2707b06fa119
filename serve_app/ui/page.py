"""The page: its controls, and which handler each of them calls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from serve_app.ui.config import ChatArgs
from serve_app.ui.handlers import Handlers

# Uploaded images are checked once an hour, and deleted when they are a day old.
DELETE_UPLOADS = (3600, 86_400)
CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
#title h1 {margin: 0}
#chatbot small {opacity: .75}
/* It clears the display and not the conversation; "New chat" does both. */
#chatbot button[aria-label="Clear"] {display: none}
/* It would send the conversation to another site. */
#chatbot button[aria-label="Share"] {display: none}
@media (max-width: 640px) {
  main {padding: 12px !important}
  #chatbot {height: 46dvh !important}
  #actions {flex-wrap: nowrap; gap: 8px}
  #actions button {min-width: 0 !important; padding: 8px; font-size: 14px}
}
"""


def theme() -> gr.themes.Base:
    """A theme with system fonts only, so that no font is loaded from elsewhere."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def _whole_number(label: str, placeholder: str, info: str | None = None) -> gr.Textbox:
    """A field that may stay empty, which gradio's own for numbers cannot."""
    return gr.Textbox(
        label=label,
        info=info,
        placeholder=placeholder,
        max_lines=1,
        min_width=100,
        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
    )


class Page:
    """Builds the page once; every browser's tab has values of its own."""

    def __init__(self, args: ChatArgs) -> None:
        self._args = args
        self._handlers = Handlers(args)
        with gr.Blocks(
            title=args.title, analytics_enabled=False, delete_cache=DELETE_UPLOADS
        ) as self.blocks:
            self._build()
        self.blocks.state_session_capacity = args.max_sessions
        # The server limits the load; here any number of users may send at the same time.
        self.blocks.queue(api_open=False, default_concurrency_limit=None)
        # By default it looks for a message a thousand times a second, which takes 3 % of a core.
        # This is gradio's own value for Windows.
        self.blocks._queue.sleep_when_free = 0.05

    def _build(self) -> None:
        self._turns = gr.State([])
        self._served = gr.State([])
        gr.Markdown(f"# {self._args.title}", elem_id="title")
        self._notice = gr.Markdown(visible=False)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self._conversation()
            with gr.Column(scale=1, min_width=260):
                self._settings()
        self._connect()

    def _conversation(self) -> None:
        with gr.Row():
            self._model = gr.Dropdown(label="Model", allow_custom_value=True, min_width=140)
            # Custom values too, because gradio refuses a value while the browser does not know yet
            # that the choices have changed; the handler checks it.
            self._variant = gr.Dropdown(label="Variant", allow_custom_value=True, min_width=140)
        self._chatbot = gr.Chatbot(
            label="Conversation",
            elem_id="chatbot",
            height="58dvh",
            buttons=["copy"],
            allow_file_downloads=False,
            sanitize_html=True,
            latex_delimiters=[],
        )
        self._message = gr.MultimodalTextbox(
            label="Message",
            show_label=False,
            placeholder="Write a message, attach images",
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
        )
        with gr.Row(elem_id="actions"):
            self._stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90)
            self._again = gr.Button(
                "Run again and compare", interactive=False, scale=2, min_width=230
            )
            self._clear = gr.Button("New chat", min_width=90)

    def _settings(self) -> None:
        self._system = gr.Textbox(label="System prompt", lines=2, max_lines=8)
        self._temperature = gr.Slider(
            label="Temperature", info="0 is greedy", minimum=0, maximum=2, value=1, step=0.05
        )
        self._top_p = gr.Slider(label="Top p", minimum=0.05, maximum=1, value=1, step=0.05)
        with gr.Row():
            self._top_k = _whole_number("Top k", "auto")
            self._max_tokens = _whole_number("Max tokens", "auto")
        self._new_seed = gr.Checkbox(label="New seed each time", value=True)
        self._seed = _whole_number("Seed", "drawn by the server", "The last one that was used")
        self._key = gr.Textbox(
            label="API key",
            info="Where the server asks for one. It is kept in this tab only.",
            type="password",
            html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        )
        self._reload = gr.Button("Reload models", size="sm")

    def _connect(self) -> None:
        handlers = self._handlers
        quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        view = [
            self._turns,
            self._chatbot,
            self._message,
            self._seed,
            self._stop,
            self._again,
            self._clear,
        ]
        listed = [self._served, self._model, self._variant, self._notice]
        for event in (self.blocks.load, self._reload.click, self._key.submit):
            event(handlers.list_models, [self._key, self._model], listed, **quietly)
        self._model.input(
            handlers.list_variants, [self._served, self._model], self._variant, **quietly
        )
        asked = [
            self._turns,
            self._message,
            self._served,
            self._model,
            self._variant,
            self._system,
            self._temperature,
            self._top_p,
            self._top_k,
            self._max_tokens,
            self._new_seed,
            self._seed,
            self._key,
        ]
        # "multiple": a message that is sent during an answer reaches the handler, which refuses it.
        self._message.submit(handlers.send, asked, view, trigger_mode="multiple", **quietly)
        self._again.click(handlers.again, [self._turns, self._key], view, **quietly)
        self._stop.click(handlers.stop, None, None, queue=False, **quietly)
        self._clear.click(handlers.clear, None, view, **quietly)
        self.blocks.unload(handlers.stop)
