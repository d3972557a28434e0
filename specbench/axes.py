"""Axes of a grid: a mapping in which options hold several values becomes one mapping for each point.

A list is an axis where the option's own type is no list; an option that is a list by nature takes
``{grid: [...]}``; ``zip: {a: [1, 2], b: [x, y]}`` walks its axes together instead of crossing them. Every
point remembers where in the file each of its values stands, so that a fault in one is reported there.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from specbench.document import UNKNOWN_KEY, Faults, Key

MAX_POINTS = 10_000

M = TypeVar("M", bound=BaseModel)
Models = Sequence[type[BaseModel]]


@dataclass(frozen=True)
class Point:
    """One value without axes, and the key in the file of each part of it that an axis has moved."""

    value: Any
    origins: Mapping[Key, Key]

    def locate(self, place: Key) -> Key:
        """Where in the file the part at ``place`` of this value stands."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.origins:
                return (*self.origins[place[:length]], *place[length:])
        return place


def points(mapping: Mapping[str, Any], models: Models, key: Key, faults: Faults) -> list[Point]:
    """Every point of a mapping's grid, the last axis changing fastest.

    Args:
        mapping: The raw mapping, axes included.
        models: The models whose fields say which options are lists by nature.
        key: Where the mapping stands in the file.
        faults: Takes an empty axis, a zip of unequal lengths and a grid that is too large.
    """
    fields = _fields(models)
    axes: list[list[Point]] = []
    for name, value in mapping.items():
        if name == "zip" and name not in fields:
            axes.extend(_zips(value, (*key, name), set(mapping), faults))
        else:
            choices = _choices(value, fields.get(name), (*key, name), faults)
            axes.append([_named(name, choice) for choice in choices])
    axes = [axis for axis in axes if axis]  # one without values is a fault that has been noted
    count = math.prod(map(len, axes))
    if count > MAX_POINTS:
        faults.add(key, f"the grid has {count} points; {MAX_POINTS} is the limit")
        return []
    return [_merged(parts, key) for parts in product(*axes)]


def validate(point: Point, model: type[M], faults: Faults) -> M | None:
    """The point as a model, or None after its faults were noted.

    The way through JSON lets strict validation take a YAML list for a tuple; it converts nothing else.
    """
    try:
        return model.model_validate_json(json.dumps(point.value), strict=True)
    except ValidationError as error:
        for detail in error.errors():
            if not _follows_from_another(detail):
                _note(detail, point, model, faults)
        return None


def _follows_from_another(detail: ErrorDetails) -> bool:
    """Whether it only says that a list is too short without the entries whose own faults are reported."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def located(value: object, key: Key) -> Point:
    """A value that stands in the file just as it is."""
    return Point(value, {(): key})


def settings(mapping: Mapping[str, Any], model: type[M], key: Key, faults: Faults) -> tuple[M, ...]:
    """Every point of the mapping as a model; two points that come to the same are a fault."""
    valid: list[M] = []
    for point in points(mapping, [model], key, faults):
        setting = validate(point, model, faults)
        if setting is not None and setting in valid:
            faults.add(key, "the axes give the same settings twice")
        elif setting is not None:
            valid.append(setting)
    return tuple(valid)


def _named(name: str, point: Point) -> Point:
    return Point({name: point.value}, {(name, *place): origin for place, origin in point.origins.items()})


def _merged(parts: Sequence[Point], key: Key) -> Point:
    value: dict[str, Any] = {}
    origins: dict[Key, Key] = {(): key}
    for part in parts:
        value.update(part.value)
        origins.update(part.origins)
    return Point(value, origins)


def _choices(value: object, annotations: list[Any] | None, key: Key, faults: Faults) -> list[Point]:
    """The values of one option: one, or several where it is an axis."""
    if isinstance(value, dict) and list(value) == ["grid"]:
        return _axis(value["grid"], annotations or [], (*key, "grid"), faults)
    if isinstance(value, list) and annotations is not None and not _takes_list(annotations):
        return _axis(value, annotations, key, faults)
    return _element(value, annotations or [], key, faults)


def _axis(values: object, annotations: list[Any], key: Key, faults: Faults) -> list[Point]:
    if not isinstance(values, list) or not values:
        faults.add(key, "an axis needs a list of at least one value", got=values)
        return []
    choices: list[Point] = []
    seen: set[str] = set()
    for index, value in enumerate(values):
        place = (*key, index)
        if json.dumps(value) in seen:
            faults.add(place, "the axis has this value twice", got=value)
            continue
        seen.add(json.dumps(value))
        choices.extend(_element(value, annotations, place, faults))
    return choices


def _element(value: object, annotations: list[Any], key: Key, faults: Faults) -> list[Point]:
    """A value that is no axis itself; a mapping of options may still hold some."""
    models = _models(annotations)
    if isinstance(value, dict) and models:
        return points(value, models, key, faults)
    return [located(value, key)]


def _zips(value: object, key: Key, taken: set[str], faults: Faults) -> Iterator[list[Point]]:
    """One axis for each zip; its points carry all the options that walk together."""
    groups = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
    for index, group in groups:
        place = key if index is None else (*key, index)
        if not isinstance(group, dict) or not group:
            faults.add(place, "zip takes a mapping of options to lists of equal length", got=group)
            continue
        for name in taken & set(group):
            faults.add((*place, name), "the option is given twice: outside of zip, or in another zip")
        taken |= set(group)
        yield _walked_together(group, place, faults)


def _walked_together(group: Mapping[str, Any], key: Key, faults: Faults) -> list[Point]:
    columns = []
    for name, values in group.items():
        place = (*key, name)
        if isinstance(values, dict) and list(values) == ["grid"]:
            values, place = values["grid"], (*place, "grid")  # the list itself
        if not isinstance(values, list) or not values:
            faults.add(place, "zip takes lists of at least one value", got=values)
            return []
        columns.append([_named(name, located(value, (*place, index))) for index, value in enumerate(values)])
    lengths = {name: len(column) for name, column in zip(group, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        faults.add(key, "zip pairs lists of equal length", got=lengths)
    # The pairs that there are go on even so: what is wrong with their values is reported as well.
    return [_merged(parts, key) for parts in zip(*columns, strict=False)]


def _fields(models: Models) -> dict[str, list[Any]]:
    """Every option of the models, with its types: a union of mappings has the options of all of them."""
    fields: dict[str, list[Any]] = {}
    for model in models:
        for name, info in model.model_fields.items():
            fields.setdefault(name, []).append(info.annotation)
    return fields


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what is annotated to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _parts(member)
    elif annotation is not NoneType:
        yield annotation


def _takes_list(annotations: Sequence[Any]) -> bool:
    return any(_is_list(part) for annotation in annotations for part in _parts(annotation))


def _is_list(part: Any) -> bool:
    kind = get_origin(part) or part
    if kind in (Any, object):
        return True
    return isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, str | bytes | Mapping)


def _models(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    parts = (part for annotation in annotations for part in _parts(annotation))
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def _note(detail: ErrorDetails, point: Point, model: type[BaseModel], faults: Faults) -> None:
    """One error of pydantic as a fault in our words."""
    place = _place(detail, point.value)
    key = point.locate(place)
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            faults.add(key, UNKNOWN_KEY, got=detail["input"], known=_known(place, model))
        case "missing":
            faults.add(key, "required, but missing")
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            faults.add(key, f"should be {context['expected']}", got=detail["input"], known=known)
        case "unknown_name":
            faults.add(key, detail["msg"], got=detail["input"], known=context["known"])
        case "too_short":
            faults.add(key, "should have at least one entry", got=detail["input"])
        case "value_error":
            faults.add(key, str(context["error"]), **_own_value(detail["input"]))
        case _:
            faults.add(key, _in_our_words(detail["msg"]), got=detail["input"])


def _own_value(value: object) -> dict[str, Any]:
    """What to show beside a fault: nothing for one between several options, which has no value of its own."""
    return {} if isinstance(value, dict) else {"got": value}


def _in_our_words(message: str) -> str:
    for theirs, ours in (("Input should", "should"), ("a valid array", "a list"), ("an object", "a mapping")):
        message = message.replace(theirs, ours)
    return message


def _place(detail: ErrorDetails, value: Any) -> Key:
    """The location of an error without the tags that pydantic adds for members of a union, which are no keys."""
    place: Key = ()
    for index, part in enumerate(detail["loc"]):
        names_child = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        is_absent_key = detail["type"] == "missing" and index == len(detail["loc"]) - 1
        if names_child:
            value = value[part]
        if names_child or is_absent_key:
            place = (*place, part)
    return place


def _known(place: Key, model: type[BaseModel]) -> list[str]:
    """The options that stand beside an unknown one."""
    models: Models = [model]
    annotations: list[Any] = []
    for part in place[:-1]:
        if isinstance(part, int):
            annotations = [item for a in annotations for kind in _parts(a) for item in get_args(kind)]
        else:
            annotations = _fields(models).get(part, [])
        models = _models(annotations)
    return list(_fields(models))
