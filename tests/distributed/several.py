"""Commands that several processes run one after the other, told by ``torchrun … several.py COMMANDS``.

COMMANDS is a JSON file: a list of ``{"arguments": […]}``, of which one may also say what happens to one of the
processes: ``"rank"`` gets ``"signal"`` in the middle of its step ``"move"`` (1…). What each command printed, its exit
code and its seconds go to COMMANDS.out, a line each, as soon as it ends.
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factor_transfer.cli import exit as ending
from factor_transfer.cli import main
from factor_transfer.training.trainer import Trainer

torch.set_num_threads(1)
ending._COURTESY_S = 0.1  # of processes but the first, before they say what it has most likely said
RANK = int(os.environ["RANK"])
MOVE = Trainer.optimizer_step
COMPILE = nn.Module.compile
# The graphs are captured as they always are; that they are then run by PyTorch itself saves minutes.
nn.Module.compile = lambda module, dynamic, options: COMPILE(module, dynamic=dynamic, backend="aot_eager")  # type: ignore


def carry_out(command: dict[str, Any]) -> dict[str, Any]:
    moves, began = 0, time.monotonic()

    def move(self: Trainer, images: int, loading_seconds: float) -> None:
        nonlocal moves
        moves += 1
        if (RANK, moves) == (command.get("rank"), command.get("move")):
            os.kill(os.getpid(), command["signal"])
        MOVE(self, images, loading_seconds)

    Trainer.optimizer_step = move  # type: ignore[method-assign]
    code, printed, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            main(command["arguments"])
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return {"code": code, "out": printed.getvalue(), "err": errors.getvalue(), "seconds": time.monotonic() - began}


commands = Path(sys.argv[1])
for command in json.loads(commands.read_text()):
    result = carry_out(command)
    if RANK == 0:
        with commands.with_suffix(".out").open("a") as file:
            file.write(json.dumps(result) + "\n")
