"""Factor Transfer: compress a trained network into a small one (Kim, Park, Kwak, NeurIPS 2018)."""
