"""Settings as functions declare them: what may be said, of which type, with which default.

A data set, a model or a transfer term is a function or a class. Its keyword-only arguments are its settings: this turns
them into a pydantic model, so that a default stands once, where it is used.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model, model_validator


class Options(BaseModel):
    """Settings: unknown keys are refused, types are not guessed, numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# What a network is built with, besides its settings.
_NOT_SETTINGS = ("name", "num_classes", "in_channels", "pretrained")


class FreeOptions(Options):
    """Settings of a network from elsewhere, whose names only the library knows that they are for."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _settings(self) -> "FreeOptions":
        # Its name above all: one in here would stand in for the one that the recipe says, and run other code.
        taken = [key for key in self.model_extra or {} if key in _NOT_SETTINGS]
        if taken:
            raise ValueError(f"{taken[0]!r} is no setting of a network; it is known from the rest of the recipe")
        return self


def settings(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a function or class, by name."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def chosen(section: BaseModel, *functions: Callable[..., Any]) -> dict[str, Any]:
    """What ``section`` says of the settings of ``functions``, as their arguments."""
    known = {key for function in functions for key in settings(function)}
    return {key: value for key, value in section.model_dump().items() if key in known}


def options(name: str, *functions: Callable[..., Any], base: type[Options] = Options) -> type[Options]:
    """A model with a field for each setting of ``functions``.

    Args:
        name: of the model.
        functions: or classes, or partials of functions. A setting that two of them share is one field.
        base: what the model extends; its fields come first.
    """
    fields: dict[str, Any] = {}
    for function in functions:
        target = function.__init__ if inspect.isclass(function) else getattr(function, "func", function)
        hints = get_type_hints(target, include_extras=True)
        for parameter in settings(function).values():
            required = parameter.default is parameter.empty
            fields.setdefault(parameter.name, (hints[parameter.name], ... if required else parameter.default))
    return create_model(name, __base__=base, **fields)
