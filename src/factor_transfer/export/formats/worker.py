"""The worker that runs exported files: a script that imports a runtime, and nothing else of this package.

A file is a program, and a damaged or malicious one may make its runtime crash, hang or use all memory. It does so in
this process, and not in the user's. ``runtimes`` starts it with an empty working directory.

``python -P worker.py serve FILE SECONDS`` prints a line of JSON when its runtime is imported, and another one with the
input of the file; it then replies with logits to images on standard input. ``python -P worker.py measure FILE…`` prints
a JSON list with the latency of each file per image, on one thread, and its memory.
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

# The memory that may be allocated in addition to that of the libraries, in bytes: a constant, and a multiple of the
# size of the file.
_MEMORY, _MEMORY_OF_A_BYTE = 2**32, 16
_MEMORY_OF_A_THREAD = 2**27  # the address space of a thread, for its stack and the allocator's arena
_MOST_OUTPUT = 2**24  # the largest size of a file that is written, such as standard error, in bytes
_MOST = 64  # the largest batch of a file with a dynamic batch size
_WARM_UP, _RUNS = 10, 200
_LONGEST_S = 4.0  # the time after which a large network is not run again

Arrays = Callable[[Any], Any]  # images (b, C, H, W) -> logits (b, K), in NumPy's arrays


class Loaded(NamedTuple):
    """A loaded file.

    Attributes:
        shape: the shape of one image, (C, H, W).
        dtype: the type of the input, ``"uint8"`` or ``"float32"``.
        dynamic: whether the file takes several images at once.
        reentrant: whether several threads may run it.
        run: a function that computes the logits of images.
        again: a function that returns, for an image (1, C, H, W), a function that runs the file and does nothing else,
            for timing.
    """

    shape: list[int]
    dtype: str
    dynamic: bool
    reentrant: bool
    run: Arrays
    again: Callable[[Any], Callable[[], Any]]


def import_runtime(ending: str) -> dict[str, Any]:
    """Import the libraries that run files with an ending, ``".pte"`` or ``".onnx"``."""
    names = {"numpy": "numpy"}
    if ending == ".pte":
        # The module below executorch.runtime, which would also import the exporter and take seconds for it.
        names |= {"torch": "torch", "runtime": "executorch.extension.pybindings._portable_lib"}
    else:
        names |= {"onnx": "onnx", "runtime": "onnxruntime"}
    return {name: import_module(module) for name, module in names.items()}


def load(path: Path, libraries: dict[str, Any], verify: bool = True) -> Loaded:
    """Load a file.

    Args:
        path: the path of the file.
        libraries: the libraries, see ``import_runtime``.
        verify: whether to verify the file. It is not verified again before measuring its memory, which verification
            would increase.

    Raises:
        Exception: if the file is damaged or of another kind; the type depends on the runtime.
    """
    if path.suffix == ".pte":
        loaded = _load_pte(path, libraries)
    else:
        loaded = _load_onnx(_verified_onnx(path, libraries["onnx"]) if verify else str(path), libraries["runtime"])
    if len(loaded.shape) != 3 or not all(isinstance(length, int) and length > 0 for length in loaded.shape):
        raise ValueError(f"its input has the shape {loaded.shape}; images (N, C, H, W) are needed")
    return loaded


def _load_pte(path: Path, libraries: dict[str, Any]) -> Loaded:
    torch, runtime = libraries["torch"], libraries["runtime"]
    consistent = runtime.Verification.InternalConsistency
    module = runtime._load_for_executorch(str(path), program_verification=consistent)
    method = module.method_meta("forward")
    if method.num_inputs() != 1 or method.num_outputs() != 1:
        raise ValueError(
            f"it takes {method.num_inputs()} tensors and returns {method.num_outputs()}; one of each is needed"
        )
    meta = method.input_tensor_meta(0)
    batch, *shape = meta.sizes() or [0]
    dtypes = {0: "uint8", 6: "float32"}  # ExecuTorch's numbers of the types
    if meta.dtype() not in dtypes:
        raise ValueError("its input is neither uint8 nor float32")

    def run(images: Any) -> Any:
        output = module.run_method("forward", [torch.from_numpy(images)])[0]
        return output.numpy().copy()  # the program's own memory is overwritten by the next run

    def again(image: Any) -> Callable[[], Any]:
        inputs = [torch.from_numpy(image)]
        return lambda: module.run_method("forward", inputs)

    return Loaded(list(shape), dtypes[meta.dtype()], batch > 1, False, run, again)


def _verified_onnx(path: Path, onnx: Any) -> bytes:
    """The content of a valid ONNX file, which must contain the whole network."""
    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(
                "it stores weights in other files (external data), which are not read; save the model as one file"
            )
    onnx.checker.check_model(content)
    return content


def _load_onnx(model: str | bytes, runtime: Any) -> Loaded:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    # Images are run one by one, and sharing a single image among threads costs more than it saves.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise ValueError("it takes or returns several tensors; one of each is needed")
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    dtypes = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    if source.type not in dtypes or target.type != "tensor(float)":
        raise ValueError(f"it takes {source.type} and returns {target.type}; uint8 or float, and float are needed")
    batch, *shape = source.shape or [0]
    return Loaded(
        shape,
        dtypes[source.type],
        not isinstance(batch, int),
        True,
        lambda images: session.run([target.name], {source.name: images})[0],
        lambda image: lambda: session.run(None, {source.name: image}),
    )


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of an ONNX model, including those in the bodies of loops, branches and functions."""
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
    """Compute the logits, float32 (N, K), of images (N, C, H, W).

    Raises:
        ValueError: if the file returns something else.
    """
    most = _MOST if loaded.dynamic else 1
    parts = [images[start : start + most] for start in range(0, len(images), most)]
    with ThreadPoolExecutor(os.cpu_count() if loaded.reentrant else 1) as pool:
        outputs = list(pool.map(loaded.run, parts))
    for part, output in zip(parts, outputs, strict=True):
        if (
            not isinstance(output, numpy.ndarray)
            or output.dtype != numpy.float32
            or output.shape != (len(part), outputs[0].shape[-1])
        ):
            raise ValueError(
                f"for {len(part)} images it returns {getattr(output, 'dtype', type(output).__name__)} of shape "
                f"{list(getattr(output, 'shape', ()))}; float32 logits with one row per image are needed"
            )
    return numpy.ascontiguousarray(numpy.concatenate(outputs))


def serve(path: Path, requests: BinaryIO, replies: BinaryIO, cpu_s: float) -> None:
    """Reply to requests until there are no more.

    A request is a number of images (8 bytes, little-endian), followed by their pixels. A reply is a JSON object on one
    line, followed by the bytes of the logits if it has any. A reply with an ``error`` is the last.

    Args:
        path: the path of the file.
        requests: the stream of requests.
        replies: the stream of replies.
        cpu_s: the processor time that a request may take, in seconds, plus one second per image. It ends a file that
            runs forever even if the process that sent the request was killed.
    """

    def send(reply: dict[str, Any], content: bytes = b"") -> None:
        replies.write(json.dumps(reply).encode() + b"\n" + content)
        replies.flush()

    libraries = import_runtime(path.suffix)
    numpy = libraries["numpy"]
    send({"ready": True})
    limit_memory([path])
    try:
        _limit_time(cpu_s)
        loaded = load(path, libraries)
        trial = _logits(loaded, numpy.zeros([1, *loaded.shape], loaded.dtype), numpy)
        send({"shape": loaded.shape, "dtype": loaded.dtype, "dynamic": loaded.dynamic, "classes": trial.shape[1]})
        size = int(numpy.prod(loaded.shape)) * (1 if loaded.dtype == "uint8" else 4)
        while header := requests.read(8):
            (count,) = struct.unpack("<Q", header)
            images = numpy.frombuffer(requests.read(count * size), loaded.dtype).reshape(count, *loaded.shape).copy()
            _limit_time(cpu_s + count)
            logits = _logits(loaded, images, numpy)
            send({"shape": list(logits.shape)}, logits.tobytes())
    except Exception as error:  # each runtime has its own errors, for the many ways in which a file can be damaged
        send({"error": (str(error).splitlines() or [type(error).__name__])[0][:300]})


def limit_memory(paths: list[Path]) -> None:
    """Limit the address space of this process, on systems that support it (Linux)."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        size = max(path.stat().st_size for path in paths)
        most = used + _MEMORY + _MEMORY_OF_A_BYTE * size + _MEMORY_OF_A_THREAD * (os.cpu_count() or 1)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (OSError, ValueError):
        pass


def _limit_time(seconds: float) -> None:
    """Limit the processor time that this process may use from now on; the system kills it if it uses more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(total) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def probe(path: Path, libraries: dict[str, Any]) -> dict[str, float]:
    """Measure the latency and the memory of a file, running one image at a time.

    Args:
        path: the path of the file.
        libraries: the libraries, see ``import_runtime``.

    Returns:
        The percentiles of the latency, ``p50_ms`` and ``p95_ms``, the number of ``runs``, and ``peak_bytes``, the
        memory in addition to that of the runtime's own code.
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
    """The peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(paths: list[Path], replies: BinaryIO) -> None:
    """Probe each file in a child process of its own, so that none uses memory that another one left allocated."""
    libraries = import_runtime(paths[0].suffix)
    if paths[0].suffix == ".pte":
        libraries["torch"].set_num_threads(1)
        libraries["runtime"]._unsafe_reset_threadpool(1)
    limit_memory(paths)
    measured = []
    for path in paths:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, json.dumps(probe(path, libraries)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            output = pipe.read()
        os.waitpid(child, 0)
        measured.append(json.loads(output))
    replies.write(json.dumps(measured).encode())
    replies.flush()


def main(task: str, *arguments: str) -> None:
    """Perform a task for ``runtimes``. Replies use standard output; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if task == "serve":
            resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_OUTPUT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            serve(Path(arguments[0]), sys.stdin.buffer, replies, float(arguments[1]))
        else:
            measure([Path(argument) for argument in arguments], replies)


if __name__ == "__main__":
    main(*sys.argv[1:])
