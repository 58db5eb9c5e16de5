"""``report.html``: what came out of a run or of a comparison, on one page that needs no network."""
