"""The page of `nvg app`: draw a layout, and the model paints it stage by stage; one enters by `page.run_app`.

In reading order:

    settings   what a user asks for and sends, checked: `ask`, `read_upload`; the settings file: `settings_file`
    painting   every canvas and map as it appears: `paint`
    cards      tiles, film strips and the archive: `painting_html`, `archive`
    page       the layout, what happens at a click, and the server: `run_app`

`page.css` and `pad.js` are the look and the sheet that is drawn on, `uploads.js` refuses files of too many bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def enter_own_environment() -> None:
    """Start this command again in the environment that tools/install.sh made for the page beside this one.

    Returns only where there is none, as after `pip install "nvg[app]"`: Gradio is expected here then.
    """
    environment = Path(f"{sys.prefix}-app")
    if next(environment.glob("lib/python*/site-packages/beside_nvg.pth"), None) is not None:
        python = str(environment / "bin" / "python")
        os.execv(python, [python, *sys.orig_argv[1:]])
