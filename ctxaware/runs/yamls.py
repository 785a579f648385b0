"""YAML files that a user wrote: plain values, no key twice, no more than a person could mean."""

from pathlib import Path
from typing import Any

from ctxaware.errors import InputError

MAX_NODES = 100_000  # values, an alias counting as all that it stands for
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


def read_yaml(path: Path) -> Any:
    """A YAML file's content: mappings, lists, texts, numbers. A date stays text.

    Raises:
        InputError: there is no such file, it is no YAML, a key comes twice, or it holds what is no plain value.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, in a class of its own that may be changed."""

    Loader.yaml_implicit_resolvers = {  # without dates, which JSON can't hold
        first: [(tag, pattern) for tag, pattern in of if not tag.endswith(":timestamp")]
        for first, of in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        content = path.read_text(encoding="utf-8")
        if (node := yaml.compose(content, Loader=Loader)) is not None:
            _check(node, path, {})
        return yaml.load(content, Loader=Loader)
    except InputError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # too deep, a number of 5,000 digits
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())[:300]}") from error


def _check(node: Any, path: Path, sizes: dict[int, int | None]) -> int:
    """The number of values below a node; the loader would take the last of two keys without a word."""
    import yaml

    if id(node) in sizes:
        if (size := sizes[id(node)]) is None:
            raise InputError(f"{path}: a value near line {node.start_mark.line + 1} holds itself; write it out")
        return size
    sizes[id(node)] = None  # under way
    if node.tag not in _PLAIN:
        raise InputError(f"{path}: {node.tag} near line {node.start_mark.line + 1} is no plain value; write text")
    below: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        keys = [each.value for each, _ in node.value if isinstance(each, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1 and key != "<<"}):
            raise InputError(f"{path}: {twice[0]} comes twice, near line {node.start_mark.line + 1}; leave one out")
        below = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    size = 1 + sum(_check(each, path, sizes) for each in below)
    if size > MAX_NODES:
        raise InputError(f"{path} holds more than {MAX_NODES:,} values, aliases written out; shorten it")
    sizes[id(node)] = size
    return size
