"""Optional dependencies that may be missing: the libraries of zoos, and the servers that provide their weights."""

import os
import shlex
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from factor_transfer.errors import InputError
from factor_transfer.external import installed as installed
from factor_transfer.external import pip_install as pip_install

TIMEOUT_S = 10.0  # for a response of a server

# Packages whose exceptions concern the network connection, as every OSError does.
_CLIENTS = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def library(name: str) -> Any:
    """Import a zoo's library.

    Args:
        name: the library, ``"timm"``, ``"torchvision"`` or ``"transformers"``. This package's extra has the same name.

    Raises:
        InputError: if the library is not installed or cannot be imported.
    """
    if not installed(name):
        raise InputError(f"{name} is not installed; {pip_install(name)}")
    try:
        # timm needs torchvision, and transformers uses it if it is installed. Its own error is clearer than theirs.
        if installed("torchvision"):
            import_module("torchvision")
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        if "torchvision::" in str(error):
            raise InputError(_mismatch(name, error)) from error
        raise InputError(f"{name} is installed, but cannot be imported: {_brief(error)}") from error


def state(name: str) -> str:
    """Whether a zoo's library can be used, in words: ``"installed"``, ``"not installed"``, or why it fails.

    The library is not imported, which takes seconds. Of torchvision, only the operators are loaded: they are what fails
    if it was built for another torch.
    """
    if not installed(name):
        return "not installed"
    try:
        if installed("torchvision"):
            check_operators()
    except (OSError, RuntimeError, AttributeError) as error:
        return f"installed, but {_mismatch(name, error)}"
    return "installed"


def check_operators() -> None:
    """Load torchvision's operators as torchvision does when it is imported.

    Raises:
        OSError: if they were built for another torch.
        AttributeError: if there are none.
    """
    spec = find_spec("torchvision")
    folders = spec.submodule_search_locations if spec is not None else None
    files = [path for folder in folders or () for path in Path(folder).glob("_C*") if path.suffix in (".so", ".pyd")]
    failed: OSError | None = None
    for path in files:
        try:
            torch.ops.load_library(path)
        except OSError as error:
            failed = error
    if not hasattr(torch.ops.torchvision, "nms"):  # a program may have declared those that are missing
        raise failed or AttributeError("operator torchvision::nms does not exist")


def _mismatch(name: str, error: Exception) -> str:
    """The message that torchvision, which a zoo's library imports, does not fit the installed torch."""
    cause = "" if name == "torchvision" else f", which {name} imports,"
    return (
        f"torchvision{cause} cannot be imported with this torch: its operators were built for another build of "
        f"torch ({_brief(error)}). Reinstall both from the same index in one command, for example "
        f"{shlex.quote(sys.executable or 'python')} -m pip install --force-reinstall torch torchvision "
        "--index-url https://download.pytorch.org/whl/cpu"
    )


@contextmanager
def zoo_errors(zoo: str, name: str, args: dict[str, Any], fetches: bool) -> Iterator[None]:
    """A context that turns the exceptions of a zoo's library into ``InputError``.

    Args:
        zoo: the library that is called.
        name: the name of the network.
        args: the arguments of the network.
        fetches: whether something may have to be fetched from a server. If the hub cannot be reached, only its cache
            is used, because its client would retry for half a minute per file.

    Raises:
        InputError: for any exception of the library.
    """
    unreachable = _hub_failure() if fetches and zoo != "torchvision" else None
    try:
        with (
            _weights_only(),
            _download_timeout() if fetches else nullcontext(),
            _cache_only() if unreachable else nullcontext(),
        ):
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # any exception of the library concerns the requested network
        if fetches and _concerns_connection(error):
            raise InputError(
                f"{zoo}:{name} could not be fetched and is not cached: {unreachable or _brief(error)}. Check the name "
                "and the network connection, or fetch the weights on another machine and set weights = FILE"
            ) from error
        with_args = f" with {', '.join(f'{key} = {value!r}' for key, value in args.items())}" if args else ""
        raise InputError(f"{zoo} cannot build {name!r}{with_args}: {type(error).__name__}: {_brief(error)}") from error


def _hub_failure() -> str | None:
    """The reason why the Hugging Face hub cannot be reached; ``None`` if it responds."""
    hub = import_module("huggingface_hub")
    try:
        # The hub's own client respects proxies, certificates and offline mode.
        hub.get_session().head(hub.constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception as error:
        return f"{hub.constants.ENDPOINT} cannot be reached ({_brief(error)})"
    return None


@contextmanager
def _weights_only() -> Iterator[None]:
    """A context in which ``torch.load`` runs no code from files. torch.hub, which torchvision uses, would allow it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def _cache_only() -> Iterator[None]:
    """A context in the hub's offline mode, for which timm has no argument."""
    constants: Any = import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _download_timeout() -> Iterator[None]:
    """A context with a timeout for urllib, which torch.hub uses and which else waits for minutes for lost packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _concerns_connection(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _brief(error: BaseException) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" …")
