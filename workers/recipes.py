"""Recipes of services: read the YAML files, and check requests against their typed parameters. Pure: no Django.

A recipe is `recipes/CATEGORY/NAME.yaml`. Each parameter has a type, and a place in a request's `config`: at its root,
below `resources` or below `environment`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from vbatch_site.openai import wording

_HERE = Path(__file__).resolve().parent
# Beside the rooms in a checkout, inside this one where it is installed.
FOLDER = next(folder for folder in (_HERE / "recipes", _HERE.parent / "recipes") if folder.is_dir())

Value = str | int | float | bool | None
Location = Literal["root", "resources", "environment"]
LOCATIONS: tuple[Location, ...] = ("root", "resources", "environment")

_TYPES = {"string": "a string", "integer": "an integer", "number": "a number", "boolean": "a boolean"}
_NUMERAL = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")


class RecipeError(Exception):
    """A request that a recipe does not allow: a sentence, the field it is about, and OpenAI's word for the fault."""

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class BadRecipe(Exception):
    """A recipe file that can't be used; its text names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One thing that a request may set."""

    name: str
    description: str
    type: str
    location: Location
    default: Value = None
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    pattern: str = ""
    minimum: float | None = None
    maximum: float | None = None
    argument: str = ""  # of vLLM, that carries the value

    @property
    def path(self) -> str:
        """Where it stands in a request."""
        return f"config.{self.name}" if self.location == "root" else f"config.{self.location}.{self.name}"

    def read(self, value: object) -> Value:
        """Return a request's value in the parameter's type; numerals may be strings, as environments have them.

        Raises RecipeError.
        """
        if value is None and self.nullable:
            return None
        found = self._typed(value)
        if isinstance(found, int | float) and not isinstance(found, bool):
            if self.minimum is not None and found < self.minimum:
                self._refuse(f"expected a value >= {self.minimum:g}, but got {found:g}")
            if self.maximum is not None and found > self.maximum:
                self._refuse(f"expected a value <= {self.maximum:g}, but got {found:g}")
        if isinstance(found, str):
            if self.choices and found not in self.choices:
                raise RecipeError(wording.one_of(found[:100], self.choices), self.path, "invalid_value")
            if self.pattern and not re.fullmatch(self.pattern, found):
                self._refuse(f"'{found[:100]}' does not match {self.pattern}")
        return found

    def _refuse(self, why: str) -> None:
        raise RecipeError(f"Invalid '{self.path}': {why}.", self.path, "invalid_value")

    def _typed(self, value: object) -> str | int | float | bool:
        given = value
        if isinstance(value, str) and self.type in ("integer", "number") and _NUMERAL.fullmatch(value):
            value = float(value) if "." in value else int(value)
        if self.type == "integer" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and self.type == "boolean" and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        match self.type, value:
            case "boolean", bool(flag):
                return flag
            case ("integer", int(number)) | ("number", int(number) | float(number)):
                if not isinstance(value, bool) and (isinstance(number, int) or math.isfinite(number)):
                    return number
            case "string", str(text):
                if "\0" not in text:
                    return text
        raise RecipeError(wording.wrong_type(self.path, _TYPES[self.type], given), self.path, "invalid_type")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a request and the defaults come to."""

    root: dict[str, Value]
    resources: dict[str, Value]
    environment: dict[str, Value]
    given: frozenset[str] = frozenset()  # names that the request set itself
    arguments: tuple[str, ...] = ()  # of vLLM

    def as_config(self) -> dict[str, Any]:
        """Return it in the form of a request."""
        return {**self.root, "resources": self.resources, "environment": self.environment}

    def integer(self, name: str, default: int = 0) -> int:
        """Return a number, the default where it is null or the recipe does not have it."""
        value = {**self.root, **self.resources, **self.environment}.get(name)
        return int(value) if isinstance(value, int | float) else default

    def text(self, name: str) -> str:
        """Return a text, an empty one where it is null or the recipe does not have it."""
        value = {**self.root, **self.resources, **self.environment}.get(name)
        return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One file."""

    name: str
    category: str
    description: str
    version: str
    image: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its full name."""
        return f"{self.category}/{self.name}"

    def defaults(self, location: Location) -> dict[str, Value]:
        """Return what holds in one place when a request says nothing."""
        return {name: found.default for name, found in self.parameters.items() if found.location == location}

    def resolve(self, config: object) -> Settings:
        """Return a request's settings over the defaults; raise RecipeError."""
        if config is None:
            config = {}
        if not isinstance(config, dict):
            raise RecipeError(wording.wrong_type("config", "an object", config), "config", "invalid_type")
        values = {location: self.defaults(location) for location in LOCATIONS}
        given: set[str] = set()
        for place in LOCATIONS:
            found = config if place == "root" else config.get(place)
            if found is None:
                continue
            if not isinstance(found, dict):
                raise RecipeError(
                    wording.wrong_type(f"config.{place}", "an object", found), f"config.{place}", "invalid_type"
                )
            for name, value in found.items():
                if place == "root" and name in ("resources", "environment"):
                    continue
                parameter = self.parameters.get(name)
                if parameter is None or parameter.location != place:
                    where = f"config.{name}" if place == "root" else f"config.{place}.{name}"
                    hint = f" It belongs at '{parameter.path}'." if parameter else ""
                    raise RecipeError(
                        f"Unknown parameter: '{where[:200]}' is not one of {self.path}.{hint}",
                        where[:200],
                        "unknown_parameter",
                    )
                values[place][name] = parameter.read(value)
                given.add(name)
        for name, parameter in self.parameters.items():
            if parameter.required and values[parameter.location][name] is None:
                raise RecipeError(wording.missing(parameter.path), parameter.path, "missing_required_parameter")
        arguments: list[str] = []
        for name, parameter in self.parameters.items():
            if parameter.argument and (said := values[parameter.location][name]) is not None:
                arguments += [parameter.argument, str(said)]
        return Settings(values["root"], values["resources"], values["environment"], frozenset(given), tuple(arguments))


def _read(path: Path) -> Recipe:
    try:
        found: Mapping[str, Any] = yaml.safe_load(path.read_text())
        parameters: dict[str, Parameter] = {}
        for name, said in found["parameters"].items():
            parameter = Parameter(name=name, **{**said, "choices": tuple(said.get("choices", ()))})
            if parameter.type not in _TYPES or parameter.location not in LOCATIONS:
                raise ValueError(f"{name} has an unknown type or location")
            # A default is held to the same rules as a request.
            if parameter.default is not None:
                parameter.read(parameter.default)
            parameters[name] = parameter
        recipe = Recipe(
            name=found["name"],
            category=found["category"],
            description=found["description"],
            version=str(found["version"]),
            image=found.get("image") or "",
            parameters=parameters,
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecipeError) as error:
        raise BadRecipe(f"The recipe {path} can't be used: {error!r}.") from error
    if (recipe.category, recipe.name) != (path.parent.name, path.stem):
        raise BadRecipe(f"The recipe {path} says that it is {recipe.path}.")
    return recipe


@cache
def load(folder: Path = FOLDER) -> dict[str, Recipe]:
    """Return all recipes by their full name; raise BadRecipe."""
    found = [_read(path) for path in folder.glob("*/*.yaml")]
    return {recipe.path: recipe for recipe in sorted(found, key=lambda recipe: recipe.path)}


def find(name: str, folder: Path = FOLDER) -> Recipe | None:
    """Return a recipe by its full name, or by its last part."""
    recipes = load(folder)
    return recipes.get(name) or next((recipe for recipe in recipes.values() if recipe.name == name), None)
