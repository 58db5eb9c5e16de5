"""Ranges of arguments, read from annotations such as ``Annotated[float, Gt(0)]`` and checked at each call."""

import functools
import inspect
from collections.abc import Callable
from numbers import Integral
from types import SimpleNamespace
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import torch
from annotated_types import BaseMetadata, GroupedMetadata
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from factor_transfer.errors import InputError, shown

P = ParamSpec("P")
R = TypeVar("R")

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_EXPECTED = {  # by pydantic's type of an error
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be an integer",
    "list_type": "must be a list",
    "sequence_str": "must be a sequence of values, not a string",
}


def within_ranges(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which checks those of its arguments whose annotations state a range.

    Such an argument must also have the annotated type, where an integer is accepted as a float, and its numbers must be
    finite. Tensors are not checked, because their values may be on another device, and nothing is checked inside a
    graph that is compiled or exported. The signature stays the same.

    Example:
        >>> from typing import Annotated
        >>> from annotated_types import Gt
        >>> from factor_transfer.methods.ranges import within_ranges
        >>> @within_ranges
        ... def soften(temperature: Annotated[float, Gt(0)]) -> float:
        ...     return 1 / temperature
        >>> soften(0)
        Traceback (most recent call last):
            ...
        factor_transfer.errors.InputError: soften: temperature must be above 0, got 0

    Args:
        function: a function, or a method, whose messages have the name of its class.

    Raises:
        InputError: by the returned function, if an argument is not in its range.
    """
    # Annotations are evaluated at the first call, because they may name classes that are defined later.
    ranges: list[tuple[int, str, TypeAdapter[Any]]] | None = None
    is_method = next(iter(inspect.signature(function).parameters), "") in ("self", "cls")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal ranges
        if not torch.compiler.is_compiling():
            if ranges is None:
                ranges = list(_ranges(function))
            for position, name, kind in ranges:
                value = args[position] if position < len(args) else kwargs.get(name, _ABSENT)
                if value is not _ABSENT and not isinstance(value, Tensor):
                    _check(_name(args[0]) if is_method else function.__name__, name, value, kind)
        return function(*args, **kwargs)

    return checked


def check_methods(owner: type, *names: str) -> None:
    """Let methods of a class check their arguments, see ``within_ranges``.

    Args:
        owner: the class, which is changed in place.
        names: the names of methods and class methods. Those that the class does not define itself are left out.
    """
    for name in names:
        method = vars(owner).get(name)
        if isinstance(method, classmethod):
            setattr(owner, name, classmethod(within_ranges(method.__func__)))
        elif inspect.isfunction(method):
            setattr(owner, name, within_ranges(method))


_ABSENT = object()  # stands for an argument that is left out


def _name(owner: object) -> str:
    return owner.__name__ if isinstance(owner, type) else type(owner).__name__


def _ranges(function: Callable[..., Any]) -> list[tuple[int, str, TypeAdapter[Any]]]:
    """The position, the name and the range of each argument that has one; keyword-only arguments have no position."""
    found = []
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        try:
            # One at a time, because an annotation that exists for type checkers alone must not hide the others.
            one = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
            annotation = get_type_hints(one, globalns=scope, include_extras=True)[parameter.name]
            if _has_range(annotation):
                kind: TypeAdapter[Any] = TypeAdapter(annotation, config=_STRICT)
                last = 2**31 if parameter.kind is parameter.KEYWORD_ONLY else position
                found.append((last, parameter.name, kind))
        except Exception:  # an annotation of one's own that pydantic cannot read states no range
            continue
    return found


def _has_range(annotation: Any) -> bool:
    """Whether an annotation, or a part of it such as the elements of a list, states a range."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        stated = any(isinstance(part, BaseMetadata | GroupedMetadata | FieldInfo) for part in parts[1:])
        return stated or _has_range(parts[0])
    return any(_has_range(part) for part in parts)


def _check(owner: str, name: str, value: Any, kind: TypeAdapter[Any]) -> None:
    try:
        # NumPy's integers are no subclasses of int, unlike its floats, which pydantic accepts.
        kind.validate_python(int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value)
    except ValidationError as error:
        fault = error.errors()[0]
        index = "".join(f"[{step}]" for step in fault["loc"] if isinstance(step, int))
        expected = _EXPECTED.get(fault["type"], f"is not valid ({fault['msg']})").format(**fault.get("ctx", {}))
        raise InputError(f"{owner}: {name}{index} {expected}, got {shown(fault['input'])}") from None
