"""HTML pages that need no other file and no network.

In reading order: `page` (the look of all pages, their parts as HTML, the score table and times as text), `report`
(everything one evaluation found: enter by `write_report`), `published` (results beside Table 1 of the paper:
`report_page`). Nothing is re-exported, so that `page` alone stays free of matplotlib.
"""
