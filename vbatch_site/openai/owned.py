"""Whose object is it: the one place that decides what a project may see."""

from typing import TypeVar

from django.db.models import Model, QuerySet

from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError

M = TypeVar("M", bound=Model)


def find(rows: QuerySet[M], project: Project, object_id: str, refusal: ApiError) -> M:
    """Return the project's row of this id; raise the refusal, the same for what is another's and what is not there."""
    # Postgres takes no U+0000 in a text, and no id has one.
    found = None if "\0" in object_id else rows.filter(project=project, pk=object_id).first()
    if found is None:
        raise refusal
    return found
