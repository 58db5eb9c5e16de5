"""``report.html``: the results of a run or a comparison on one self-contained page."""
