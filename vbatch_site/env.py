"""Read environment variables, and fail loudly on a value that makes no sense."""

import json
import os
import secrets
from pathlib import Path
from typing import Any


class BadSetting(SystemExit):
    """Ends the program with one line that names the variable, its value and what it may be."""

    def __init__(self, name: str, value: str, expected: str) -> None:
        super().__init__(f"vbatch: {name}={value!r} is not usable: expected {expected}.")


def env_str(name: str, default: str = "") -> str:
    """Return the variable's text, or the default when it is unset or empty."""
    return os.environ.get(name, "").strip() or default


def env_choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    """Return one of the choices."""
    value = env_str(name, default)
    if value not in choices:
        raise BadSetting(name, value, " or ".join(choices))
    return value


def env_bool(name: str, default: bool = False) -> bool:
    """Return True for 1, true, on, yes and False for 0, false, off, no, in any case."""
    value = env_str(name).lower()
    if not value:
        return default
    if value in ("1", "true", "on", "yes"):
        return True
    if value in ("0", "false", "off", "no"):
        return False
    raise BadSetting(name, value, "on or off")


def env_number(name: str, default: float, minimum: float = 0) -> float:
    """Return a number not below the minimum."""
    value = env_str(name)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        raise BadSetting(name, value, "a number") from None
    if not number >= minimum:
        raise BadSetting(name, value, f"a number of at least {minimum:g}")
    return number


def env_int(name: str, default: int, minimum: int = 0) -> int:
    """Return a whole number not below the minimum."""
    number = env_number(name, default, minimum)
    if number != int(number):
        raise BadSetting(name, env_str(name), "a whole number")
    return int(number)


def env_numbers(name: str, known: tuple[str, ...]) -> dict[str, int]:
    """Return whole numbers by their names, from text such as `a=1,b=2`."""
    found: dict[str, int] = {}
    for item in env_list(name):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known or not (value.isascii() and value.isdigit()):
            raise BadSetting(name, item, f"NAME=NUMBER, separated by commas, with NAME one of {', '.join(known)}")
        found[key] = int(value)
    return found


def env_list(name: str, default: str = "") -> list[str]:
    """Return the comma-separated items, blanks removed."""
    return [item.strip() for item in env_str(name, default).split(",") if item.strip()]


def env_object(name: str) -> dict[str, Any]:
    """Return a JSON object, an empty one when the variable is unset."""
    value = env_str(name, "{}")
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadSetting(name, value, "a JSON object")
    return found


def secret_file(name: str, path: Path) -> str:
    """Return the variable, or the secret kept in the file, which is made on first use and readable by its owner only.

    Raises BadSetting when the folder can't be written.
    """
    if value := env_str(name):
        return value
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Linked into place whole: of two processes that start together one secret wins, and neither reads half of it.
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        if not path.exists():
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_urlsafe(48))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise BadSetting("VBATCH_HOME", str(path.parent), f"a folder this user can write ({error.strerror})") from None
