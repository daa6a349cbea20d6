"""What pages say, held against the code: `python -m tools.pages [PAGE...]` prints what no longer holds.

Reading order: `text` (a page's parts), `commands` (command lines, by the real command line), `names` (files, keys,
functions, links), `figures` (numbers with the file they come from), `sentences` (how long they are).
"""
