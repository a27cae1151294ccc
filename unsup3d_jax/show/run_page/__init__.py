"""One file that shows a run: curves, panels, warnings, scores, config.

`curves` keeps what a page needs of a log of any length; `page` makes the document of
it, from `run.html`, `run.css` and `run.js`.
"""
