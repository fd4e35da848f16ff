"""Classes that settings name: where they are, what they take, and why they cannot be had."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from lora_ext.protocols import UserError

_INSTALLED_AS = {"prodigyplus": "prodigy-plus-schedule-free"}


def class_at(path: str, setting: str, base: type) -> type:
    """The class that `package.module.Class` names; UserError where there is none, or none that is a `base`."""
    module_path, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_path), name)
    except AttributeError as error:
        raise UserError(f"{setting} = {path!r}: {module_path} has no {name}; correct the name") from error
    except Exception as error:  # whatever a package does when it is imported
        package = module_path.partition(".")[0]
        raise UserError(
            f"{setting} = {path!r}: {package} cannot be imported here ({type(error).__name__}: {error}); "
            f"install {_INSTALLED_AS.get(package, package)} into this program's environment, or choose another"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{setting} = {path!r}: that is no {base.__name__}; name a class that is one")
    return found


def check_arguments(kind: type, arguments: Mapping[str, Any], setting: str, given: frozenset[str]) -> None:
    """UserError where the class does not take one of the arguments; `given` are those that are not for settings."""
    parameters = inspect.signature(kind).parameters.values()
    taken = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    allowed = [name for name in taken if name not in given]
    swallows = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if swallows and not kind.__module__.startswith("pytorch_optimizer"):  # there unknown names are dropped in silence
        return
    unknown = [name for name in arguments if name not in allowed]
    if unknown:
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise UserError(f"{setting}: {kind.__name__} has no {', '.join(unknown)}; {takes}")


def make(kind: type, setting: str, /, *positional: Any, **arguments: Any) -> Any:
    """An instance of the class; UserError with its own words where it does not accept the values."""
    try:
        return kind(*positional, **arguments)
    except Exception as error:
        values = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name != "lr")
        raise UserError(
            f"{setting}: {kind.__name__} does not accept {values or 'its own defaults'} "
            f"({type(error).__name__}: {error}); correct the arguments"
        ) from error
