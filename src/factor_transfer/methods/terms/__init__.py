"""The terms of a distillation loss, one paper per module."""
