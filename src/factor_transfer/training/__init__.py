"""The training loop and its parts: trainer, optimiser, meters, log and checkpoints."""
