"""What the wizard shows of a file before a batch is made of it: the preflight of the API, in words."""

from typing import Any

from batches.preflight import PreflightDict, PreflightModelDict, preflight
from files.models import File
from vbatch_site.console import charts
from vbatch_site.console.pages import error_text
from vbatch_site.openai.errors import ApiError

_SHOWN_ERRORS = 20
_SHOWN_TOO_LONG = 5


def report(file: File, choices: Any) -> dict[str, Any]:
    """Return the counts, the first faults and the models of a file, or why it can't be looked through."""
    body = {
        "input_file_id": file.pk,
        "endpoint": choices.get("endpoint") or None,
        "allow_mixed_models": bool(choices.get("allow_mixed_models")),
        "on_invalid_line": choices.get("on_invalid_line") or None,
    }
    try:
        found = preflight(file.project, body)
    except ApiError as error:
        return {"refusal": error_text(error)}
    errors = found["errors"]
    return {
        "ok": found["ok"],
        "requests": found["requests"],
        "valid": found["requests"] - found["invalid"],
        "invalid": found["invalid"],
        "errors": errors["data"][:_SHOWN_ERRORS],
        "more": max(errors["total"] - _SHOWN_ERRORS, 0),
        "models": [_model(model) for model in found["models"]],
        "expected": _expected(found),
    }


def _model(found: PreflightModelDict) -> dict[str, Any]:
    """Return what the good lines of one model come to, and what to say about them."""
    warnings = []
    if total := found["too_long"]["total"]:
        lines = ", ".join(str(row["line"]) for row in found["too_long"]["data"][:_SHOWN_TOO_LONG])
        context = f" of {found['context']:,} tokens" if found["context"] else ""
        warnings.append(f"{total:,} lines do not fit into the context{context} and will fail: {lines} ...")
    return {**found, "warnings": warnings, "shared": f"{100 * found['shared_prefix']:.0f} %"}


def _expected(found: PreflightDict) -> str:
    seconds = found["expected"]["seconds"]
    return "" if seconds is None else charts.duration(seconds)
