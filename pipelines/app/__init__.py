"""The page of `nvg app`: draw a layout, and the model paints it stage by stage; one enters by `page.run_app`.

In reading order:

    settings   what a user asks for and sends, checked: `ask`, `read_upload`; the settings file: `settings_file`
    painting   every canvas and map as it appears: `paint`
    cards      tiles, film strips and the archive: `painting_html`, `archive`
    page       the layout, what happens at a click, and the server: `run_app`

`page.css` and `pad.js` are the look and the sheet that is drawn on.
"""
