"""From YAML files to one tree of plain values: parsing, `extends`, `--set`, and where each value was written.

The parser takes YAML 1.2's plain values (true/false, numbers with or without a dot in the mantissa, so that 1e-3 is a number
and `off` a word) instead of YAML 1.1's surprises. Refused, with file and line: tags (`!!python/...`), anchors and aliases (a
bomb of aliases needs 200 bytes; `extends` is what shares), duplicate keys, keys that are not words.

Alternatives not taken: OmegaConf and Hydra (interpolation and a second type system), pydantic-settings (environment variables).
Cost: a pure-Python scan, about 5 ms for a run config.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pretrain.errors import ConfigError
from pretrain.files import storage_error

KeyPath = tuple[str, ...]
"""A path in the tree, list positions written as digits: ("samples", "prompts", "0")."""

_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))
MAX_BYTES = 1 << 20
MAX_DEPTH = 32


@dataclass(frozen=True)
class Source:
    """Where a value was written."""

    file: str
    """Path as the user gave it, or the text of a `--set`."""
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}, line {self.line}"


@dataclass
class Document:
    """A tree of plain values (mappings, lists, scalars) and the source of each key path."""

    tree: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, Source] = field(default_factory=dict)

    def source(self, path: KeyPath) -> Source | None:
        """Where a path, or the nearest path above it, was written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]]
        return None


class _Loader(yaml.SafeLoader):
    """SafeLoader whose scalars are YAML 1.2's, and which refuses aliases before they are expanded."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not accepted; use extends", problem_mark=event.start_mark
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf)$|^\.nan$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def parse_yaml(text: str, file: str) -> Document:
    """The document in a YAML text; an empty text is an empty document. Raises ConfigError with file and line."""
    document = Document()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            if not isinstance(node, MappingNode):
                raise ConfigError(f"{file}: a config is a mapping of keys to values, not {_kind(node)}")
            document.tree = _plain(loader, node, (), document, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}{place}: not readable as YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {str(error).splitlines()[0]}") from None
    return document


def parse_value(text: str, file: str) -> Any:
    """One value, typed as YAML: `3`, `true`, `"3"`, `[a, b]`, `{x: 1}`, or a word. Raises ConfigError.

    What is neither quoted nor bracketed is one word as a whole, its colons and spaces too, so that
    `--set 'samples.prompts.0=def '` keeps the space at the end.
    """
    stripped = text.strip()
    if stripped.startswith(("[", "{", '"', "'")):
        return parse_yaml(f"value: {stripped}", file).tree["value"]
    loader = _Loader("")
    tag = loader.resolve(ScalarNode, stripped, (True, False))
    return text if tag.endswith(":str") else loader.construct_object(ScalarNode(tag, stripped))


def _kind(node: Node) -> str:
    return "a list" if isinstance(node, SequenceNode) else "a single value"


def _plain(loader: _Loader, node: Node, path: KeyPath, document: Document, file: str) -> Any:
    """The plain value of a node; records the source of every path under it."""
    document.sources[path] = Source(file, node.start_mark.line + 1)
    if node.tag not in _TAGS:
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not accepted", problem_mark=node.start_mark)
    if isinstance(node, SequenceNode):
        return [_plain(loader, child, (*path, str(i)), document, file) for i, child in enumerate(node.value)]
    if isinstance(node, MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, ScalarNode) or key_node.tag == "tag:yaml.org,2002:null":
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key in found:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice; keep one", problem_mark=key_node.start_mark
                )
            found[key] = _plain(loader, value_node, (*path, key), document, file)
            document.sources[*path, key] = Source(file, key_node.start_mark.line + 1)
        return found
    return loader.construct_object(node)


def shipped_configs() -> Path:
    """Folder of the configs that come with the project: inside the installed package, or the checkout's `configs/`."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str, beside: Path | None = None) -> Path:
    """The file of a config: as given, beside the file that extends it, or among the shipped ones. Raises ConfigError."""
    given = Path(name).expanduser()
    shipped = shipped_configs()
    without_root = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    places = [given if beside is None else beside / given]
    if not given.is_absolute():
        places.append(shipped / without_root)
    for place in (*places, *(p.with_name(p.name + ".yaml") for p in places if p.suffix != ".yaml")):
        if place.is_file():
            return place
    if given.is_dir():
        raise ConfigError(
            f"{name}: is a folder; a config is a YAML file (a run folder is continued by its config.yaml)"
        )
    known = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml"))
    raise ConfigError(f"{name}: there is no such config file; shipped ones are {', '.join(known) or 'missing'}")


def read_document(path: Path, chain: tuple[Path, ...] = ()) -> Document:
    """A config file with what it extends merged under it. `name` is never inherited. Raises ConfigError."""
    real = path.resolve()
    if real in chain:
        circle = " -> ".join(p.name for p in (*chain[chain.index(real) :], real))
        raise ConfigError(f"{path}: extends itself ({circle}); remove one of these links")
    own = parse_yaml(_read_text(path), str(path))
    parents = own.tree.pop("extends", [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"{own.source(('extends',))}: extends takes a file name or a list of them, not {parents!r}")
    merged = Document()
    for name in cast("list[str]", names):
        try:
            found = find_config(name, beside=path.parent)
        except ConfigError as error:
            raise ConfigError(f"{own.source(('extends',))}: extends {error}") from None
        parent = read_document(found, (*chain, real))
        parent.tree.pop("name", None)
        merge(merged, parent)
    merge(merged, own)
    return merged


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path) or ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: a config of {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None


def merge(under: Document, over: Document) -> None:
    """Lays one document over another, in place: mappings are merged, anything else is replaced."""
    _merge(under.tree, over.tree, (), under.sources)
    under.sources.update(over.sources)


def _merge(under: dict[str, Any], over: Mapping[str, Any], path: KeyPath, sources: dict[KeyPath, Source]) -> None:
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value, here, sources)
        else:
            for old in [p for p in sources if p[: len(here)] == here]:
                del sources[old]
            under[key] = {} if isinstance(value, dict) else value
            if isinstance(value, dict):
                _merge(under[key], value, here, sources)


def split_override(text: str) -> tuple[KeyPath, Any]:
    """`a.b.0=VALUE` as a path and a value typed as YAML. Raises ConfigError."""
    name, equals, value = text.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r}: write it as --set section.field=VALUE, for example --set train.steps=200")
    return path, parse_value(value, f"--set {text}")


def apply_override(document: Document, text: str, defaults: Sequence[Any] | None = None) -> None:
    """Sets one value in place. `defaults` is the list that a numbered path changes where no file gives it.

    Raises ConfigError for a path that leads through a single value or past the end of a list.
    """
    path, value = split_override(text)
    place: Any = document.tree
    for depth, key in enumerate(path[:-1]):
        if isinstance(place, list):
            place = place[_list_index(place, key, path[:depth], text)]
        else:
            child = place.get(key)
            if child is None:
                child = list(defaults) if defaults is not None and path[depth + 1].isdigit() else {}
                place[key] = child
            place = child
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {text}: {'.'.join(path[: depth + 1])} is the value {place!r}, it has no fields")
    if isinstance(place, list):
        index = _list_index(place, path[-1], path[:-1], text, append=1)
        place[index : index + 1] = [value]
    else:
        place[path[-1]] = value
    for old in [p for p in document.sources if p[: len(path)] == path]:
        del document.sources[old]
    document.sources[path] = Source(f"--set {text}")


def _list_index(place: list[Any], key: str, path: KeyPath, text: str, append: int = 0) -> int:
    if key.isdigit() and int(key) < len(place) + append:
        return int(key)
    limit = len(place) - 1 + append
    raise ConfigError(f"--set {text}: {'.'.join(path)} is a list; its positions are 0 to {limit}, not {key!r}")
