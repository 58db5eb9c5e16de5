"""The training loop, and what it needs: a trainer, an optimiser, meters, a log, checkpoints."""
