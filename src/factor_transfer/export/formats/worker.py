"""Exported files, run in a process of their own: a script that imports a runtime, and nothing of this package.

A file is a program, and a runtime that is given a damaged or hostile one may crash, hang or take all memory: it does so
here, and not in the process that a person started. See ``runtimes``, which starts it with an empty working directory.

``python -P worker.py serve FILE`` says in a line of JSON that its runtime is imported, and in another one what the file
takes; then, for images on standard input, their logits. ``python -P worker.py measure FILE…`` prints a JSON list: how
long each file takes for an image on one thread, and how much memory.
"""

import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# Beyond what the libraries take, so much may be allocated, bytes; and for each byte of a file so many.
_MEMORY, _MEMORY_OF_A_BYTE = 2**32, 16
_MEMORY_OF_A_THREAD = 2**27  # of address space: its stack, and the allocator's arena
_MOST_OUTPUT = 2**24  # bytes that may be written to a file, of which standard error is one
_MOST = 64  # images that a file of dynamic batch size is given at once
_WARM_UP, _RUNS = 10, 200
_LONGEST_S = 4.0  # a large network is run less often

Arrays = Callable[[Any], Any]  # images (b, C, H, W) -> logits (b, K), in NumPy's arrays


class Loaded(NamedTuple):
    """A file that was loaded.

    Attributes:
        shape: of one image (C, H, W).
        dtype: ``"uint8"`` or ``"float32"``.
        dynamic: whether it takes several images at once.
        reentrant: whether several threads may run it.
        run: it.
        again: an image (1, C, H, W) -> what runs it, and does nothing else: to be timed.
    """

    shape: list[int]
    dtype: str
    dynamic: bool
    reentrant: bool
    run: Arrays
    again: Callable[[Any], Callable[[], Any]]


def import_runtime(ending: str) -> dict[str, Any]:
    """The libraries that a file of this ending needs."""
    names = {"numpy": "numpy"}
    if ending == ".pte":
        # What executorch.runtime stands on: that would import the exporter, which takes seconds, too.
        names |= {"torch": "torch", "runtime": "executorch.extension.pybindings._portable_lib"}
    else:
        names |= {"onnx": "onnx", "runtime": "onnxruntime"}
    return {name: import_module(module) for name, module in names.items()}


def load(path: Path, libraries: dict[str, Any], verify: bool = True) -> Loaded:
    """Load a file.

    Args:
        path: of the file.
        libraries: see ``import_runtime``.
        verify: by its own libraries; where memory is measured, it was verified before, and takes none for that.

    Raises:
        Exception: of many kinds, where it is damaged or not as it should be.
    """
    if path.suffix == ".pte":
        found = _load_pte(path, libraries)
    else:
        found = _load_onnx(_verified_onnx(path, libraries["onnx"]) if verify else str(path), libraries["runtime"])
    if len(found.shape) != 3 or not all(isinstance(length, int) and length > 0 for length in found.shape):
        raise ValueError(f"its input is of shape {found.shape}; images (N, C, H, W) are needed")
    return found


def _load_pte(path: Path, libraries: dict[str, Any]) -> Loaded:
    torch, runtime = libraries["torch"], libraries["runtime"]
    consistent = runtime.Verification.InternalConsistency
    module = runtime._load_for_executorch(str(path), program_verification=consistent)
    method = module.method_meta("forward")
    if method.num_inputs() != 1 or method.num_outputs() != 1:
        raise ValueError(
            f"it takes {method.num_inputs()} tensors and returns {method.num_outputs()}; one each is needed"
        )
    taken = method.input_tensor_meta(0)
    batch, *shape = taken.sizes() or [0]
    dtypes = {0: "uint8", 6: "float32"}  # as ExecuTorch's files number them
    if taken.dtype() not in dtypes:
        raise ValueError("its input is neither uint8 nor float32")

    def run(images: Any) -> Any:
        said = module.run_method("forward", [torch.from_numpy(images)])[0]
        return said.numpy().copy()  # it is the program's own memory, and written over by the next one

    def again(image: Any) -> Callable[[], Any]:
        given = [torch.from_numpy(image)]
        return lambda: module.run_method("forward", given)

    return Loaded(list(shape), dtypes[taken.dtype()], batch > 1, False, run, again)


def _verified_onnx(path: Path, onnx: Any) -> bytes:
    """The content of an ONNX file, which must be all there is of the network."""
    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(
                "it keeps weights in other files (external data), which are not read; put all into one file"
            )
    onnx.checker.check_model(content)
    return content


def _load_onnx(source: str | bytes, runtime: Any) -> Loaded:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    # For images one by one: to share each among threads costs more than it saves.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise ValueError("it takes or returns several tensors; one each is needed")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    dtypes = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    if taken.type not in dtypes or given.type != "tensor(float)":
        raise ValueError(f"it takes {taken.type} and returns {given.type}; uint8 or float, and float are needed")
    batch, *shape = taken.shape or [0]
    return Loaded(
        shape,
        dtypes[taken.type],
        not isinstance(batch, int),
        True,
        lambda images: session.run([given.name], {taken.name: images})[0],
        lambda image: lambda: session.run(None, {taken.name: image}),
    )


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of an ONNX model, those within the bodies of loops, branches and functions too."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            continue
        for attribute in nodes.pop().attribute:
            graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            yield from [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            for sparse in [*attribute.sparse_tensors, attribute.sparse_tensor]:
                yield from (sparse.values, sparse.indices)


def _logits(loaded: Loaded, images: Any, numpy: Any) -> Any:
    """What a file says to images (N, C, H, W): float32 (N, K).

    Raises:
        ValueError: it says something else.
    """
    most = _MOST if loaded.dynamic else 1
    parts = [images[start : start + most] for start in range(0, len(images), most)]
    with ThreadPoolExecutor(os.cpu_count() if loaded.reentrant else 1) as pool:
        said = list(pool.map(loaded.run, parts))
    for part, one in zip(parts, said, strict=True):
        if (
            not isinstance(one, numpy.ndarray)
            or one.dtype != numpy.float32
            or one.shape != (len(part), said[0].shape[-1])
        ):
            raise ValueError(
                f"to {len(part)} images it says {getattr(one, 'dtype', type(one).__name__)} of shape "
                f"{list(getattr(one, 'shape', ()))}; logits are needed, float32, a row an image"
            )
    return numpy.ascontiguousarray(numpy.concatenate(said))


def serve(path: Path, given: BinaryIO, answers: BinaryIO, cpu_s: float) -> None:
    """Answer requests until there are no more: so many images (8 bytes, little-endian), and their pixels.

    An answer is a line of JSON, an object; behind that of logits follow their bytes. ``error`` in it is the last.

    Args:
        path: of the file.
        given: requests.
        answers: where to.
        cpu_s: processor time, in seconds, that a request may take, a second more for each image: whoever asked may have
            been killed while a file runs for ever.
    """

    def say(answer: dict[str, Any], content: bytes = b"") -> None:
        answers.write(json.dumps(answer).encode() + b"\n" + content)
        answers.flush()

    libraries = import_runtime(path.suffix)
    numpy = libraries["numpy"]
    say({"ready": True})
    limit_memory([path])
    try:
        _limit_time(cpu_s)
        loaded = load(path, libraries)
        trial = _logits(loaded, numpy.zeros([1, *loaded.shape], loaded.dtype), numpy)
        say({"shape": loaded.shape, "dtype": loaded.dtype, "dynamic": loaded.dynamic, "classes": trial.shape[1]})
        size = int(numpy.prod(loaded.shape)) * (1 if loaded.dtype == "uint8" else 4)
        while header := given.read(8):
            (count,) = struct.unpack("<Q", header)
            images = numpy.frombuffer(given.read(count * size), loaded.dtype).reshape(count, *loaded.shape).copy()
            _limit_time(cpu_s + count)
            logits = _logits(loaded, images, numpy)
            say({"shape": list(logits.shape)}, logits.tobytes())
    except Exception as error:  # each runtime has its own, for files that are damaged in many ways
        say({"error": (str(error).splitlines() or [type(error).__name__])[0][:300]})


def limit_memory(paths: list[Path]) -> None:
    """Bound this process's address space, where the system can: Linux."""
    try:
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        size = max(path.stat().st_size for path in paths)
        most = own + _MEMORY + _MEMORY_OF_A_BYTE * size + _MEMORY_OF_A_THREAD * (os.cpu_count() or 1)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (OSError, ValueError):
        pass


def _limit_time(seconds: float) -> None:
    """Bound the processor time that this process takes from now on; it is killed where it takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(total) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def probe(path: Path, libraries: dict[str, Any]) -> dict[str, float]:
    """Load a file and run it, one image at a time.

    Returns:
        ``p50_ms`` and ``p95_ms`` of an image, ``runs``, and ``peak_bytes``: memory beyond the runtime's own code.
    """
    before = _peak()
    loaded = load(path, libraries, verify=False)
    run = loaded.again(libraries["numpy"].zeros([1, *loaded.shape], loaded.dtype))
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


def measure(paths: list[Path], answers: BinaryIO) -> None:
    """Probe each file in a child of its own, so that none finds what another one left in memory."""
    libraries = import_runtime(paths[0].suffix)
    if paths[0].suffix == ".pte":
        libraries["torch"].set_num_threads(1)
        libraries["runtime"]._unsafe_reset_threadpool(1)
    limit_memory(paths)
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
    answers.write(json.dumps(found).encode())
    answers.flush()


def main(task: str, *arguments: str) -> None:
    """What ``runtimes`` asks for: answers go where standard output was, what libraries print to standard error."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if task == "serve":
            resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_OUTPUT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            serve(Path(arguments[0]), sys.stdin.buffer, answers, float(arguments[1]))
        else:
            measure([Path(argument) for argument in arguments], answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
