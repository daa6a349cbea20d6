"""The page: its layout, what happens at a click, and the server. Gradio is needed here alone.

It asks no other host for anything: fonts are the system's, nothing is reported, and a header forbids the rest.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from nvg.bounds import refuse
from nvg.errors import UserError
from nvg.model import Model, load
from nvg.pixels import ImageArray
from pipelines.app.cards import archive, data_url, empty_html, painting_html
from pipelines.app.painting import Painting, paint
from pipelines.app.settings import (
    MASK_PIXELS,
    MOST_CLASSES,
    AppConfig,
    ask,
    followed_by,
    mask_sheet,
    picture_levels,
    presets,
    read_drawing,
    read_upload,
)

_HERE = Path(__file__).parent
_MOST_CHIPS = 12  # more classes are found by typing
_FOLLOWS = {"nothing": "nothing", "mask": "a drawing", "picture": "a picture", "region": "part of a picture"}
_HOUR_S = 3600
_OWN_ALONE = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
    "base-uri 'self'"
)
_SHEET = "Sheet for a mask. Arrows move the brush, space dots, shift with arrows draws, delete clears."
_PAD = f"""
<div class="pad">
  <div class="paper">
    <canvas width="{MASK_PIXELS}" height="{MASK_PIXELS}" tabindex="0" role="application" aria-label="{_SHEET}"></canvas>
    <span class="cursor"></span>
  </div>
  <div class="tools">
    <label>brush <input type="range" min="8" max="96" value="40" aria-label="Width of the brush"></label>
    <label><input type="checkbox">erase</label>
    <button type="button" class="clear">clear</button>
  </div>
</div>"""


def plan_app(config: AppConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    port = "the first free port from 7860 on" if config.port is None else f"port {config.port}"
    return [
        f"load tokenizer, content and structure generator below {config.run} ({config.weights} weights)",
        f"serve the page on {config.host}, {port}{' and open it in the browser' if config.open else ''}, until Ctrl-C",
    ]


def run_app(config: AppConfig) -> None:
    """Load the model and serve the page until Ctrl-C.

    Raises:
        UserError: there is no such model, or it cannot listen there.
    """
    _check_address(config.host)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    warnings.filterwarnings("ignore", module=r"gradio\.")  # of what Gradio itself calls
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with tempfile.TemporaryDirectory(prefix="nvg-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        import gradio  # noqa: F401  before the model: what is missing is said at once

        model = load(
            config.run,
            settings=config.evaluation,
            weights=config.weights,
            device=config.device,
            precision=config.precision,
        )
        size, channels = model.tokenizer.config.image_size, model.tokenizer.config.image_channels
        model.encode(np.zeros((size, size, channels), np.uint8))  # compiles what is compiled before anybody waits
        page = build_page(model, config)
        url = serve(page, config)
        Console().print(f"The page is at {url} · Ctrl-C ends it", soft_wrap=True, highlight=False)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def serve(page: Any, config: AppConfig) -> str:
    """Start the server of a page in threads of its own.

    Returns:
        URL of the page.

    Raises:
        UserError: the port is taken.
    """
    import gradio as gr

    page.queue(default_concurrency_limit=1, max_size=config.max_waiting)
    try:
        _, url, _ = page.launch(
            server_name=config.host,
            server_port=config.port,
            inbrowser=config.open,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=_most_bytes(config),
            app_kwargs={"middleware": [(_OwnHostAlone, (), {})], "docs_url": None, "redoc_url": None},
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=_theme(gr),
            css=(_HERE / "page.css").read_text(encoding="utf-8"),
        )
    except OSError as error:
        where = f"{config.host}, port {config.port or '7860 to 7959'}"
        raise UserError(f"{where}: the page cannot listen there, it is taken; choose another --port") from error
    return url


def _check_address(host: str) -> None:
    """Raises UserError for what is no address of this machine: the server would try it with every port."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            trial.bind(place)
    except OSError as error:
        where = "an address of this machine, 127.0.0.1 or 0.0.0.0 for all"
        raise refuse("host", host, f"{where} ({error.strerror})", "change --host") from error


def build_page(model: Model, config: AppConfig) -> Any:
    """The page of a model, a `gradio.Blocks`."""
    import gradio as gr

    names = [(name, label) for label, name in enumerate(model.class_names)]
    last_stage = model.num_stages - 1
    with gr.Blocks(title="NVG · paint", analytics_enabled=False, delete_cache=(_HOUR_S, _HOUR_S)) as page:
        gr.HTML(_head(model), elem_id="head")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=4, min_width=280, elem_id="controls"):
                if len(names) <= _MOST_CHIPS:
                    classes = gr.CheckboxGroup(
                        names, value=[0], label="Classes", elem_id="classes", elem_classes="pills"
                    )
                else:
                    classes = gr.Dropdown(names, value=[0], multiselect=True, max_choices=MOST_CLASSES, label="Classes")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, min_width=90, elem_id="seed")
                    beside = gr.Radio(
                        list(range(1, config.max_side_by_side + 1)),
                        value=1,
                        label="Seeds side by side",
                        elem_id="beside",
                        elem_classes="pills",
                        min_width=180,
                    )
                preset = gr.Dropdown(list(presets(model)), label="Sampling")
                follows = gr.Radio(
                    [(_FOLLOWS[how], how) for how in followed_by(model)],
                    value="nothing",
                    label="Start from",
                    elem_id="follows",
                    elem_classes="pills",
                )
                with gr.Column(elem_id="pictured"):
                    shown = gr.HTML("", elem_id="picture")
                    picture_file = gr.UploadButton("Choose a picture", size="sm", elem_id="picture-file")
                with gr.Column(elem_id="drawn"):
                    drawing = (_HERE / "pad.js").read_text(encoding="utf-8")
                    pad = gr.HTML("", html_template=_PAD, js_on_load=drawing, elem_id="pad", behind="")
                    mask_file = gr.UploadButton("Upload a mask", size="sm", elem_id="mask-file")
                stages = gr.Radio(
                    list(range(1, last_stage + 1)),
                    value=1,
                    label="Stages it gives",
                    elem_id="stages",
                    elem_classes="pills",
                )
                with gr.Row(elem_id="buttons"):
                    start = gr.Button("Paint", variant="primary", elem_id="paint")
                    stop = gr.Button("Stop", elem_id="stop", visible=False)
            with gr.Column(scale=9, min_width=320):
                easel = gr.HTML(empty_html(model.num_stages), elem_id="easel")
                refusing = (_HERE / "uploads.js").read_text(encoding="utf-8")
                said = gr.HTML("<p></p>", js_on_load=refusing, elem_id="said", most_bytes=_most_bytes(config))
                taken = gr.DownloadButton(
                    "Download pictures, maps and settings", visible=False, size="md", elem_id="download"
                )
        gr.HTML(_notes(model), elem_id="notes", visible=bool(model.notices))
        # What was uploaded stays with its page: pixels, checked and small.
        picture = gr.State(None, time_to_live=_HOUR_S)

        # Which controls belong to a choice is in page.css: they are there at once.
        def choose(how: str, picture: ImageArray | None) -> tuple[Any, ...]:
            return gr.update(value=1 if how == "mask" else last_stage), *shown_picture(how, picture)

        def shown_picture(how: str, picture: ImageArray | None) -> tuple[Any, Any]:
            url = "" if picture is None else data_url(picture)
            alone = f'<img src="{url}" alt="the picture, as the model sees it">' if url and how == "picture" else ""
            return alone, gr.HTML(behind=url if how == "region" else "")

        def take_mask(file: str) -> tuple[Any, str]:
            try:
                return data_url(mask_sheet(read_upload(file, config, channels=1))), _say("The mask is on the sheet.")
            except UserError as error:
                return gr.update(), _complain(error)

        def take_picture(file: str, how: str) -> tuple[Any, ...]:
            try:
                channels = model.tokenizer.config.image_channels
                levels = picture_levels(read_upload(file, config, channels=channels), model)
            except UserError as error:
                return gr.update(), gr.update(), gr.update(), _complain(error)
            said = "Draw over what is to be painted anew." if how == "region" else "Cut to the model's square."
            return levels, *shown_picture(how, levels), _say(said)

        def start_painting(
            picture: ImageArray | None,
            classes: Any,
            seed: Any,
            beside: Any,
            preset: Any,
            how: Any,
            pad: Any,
            stages: Any,
        ) -> Iterator[tuple[Any, ...]]:
            began, painting = time.monotonic(), None
            yield gr.update(), _say("…"), gr.update(visible=False), gr.update(visible=True)
            try:
                asked = ask(
                    model,
                    config,
                    classes=classes,
                    seed=seed,
                    side_by_side=beside,
                    preset=preset,
                    follows=how,
                    mask=read_drawing(pad),
                    picture=picture,
                    stages=stages,
                )
                for painting in paint(model, asked):
                    yield painting_html(painting), _progress(painting, began), gr.update(), gr.update()
            except UserError as error:
                yield gr.update(), _complain(error), gr.update(), gr.update(visible=False)
                return
            assert painting is not None
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"nvg-seed-{asked.seeds[0]}.zip"
                file.write_bytes(archive(painting, asked, model, config))
                yield gr.update(), gr.update(), gr.update(value=str(file), visible=True), gr.update(visible=False)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        follows.input(choose, [follows, picture], [stages, shown, pad], **quiet, queue=False)
        mask_file.upload(take_mask, mask_file, [pad, said], **quiet)
        picture_file.upload(take_picture, [picture_file, follows], [picture, shown, pad, said], **quiet)
        inputs = [picture, classes, seed, beside, preset, follows, pad, stages]
        painted = start.click(
            start_painting,
            inputs,
            [easel, said, taken, stop],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=said,
            concurrency_limit=1,
            trigger_mode="once",
        )
        stop.click(
            lambda: (_say("Stopped."), gr.update(visible=False)),
            None,
            [said, stop],
            cancels=painted,
            queue=False,
            **quiet,
        )
    return page


class _OwnHostAlone:
    """Tells browsers to load nothing from other hosts, and to guess no kind of file."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _OWN_ALONE.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _theme(gr: Any) -> Any:
    """White, the accent of the reports, the system's own fonts."""
    system = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=system,
        font_mono=["ui-monospace", "SF Mono", "Menlo", "monospace"],
    )
    return theme.set(
        body_background_fill="#ffffff",
        background_fill_primary="#ffffff",
        block_label_background_fill="#ffffff",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_text_color="#ffffff",
        slider_color="#0f766e",
    )


def _most_bytes(config: AppConfig) -> int:
    return round(config.max_upload_mb * 10**6)


def _head(model: Model) -> str:
    config = model.tokenizer.config
    colour = "grey" if config.image_channels == 1 else "colour"
    scored = f"sampled as scored by {model.scored_by}" if model.scored_by else "no evaluation has scored it"
    facts = (
        f"{len(model.class_names)} classes · {config.image_size}×{config.image_size} {colour} · "
        f"{model.num_stages} stages · {scored}"
    )
    return (
        '<p class="eyebrow">Next Visual Granularity</p><h1>Draw a layout, the model paints it stage by stage</h1>'
        f"<p>{escape(facts)}</p>"
    )


def _notes(model: Model) -> str:
    return "".join(f"<p>{escape(notice)}</p>" for notice in model.notices)


def _progress(painting: Painting, began: float) -> str:
    whole = sum(picture.structure_ss is not None for picture in painting.pictures)
    seconds = f"{time.monotonic() - began:.1f} s"
    if painting.done:
        return _say(f"{whole} picture{'s' if whole > 1 else ''} in {seconds}")
    if painting.newest is None:
        return _say("painting …")
    picture = painting.pictures[painting.newest]
    return _say(
        f"{picture.name}, seed {picture.seed}: stage {len(picture.frames)} of {painting.num_stages} · {seconds}"
    )


def _say(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'


def _complain(error: UserError) -> str:
    return f'<p role="alert" class="wrong">{escape(str(error))}</p>'
