"""What a dataclass of options is: fields with bounds, that may be left out, checked when made.

An option has a type, a default, bounds and, in the string below it, a meaning, which is also its
help on the command line. What may be left out is annotated with `Unset` and comes in two forms, by
the argument of its class. In `NoiseConfig[None]` it is None where it was not given: so users write
settings. In `NoiseConfig[NoReturn]` it has been decided, and a type checker knows that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from cgm_fast.ops.checks import check_choice, check_number

# What an option may be besides a value: None in what is given, NoReturn in what has been decided.
Unset = TypeVar("Unset", covariant=True)
Made = TypeVar("Made", bound="Options")
Decided = TypeVar("Decided", bound="Tree")


def option(
    default: Any = None,
    *,
    otherwise: Any = None,
    at_least: float | None = None,
    above: float | None = None,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its value where it is not given.
        otherwise: What `take` makes of None, where a model is made without settings of a run.
        at_least: The least number that it takes.
        above: A number that it must be greater than.
    """
    given = {"at_least": at_least, "above": above}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"otherwise": otherwise, "bounds": bounds})


class Option(NamedTuple):
    """A field of a dataclass of options."""

    name: str
    default: Any
    otherwise: Any
    bounds: Mapping[str, float]
    choices: tuple[str, ...]
    """Words that it takes."""
    types: tuple[Any, ...]
    """Other values that it takes, but for None."""
    unset: bool
    """Whether it may be left out, and is then decided elsewhere."""
    optional: bool
    """Whether None is a value of its own."""


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by name; its parts that are such dataclasses are none."""
    hints = get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if isinstance(own := get_origin(hint) or hint, type) and issubclass(own, Options):
            continue
        literals = [part for part in parts if get_origin(part) is Literal]
        types = [part for part in parts if part not in literals and part is not NoneType]
        found[field.name] = Option(
            name=field.name,
            default=field.default,
            otherwise=field.metadata.get("otherwise"),
            bounds=field.metadata.get("bounds", {}),
            choices=tuple(word for literal in literals for word in get_args(literal)),
            types=tuple(part for part in types if part is not Unset),
            unset=Unset in parts,
            optional=NoneType in parts,
        )
    return found


@dataclass(frozen=True)
class Options:
    """Base of the dataclasses of options, which checks what it is given.

    Raises:
        ValueError: an option is none of its choices, or out of its bounds.
        TypeError: an option is no number.
    """

    def __post_init__(self) -> None:
        for name, known in options_of(type(self)).items():
            value = getattr(self, name)
            if value is None and (known.unset or known.optional):
                continue
            if known.choices and (isinstance(value, str) or not known.types):
                check_choice(name, value, known.choices)
            elif known.bounds and int not in known.types:
                check_number(name, value, **known.bounds)
            elif known.bounds and value < known.bounds["at_least"]:
                raise ValueError(f"{name} must be at least {known.bounds['at_least']}, got {value}")


def undecided(options: Options) -> list[str]:
    """Names of options that were left out and have not been decided, those of parts included."""
    known = options_of(type(options))
    names = [name for name in known if known[name].unset and getattr(options, name) is None]
    parts = [part for part in vars(options).values() if isinstance(part, Options)]
    return names + [name for part in parts for name in undecided(part)]


def take(kind: type[Made], given: dict[str, Any], **parts: Options) -> Made:
    """A dataclass from those of its options that are given by name, which are taken out of them.

    Args:
        kind: The dataclass.
        given: Options; what is left out, or None, is what the option says `otherwise`.
        **parts: Its parts that are dataclasses of options themselves.

    Raises:
        TypeError, ValueError: as the dataclass does.
    """
    values = {}
    for name, known in options_of(kind).items():
        value = given.pop(name, known.default)
        values[name] = known.otherwise if value is None and known.unset else value
    return kind(**values, **parts)


def own_parts(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What is given for options of these names that is no word but an object; it is taken out."""
    found = [name for name in names if not isinstance(options.get(name), str | None)]
    return {name: options.pop(name) for name in found}


class Tree(Options):
    """Base of the dataclasses of options that a model takes: none of them is undecided.

    Raises:
        ValueError: an option is left out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if names := undecided(self):
            raise ValueError(f"{type(self).__name__} lacks values of {', '.join(names)}")

    @classmethod
    def of(cls: type[Decided], **options: Any) -> Decided:
        """From options by name, in whatever part they are, and the defaults of the others.

        Raises:
            TypeError: an option is unknown.
            ValueError: as the class does.
        """
        config = cls.taken_from(options)
        if options:
            raise TypeError(f"{cls.__name__} has no option {', '.join(options)}")
        return config

    @classmethod
    def taken_from(cls: type[Decided], options: dict[str, Any]) -> Decided:
        """The same from options among others; the tree's own are taken out of them."""
        raise NotImplementedError
