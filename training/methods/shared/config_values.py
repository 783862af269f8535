"""What several configs hold; configs to JSON values and back, and checks that they make."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of ViT blocks."""

    dim: int
    """Width."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads."""


def from_dict(cls: type, values: Any, path: str = "") -> Any:
    """A nested config dataclass of its JSON values. The missing takes its default; nothing unknown is taken.

    Args:
        path: where these values lie in the whole, for messages, as "pixel.".

    Raises:
        ValueError: unknown names, wrong types, or values that the dataclass refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path.rstrip('.') or 'config'} is {values!r}: allowed is a mapping of its fields")
    types_ = get_type_hints(cls)
    unknown = [f"{path}{name}" for name in values if name not in types_]
    if unknown:
        raise ValueError(f"unknown in the model's config: {', '.join(unknown)}; allowed are {', '.join(types_)}")
    return cls(**{name: _value(types_[name], value, f"{path}{name}") for name, value in values.items()})


def _value(kind: Any, value: Any, path: str) -> Any:
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return from_dict(kind, value, f"{path}.")
    if kind is float and type(value) is int:  # JSON writers may drop the point of 1.0
        return float(value)
    if isinstance(value, list) and not isinstance(kind, type):  # JSON has no tuples
        return tuple(value)
    if isinstance(kind, type) and type(value) is not kind:
        raise ValueError(f"{path} is {value!r}: allowed is a value of type {kind.__name__}")
    return value


def check_literals(section: str, config: Any) -> None:
    """Refuses a value that is none of those its Literal names."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if get_origin(hints[f.name]) is Literal and value not in get_args(hints[f.name]):
            raise ValueError(f"{section}.{f.name} is {value!r}: allowed are {', '.join(get_args(hints[f.name]))}")


_LARGEST_DIM, _LARGEST_DEPTH = 65_536, 1_000  # beyond any model; what asks for more is a mistake, or damaged


def check_sizes(section: str, *, width: int, depth: int, heads: int) -> None:
    """Refuses the sizes of a stack of blocks that cannot be built."""
    if not 1 <= depth <= _LARGEST_DEPTH:
        raise ValueError(f"{section}.depth is {depth}: allowed are 1 to {_LARGEST_DEPTH}")
    if not 4 <= width <= _LARGEST_DIM or width % 4:
        raise ValueError(
            f"{section}.dim is {width}: allowed are multiples of 4 (2-D sin-cos positions) up to {_LARGEST_DIM}"
        )
    if heads < 1 or width % heads:
        raise ValueError(f"{section}.heads is {heads}: allowed are divisors of {section}.dim, which is {width}")
