"""Find rows by words of a text and their beginnings, through an index: a text anywhere means a look at every row.

Postgres' own text search, with no dictionary, and with the end of a word at everything that is no letter or digit.
"""

from typing import Any, TypeVar

from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchQuery, SearchVectorField
from django.db.models import F, Func, Model, QuerySet, TextField, Value
from django.db.models.functions import Cast

M = TypeVar("M", bound=Model)

# Its parser would take host names, paths and numbers with a sign for one word each. The percent sign and the backslash
# end words by themselves, and would be written in an index in another way than in a query.
_ENDS = "{}[]()<>\"',;:.!?/|=+-_*&^$#@~`"
_TO_SPACES = str.maketrans(dict.fromkeys(_ENDS + "%\\\0", " "))
_MOST = 8  # words of a search


def _vector(field: str) -> Func:
    text = Func(Cast(F(field), TextField()), Value(_ENDS), Value(" " * len(_ENDS)), function="translate")
    return Func(Value("simple"), text, function="to_tsvector", output_field=SearchVectorField())


def index(field: str, name: str) -> GinIndex:
    """Return the index that a search of a text or JSON field needs."""
    return GinIndex(_vector(field), name=name)


def search(rows: "QuerySet[M]", field: str, text: str) -> "QuerySet[M]":
    """Return the rows that have all words of a text in a field, each whole or as the beginning of one."""
    found = text.translate(_TO_SPACES).split()[:_MOST]
    if not found:
        return rows.none()
    query = SearchQuery(" & ".join(f"'{word}':*" for word in found), config="simple", search_type="raw")
    with_words: Any = rows.alias(words=_vector(field))
    having_them: QuerySet[M] = with_words.filter(words=query)
    return having_them
