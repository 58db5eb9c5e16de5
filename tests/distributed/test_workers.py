"""Helper processes, at the moment that they start."""

import signal
import subprocess
import sys
from pathlib import Path

# The fork server gets signals while it imports this module, as a Ctrl-C reaches all processes of a terminal.
IMPORTED = """
import os, signal
from factor_transfer.distributed.workers import begin_helper

if str(os.getpid()) != os.environ["FIRST"]:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)

def work():
    print("started", flush=True)
    begin_helper()
    os.kill(os.getpid(), signal.SIGTERM)
    print("not reached", flush=True)
"""
FIRST = """
import os, sys
os.environ["FIRST"] = str(os.getpid())
sys.path.insert(0, ".")
from factor_transfer.distributed.workers import starting_workers, worker_context
from imported import work
process = worker_context("imported").Process(target=work)
with starting_workers():
    process.start()
process.join()
print(process.exitcode)
"""


def test_the_fork_server_survives_signals_and_a_helper_receives_them() -> None:
    Path("imported.py").write_text(IMPORTED)
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split("\n") == ["started", str(-signal.SIGTERM), ""], done.stderr
