"""How long exported files take for an image on one thread, and how much memory: a script of its own.

It is run in a process of its own, ``python probe.py FILE…``, and imports a runtime and nothing else: the memory that is
measured is then the file's. Prints a JSON list, an object a file.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_WARM_UP, _RUNS = 10, 200
_LONGEST_S = 4.0  # a large network is run less often


def probe(path: Path, libraries: dict[str, Any]) -> dict[str, float]:
    """Load a file and run it, one image at a time.

    Returns:
        ``p50_ms`` and ``p95_ms`` of an image, ``runs``, and ``peak_bytes``: memory beyond the runtime's own code.
    """
    before = _peak()
    run = _load_pte(path, libraries) if path.suffix == ".pte" else _load_onnx(path, libraries)
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _LONGEST_S:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    times.sort()
    p50, p95 = (1000 * times[int(share * (len(times) - 1))] for share in (0.5, 0.95))
    return {"p50_ms": round(p50, 4), "p95_ms": round(p95, 4), "runs": len(times), "peak_bytes": _peak() - before}


def _peak() -> int:
    """The most memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _load_pte(path: Path, libraries: dict[str, Any]) -> Callable[[], Any]:
    torch, lib = libraries["torch"], libraries["pte"]
    lib._unsafe_reset_threadpool(1)
    module = lib._load_for_executorch(str(path))
    taken = module.method_meta("forward").input_tensor_meta(0)
    image = torch.zeros(1, *taken.sizes()[1:], dtype=torch.uint8 if taken.dtype() == 0 else torch.float32)
    return lambda: module.run_method("forward", [image])


def _load_onnx(path: Path, libraries: dict[str, Any]) -> Callable[[], Any]:
    numpy, lib = libraries["numpy"], libraries["onnx"]
    options = lib.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = lib.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    image = numpy.zeros([1, *taken.shape[1:]], "uint8" if "uint8" in taken.type else "float32")
    return lambda: session.run(None, {taken.name: image})


def main(paths: list[Path]) -> None:
    """Probe each file in a child of its own, so that none finds what another one left in memory."""
    if paths[0].suffix == ".pte":
        pybindings = "executorch.extension.pybindings._portable_lib"
        libraries = {"torch": import_module("torch"), "pte": import_module(pybindings)}
        libraries["torch"].set_num_threads(1)
    else:
        libraries = {"numpy": import_module("numpy"), "onnx": import_module("onnxruntime")}
    found = []
    for path in paths:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, json.dumps(probe(path, libraries)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        found.append(json.loads(said))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
