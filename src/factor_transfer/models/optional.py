"""What may not be there: a zoo's library, and the servers that its weights lie on."""

import os
import shlex
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from factor_transfer.errors import InputError

PATIENCE = 10.0  # seconds that a server may take to say something

# Whose exceptions are about the network, beside every OSError.
_CLIENTS = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def installed(library: str) -> bool:
    """Whether it is; nothing is imported."""
    return find_spec(library) is not None


def pip_install(extra: str) -> str:
    """The command that installs an extra of this package for the Python that runs."""
    return f"{shlex.quote(sys.executable or 'python')} -m pip install 'factor-transfer[{extra}]'"


def library(name: str) -> Any:
    """Import a zoo's library.

    Args:
        name: ``"timm"``, ``"torchvision"`` or ``"transformers"``: its package and this package's extra.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    if not installed(name):
        raise InputError(f"{name} is not installed; {pip_install(name)}")
    try:
        # timm needs torchvision, transformers takes it where it is: its own error says more than theirs.
        if installed("torchvision"):
            import_module("torchvision")
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        if "torchvision::" not in str(error):
            raise InputError(f"{name} is installed, but cannot be imported: {_brief(error)}") from error
        because = "" if name == "torchvision" else f", which {name} imports,"
        raise InputError(
            f"torchvision{because} cannot be imported beside this torch: its operators were built for another build "
            f"of torch ({_brief(error)}). Install both anew from the same index, in one command: such as "
            f"{shlex.quote(sys.executable or 'python')} -m pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error


def state(name: str) -> str:
    """Whether a zoo's library can be used, in words: ``"installed"``, ``"not installed"``, or why it fails."""
    if not installed(name):
        return "not installed"
    try:
        library(name)
    except InputError as error:
        return f"installed, but {error}"
    return "installed"


@contextmanager
def answering(zoo: str, name: str, args: dict[str, Any], fetches: bool) -> Iterator[None]:
    """While a zoo does what it was asked, turn what it raises into words.

    Args:
        zoo: the library that is asked.
        name: of its network.
        args: that the network was asked to have.
        fetches: whether something may have to come from a server. If that cannot be reached, only what was fetched
            earlier is looked at: the hub's client would try again for half a minute a file.

    Raises:
        InputError: for whatever the zoo raises.
    """
    unreachable = _hub_silence() if fetches and zoo != "torchvision" else None
    try:
        with (
            _tensors_alone(),
            _hurried() if fetches else nullcontext(),
            _cache_only() if unreachable else nullcontext(),
        ):
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a library of others: all that it raises is about what it was asked for
        if fetches and _of_the_network(error):
            raise InputError(
                f"{zoo}:{name} could not be fetched, and was not before: {unreachable or _brief(error)}. Check the "
                "name and the network; or fetch the weights elsewhere and give their file, with weights = FILE"
            ) from error
        given = f" with {', '.join(f'{key} = {value!r}' for key, value in args.items())}" if args else ""
        raise InputError(f"{zoo} cannot build {name!r}{given}: {type(error).__name__}: {_brief(error)}") from error


def _hub_silence() -> str | None:
    """Why the Hugging Face hub cannot be asked; ``None`` if it answers."""
    hub = import_module("huggingface_hub")
    try:
        # Its own client: it knows of proxies, certificates and offline mode.
        hub.get_session().head(hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:
        return f"{hub.constants.ENDPOINT} cannot be reached ({_brief(error)})"
    return None


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Whatever a zoo reads by ``torch.load`` runs no code; torch.hub, which torchvision asks, would let it."""
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
    """The hub's offline mode, which timm has no argument for."""
    constants: Any = import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _hurried() -> Iterator[None]:
    """A limit for urllib, by which torch.hub downloads and which waits for minutes where packets are dropped."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _of_the_network(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _brief(error: BaseException) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" …")
