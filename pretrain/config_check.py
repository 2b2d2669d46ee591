"""What a config tree may hold, in the user's words: unknown keys with a suggestion, wrong values with what is expected.

The tree is checked against the fields' annotations before pydantic builds the settings from it: pydantic's own messages
(validator names, branches of unions, links) never reach a user, and its kindness (the text "0.1" for a number, true for 1)
neither. Every complaint is collected, one line each, so that a config is mended in one go.
"""

import difflib
import math
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pretrain.config_source import Document, KeyPath
from pretrain.errors import ConfigError
from pretrain.settings import Allowed, Settings

Part = TypeVar("Part", bound=Settings)
_OWN_NAME = Allowed(
    "[a-z0-9][a-z0-9_-]{0,63}", "of small letters, digits, dashes and underscores: it names folders and metrics"
)
Complaint = tuple[KeyPath, str]


def validate(part: type[Part], document: Document, name: str) -> Part:
    """The settings that a tree describes. Raises ConfigError with one line for each wrong key or value."""
    complaints = list(_check(part, (), document.tree, (), part))
    if not complaints:
        try:
            return part.model_validate(document.tree)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path = tuple(str(x) for x in detail["loc"])
                complaints.append((path, f"{'.'.join(path)}: {detail['msg']}"))
    lines = [f"{document.source(path) or name}: {text}" for path, text in complaints]
    raise ConfigError("\n  ".join([f"{name} has {len(lines)} mistakes:", *lines]) if len(lines) > 1 else lines[0])


def _check(
    annotation: Any, metadata: Sequence[Any], value: Any, path: KeyPath, root: type[Settings]
) -> Iterator[Complaint]:
    """What is wrong with a value, and with all that lies under it."""
    annotation, metadata = _unwrapped(annotation, metadata)
    members = _members(annotation)
    if members:
        deeper = [m for m in members if _is_container(m) and isinstance(value, dict | list)]
        if deeper:
            yield from _check(deeper[0], metadata, value, path, root)
        elif all(any(True for _ in _check(m, metadata, value, path, root)) for m in members):
            yield path, _wrong(annotation, metadata, value, path)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, dict):
        yield from _check_fields(annotation, value, path, root)
    elif get_origin(annotation) is tuple and isinstance(value, list | tuple):
        yield from _check_items(annotation, value, path, root)
    elif get_origin(annotation) is dict and isinstance(value, dict):
        yield from _check_names(annotation, value, path, root)
    elif not _fits(annotation, metadata, value):
        yield path, _wrong(annotation, metadata, value, path)


def _check_fields(
    part: type[BaseModel], tree: dict[str, Any], path: KeyPath, root: type[Settings]
) -> Iterator[Complaint]:
    for key, value in tree.items():
        info = part.model_fields.get(key)
        if info is None:
            yield (*path, key), _unknown(part, path, key, root)
        else:
            yield from _check(info.annotation, info.metadata, value, (*path, key), root)
    for key, info in part.model_fields.items():
        if key not in tree and info.is_required():
            expected = describe(info.annotation, info.metadata)
            yield path, f"{'.'.join((*path, key))} is missing; give {expected}{_purpose(info)}"


def _check_items(annotation: Any, items: Sequence[Any], path: KeyPath, root: type[Settings]) -> Iterator[Complaint]:
    arguments = get_args(annotation)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(items)
    if len(arguments) != len(items):
        yield path, f"{'.'.join(path)} takes {describe(annotation, ())}, not {len(items)} values"
        return
    for index, (argument, item) in enumerate(zip(arguments, items, strict=True)):
        yield from _check(argument, (), item, (*path, str(index)), root)


def _check_names(annotation: Any, tree: dict[str, Any], path: KeyPath, root: type[Settings]) -> Iterator[Complaint]:
    """A mapping whose keys are the user's own names."""
    of_name, of_value = get_args(annotation)
    allowed = next((bound for bound in _unwrapped(of_name, ())[1] if isinstance(bound, Allowed)), _OWN_NAME)
    for name, value in tree.items():
        if not isinstance(name, str) or not allowed.allows(name):
            yield (*path, str(name)), f"{'.'.join(path)}: {name!r} must be a name {allowed.words}"
        else:
            yield from _check(of_value, (), value, (*path, name), root)


def _unwrapped(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """An annotation without its Annotated shell, and all the bounds that belong to it."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        bounds = [y for x in extra for y in (x.metadata if isinstance(x, FieldInfo) else [x])]
        return _unwrapped(inner, [*metadata, *bounds])
    return annotation, metadata


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else ()


def _is_container(annotation: Any) -> bool:
    annotation, _ = _unwrapped(annotation, ())
    return get_origin(annotation) in (tuple, dict) or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    )


def _fits(annotation: Any, metadata: Sequence[Any], value: Any) -> bool:
    """Whether a single value has a field's type and keeps its bounds."""
    if get_origin(annotation) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(annotation))
    if annotation is float:
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    elif annotation is int:
        right = isinstance(value, int) and not isinstance(value, bool)
    elif annotation in (None, type(None)):
        right = value is None
    else:
        right = isinstance(annotation, type) and isinstance(value, annotation)
    return right and all(_keeps(bound, value) for bound in metadata)


def _keeps(bound: Any, value: Any) -> bool:
    match bound:
        case Gt(gt=limit):
            return value > limit
        case Ge(ge=limit):
            return value >= limit
        case Lt(lt=limit):
            return value < limit
        case Le(le=limit):
            return value <= limit
        case Allowed():
            return bound.allows(value)
    return True


def describe(annotation: Any, metadata: Sequence[Any]) -> str:
    """What a field takes, in words: `a whole number above 0, or null`."""
    annotation, metadata = _unwrapped(annotation, metadata)
    members = _members(annotation)
    if members:
        return ", or ".join(describe(m, metadata if m is not type(None) else ()) for m in members)
    if get_origin(annotation) is Literal:
        choices = [str(c) for c in get_args(annotation)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else f"the word {choices[0]}"
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        if items[-1] is Ellipsis:
            return f"a list, each item {describe(items[0], ())}"
        return f"a list of {len(items)} values ({', '.join(describe(i, ()) for i in items)})"
    if get_origin(annotation) is dict:
        return f"a mapping of names to {describe(get_args(annotation)[1], ())}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the fields {', '.join(annotation.model_fields)}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return " ".join([words.get(annotation, str(annotation)), *filter(None, map(_bound_in_words, metadata))])


def _bound_in_words(bound: Any) -> str:
    match bound:
        case Gt(gt=limit):
            return f"above {limit}"
        case Ge(ge=limit):
            return f"from {limit}"
        case Lt(lt=limit):
            return f"below {limit}"
        case Le(le=limit):
            return f"up to {limit}"
        case Allowed(words=words):
            return words
    return ""


def _wrong(annotation: Any, metadata: Sequence[Any], value: Any, path: KeyPath) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    choices = [str(c) for m in (*_members(annotation), annotation) if get_origin(m) is Literal for c in get_args(m)]
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{'.'.join(path) or 'the config'} must be {describe(annotation, metadata)}, not {shown}{hint}"


def _unknown(part: type[BaseModel], path: KeyPath, key: str, root: type[Settings]) -> str:
    dotted = ".".join((*path, key))
    return f"{dotted} is not a field of the config{suggest_field(root, dotted, part, path)}"


def suggest_field(root: type[Settings], dotted: str, part: type[BaseModel] | None = None, path: KeyPath = ()) -> str:
    """`; did you mean model.d_model?`: the nearest sibling, else the nearest field anywhere, else what there is."""
    key = dotted.rpartition(".")[2]
    siblings = list((part or root).model_fields)
    everywhere = list(field_paths(root))
    near = _closest_first(key, siblings, cutoff=0.6) or [k for k in siblings if key in k.split("_")]
    close = [p for p in everywhere if p.rpartition(".")[2] == key] or [".".join((*path, k)) for k in near[:1]]
    close = close or difflib.get_close_matches(dotted, everywhere, n=1, cutoff=0.6)
    if not close:
        last_words = {p.rpartition(".")[2]: p for p in reversed(everywhere)}
        close = [last_words[k] for k in difflib.get_close_matches(key, last_words, n=1, cutoff=0.7)]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; {'.'.join(path) or 'the config'} has {', '.join(siblings)}"


def _closest_first(word: str, known: Sequence[str], cutoff: float) -> list[str]:
    """Close matches; of equally close ones, those that start alike come first: typing goes wrong late in a word."""

    def closeness(other: str) -> tuple[float, bool]:
        return difflib.SequenceMatcher(None, word, other).ratio(), word[:1] == other[:1]

    return sorted(difflib.get_close_matches(word, known, n=5, cutoff=cutoff), key=closeness, reverse=True)


def field_paths(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted path of every field, those of sections and of what lies in them."""
    for key, info in part.model_fields.items():
        yield prefix + key
        nested = section_of(info)
        if nested is not None:
            yield from field_paths(nested, f"{prefix}{key}.")


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The settings class of a field that is a section (also of one that may be null); None for a leaf."""
    annotation, _ = _unwrapped(info.annotation, ())
    for member in _members(annotation) or (annotation,):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _purpose(info: FieldInfo) -> str:
    """The first sentence of a field's documentation, in brackets."""
    text = " ".join((info.description or "").split()).replace("`", "")
    first = text.split(". ")[0].split(": ")[0].rstrip(".")
    return f" ({first[0].lower()}{first[1:]})" if first else ""
