"""Configs: plain nested dictionaries (what Hydra composes, what a run directory stores) <-> frozen spec dataclasses.

`build` is the only place where a name in a file becomes code. It accepts frozen dataclasses of toylab itself and
nothing else, checks every key and type, and says what was accepted: opening a stranger's run executes nothing of
theirs.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from typing import Any

from toylab.errors import UserError, did_you_mean

TARGET = re.compile(r"toylab(\.[a-z][a-z0-9_]*)+\.[A-Z]\w*")


def find_target(name: object, where: str) -> type:
    """The frozen dataclass that `_target_` names; raises UserError unless it is one of toylab's own."""
    if not isinstance(name, str) or not TARGET.fullmatch(name):
        raise UserError(f"{where}._target_={name!r}: only toylab's own spec classes are built (toylab.<file>.<Spec>)")
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{where}._target_={name}: there is no module {error.name}") from None
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module_name):
        known = [n for n, c in vars(module).items() if dataclasses.is_dataclass(c)]
        raise UserError(
            f"{where}._target_={name}: {module_name} has no spec {class_name}{did_you_mean(class_name, known)}"
        )
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{where}._target_={name} is not a frozen spec")
    return cls


def build(node: Any, where: str, cls: type | None = None) -> Any:
    """The spec a config node describes. `cls` is given where the kind is fixed; else `_target_` names it."""
    if not isinstance(node, dict):
        raise UserError(f"{where}={node!r}: expected a group of settings")
    if cls is None:
        if "_target_" not in node:
            raise UserError(f"{where} has no _target_: choose one of the files in conf/{where.split('.')[0]}/")
        cls = find_target(node["_target_"], where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    given = {key: value for key, value in node.items() if key != "_target_"}
    for key in given:
        if key not in fields:
            raise UserError(
                f"{where}.{key}: no such setting; {cls.__name__} has {', '.join(fields)}{did_you_mean(key, fields)}"
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    return cls(**{key: convert(value, hints[key], f"{where}.{key}") for key, value in given.items()})


def convert(value: Any, kind: Any, where: str) -> Any:
    """The value as this annotated type; raises UserError when it is of another kind."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return convert(value, option, where)
            except UserError as error:
                errors.append(str(error))
        raise UserError(errors[0])
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where}={value!r}: accepted are {', '.join(map(str, args))}{did_you_mean(value, args)}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise UserError(f"{where}={list(value)!r}: expected {len(inner)} values")
        return tuple(convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, inner, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {str(k): convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, dict) and isinstance(kind, type):
        # A field annotated with a spec class, or with `object` for anything that names its own _target_.
        return build(value, where, kind if dataclasses.is_dataclass(kind) else None)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    words = {bool: "true or false", str: "text", float: "a number", int: "a whole number", tuple: "a list [...]"}
    name = words.get(origin or kind) or getattr(kind, "__name__", str(kind))
    raise UserError(f"{where}={value!r}: expected {name}, not {type(value).__name__}")


def to_node(spec: Any) -> Any:
    """The inverse of build: plain dictionaries, lists and scalars, with `_target_` for every spec."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        target = f"{type(spec).__module__}.{type(spec).__qualname__}"
        return {"_target_": target} | {f.name: to_node(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    if isinstance(spec, dict):
        return {key: to_node(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [to_node(value) for value in spec]
    return spec


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.001, ...}: every leaf of a nested config by its dotted name."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}
