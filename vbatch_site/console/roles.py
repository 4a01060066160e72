"""Who may do what in the console and the admin: four rights, three roles, one function that decides."""

from enum import StrEnum
from typing import Any


class Right(StrEnum):
    """A permission of the model Project; the roles are Django groups that hold some of them."""

    VIEW = "view_console"
    PROMPTS = "view_prompts"
    OPERATE = "operate"
    ADMINISTER = "administer"


# What each right lets a person do, as the group page of the admin shows it.
RIGHTS: dict[Right, str] = {
    Right.VIEW: "Can open the console",
    Right.PROMPTS: "Can see requests and answers",
    Right.OPERATE: "Can upload, create, steer and download",
    Right.ADMINISTER: "Can manage keys, webhooks, models and services",
}

ROLES: dict[str, tuple[Right, ...]] = {
    "viewer": (Right.VIEW,),
    "operator": (Right.VIEW, Right.PROMPTS, Right.OPERATE),
    "administrator": tuple(Right),
}

APP = "vbatch_site"


def may(user: Any, right: Right) -> bool:
    """Return whether an active member of the staff has a right; superusers have all."""
    return bool(user.is_active and user.is_staff and user.has_perm(f"{APP}.{right.value}"))


def rights(user: Any) -> dict[str, bool]:
    """Return all rights by name, as templates ask for them."""
    return {right.name.lower(): may(user, right) for right in Right}
