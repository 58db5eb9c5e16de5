"""Settings read from the signatures of functions and classes.

A data set, a model or a transfer term is a function or a class, and its keyword-only arguments are its settings. This
module turns them into a pydantic model, so that each default is written only once, where it is used.
"""

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model, model_validator

from factor_transfer.errors import InputError


class Options(BaseModel):
    """A model of settings that refuses unknown keys, values of another type, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# The arguments of a network that are not settings.
_NOT_SETTINGS = ("name", "num_classes", "in_channels", "pretrained")


class FreeOptions(Options):
    """A model of the settings of an external network, whose names only its library knows."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _settings(self) -> "FreeOptions":
        # In particular the name: a name in the settings would replace that of the recipe and run other code.
        reserved = [key for key in self.model_extra or {} if key in _NOT_SETTINGS]
        if reserved:
            raise ValueError(
                f"{reserved[0]!r} is not a setting of a network; it is determined by other keys of the recipe"
            )
        return self


def settings(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a function or class, by name."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def chosen(section: BaseModel, *functions: Callable[..., Any]) -> dict[str, Any]:
    """The values in ``section`` of the settings of ``functions``, to be passed as their arguments."""
    known = {key for function in functions for key in settings(function)}
    return {key: value for key, value in section.model_dump().items() if key in known}


def options(name: str, *functions: Callable[..., Any], base: type[Options] = Options) -> type[Options]:
    """A pydantic model with a field for each setting of ``functions``.

    Args:
        name: the name of the model.
        functions: functions, classes or partial functions. A setting that two of them share becomes one field.
        base: the class that the model extends. Its fields come first.
    """
    fields: dict[str, Any] = {}
    for function in functions:
        target = function.__init__ if inspect.isclass(function) else getattr(function, "func", function)
        hints = get_type_hints(target, include_extras=True)
        for parameter in settings(function).values():
            if parameter.name not in hints:
                raise InputError(
                    f"the setting {parameter.name!r} of {function.__name__} has no type; annotate it in its signature, "
                    f"such as {parameter.name}: float = 1.0"
                )
            required = parameter.default is parameter.empty
            fields.setdefault(parameter.name, (hints[parameter.name], ... if required else parameter.default))
    return create_model(name, __base__=base, **fields)


def table_type(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation ``Model`` or ``Model | None``; ``None`` for other annotations."""
    for part in get_args(annotation) if isinstance(annotation, UnionType) else [annotation]:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
