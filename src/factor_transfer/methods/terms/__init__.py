"""The terms of a distillation loss, one paper a file."""
