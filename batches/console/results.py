"""The results of a batch, while it runs and after: any page of 50,000 lines at once, request beside response."""

import json
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Min, Q
from django.http import Http404, HttpRequest, HttpResponse

from batches import line_index
from batches.console.shown import decorate, find, frame
from batches.line_index import ERROR, OUTPUT, Entry, LineIndex
from batches.models import Batch, Result
from batches.planning import unpack
from files import storage
from files.models import File
from vbatch_site.console.pages import page, show
from vbatch_site.console.roles import Right, may
from vbatch_site.console.tables import Query

PAGE_LINES = 50
PREVIEW_CHARACTERS = 120
SHOWN_BYTES = 200_000  # of one request or answer; the whole is one click away
_GROUPS = 50

_KINDS = {"completed": "Completed", "failed": "Failed"}
_NAMES = {OUTPUT: "output", ERROR: "error"}


@dataclass(slots=True)
class Group:
    """Failures with one code."""

    code: str
    count: int
    example: str
    line: int


@dataclass(slots=True)
class Row:
    """One line of the list."""

    entry: Entry
    preview: str = ""

    @property
    def word(self) -> str:
        """The state of the line."""
        return "completed" if self.entry.succeeded else "failed"


class Lines:
    """Finished lines of a batch, wherever they are: rows while it runs, files and an index afterwards."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.gone = ""
        self._index: LineIndex | None = None
        self._paths: dict[int, str] = {}
        self._lost: list[str] = []
        if batch.purged_at is None:
            return
        ids = {OUTPUT: batch.output_file_id, ERROR: batch.error_file_id}
        wanted = {kind: pk for kind, pk in ids.items() if pk}
        files = File.objects.visible_to(batch.project).filter(pk__in=wanted.values()).in_bulk()
        self._paths = {kind: files[pk].path for kind, pk in wanted.items() if pk in files}
        if not wanted:
            return
        if not self._paths:
            self.gone = "The result files of this batch are deleted."
            return
        self._lost = [_NAMES[kind] for kind in wanted if kind not in self._paths]
        if self._lost:
            self.gone = f"The {self._lost[0]} file of this batch is deleted, and its lines with it."
        try:
            self._index = LineIndex(storage.opened(line_index.name_for(batch.pk)))
        except FileNotFoundError:
            self.gone = "The result files of this batch are older than this page; they can be downloaded."

    def find(self, kind: str, code: str, text: str, start: int) -> tuple[int, list[Entry]]:
        """Return how many lines there are of a kind, and a page of them."""
        if self._index is not None:
            return self._from_index(self._index, kind, code, text, start)
        if self.batch.purged_at is not None:
            return 0, []
        rows = _rows(self.batch, kind, code, text)
        total = rows.count() if kind or code or text else self.batch.completed + self.batch.failed
        return total, [_entry(row) for row in rows.order_by("line").defer("body")[start : start + PAGE_LINES]]

    def _from_index(self, index: LineIndex, kind: str, code: str, text: str, start: int) -> tuple[int, list[Entry]]:
        if not (kind or code or text or self._lost):
            return index.count, index.page(start, PAGE_LINES)
        places = index.named(text) if text else None
        wanted = set(self._paths)
        if kind or code:
            wanted &= {OUTPUT if kind == "completed" else ERROR}
        if len(wanted) < len((OUTPUT, ERROR)):
            of_kind = [place for file in wanted for place in index.in_file(file)]
            places = of_kind if places is None else sorted(set(places) & set(of_kind))
        places = places or []
        if code:
            places = [place for place, entry in zip(places, index.at(places), strict=True) if entry.code == code]
        return len(places), index.at(places[start : start + PAGE_LINES])

    def groups(self) -> list[Group]:
        """Return the failures by code, the most frequent first."""
        found: dict[str, Group] = {}
        if self._index is not None:
            for entry in self._index.at(self._index.in_file(ERROR)) if ERROR in self._paths else []:
                group = found.setdefault(entry.code, Group(entry.code, 0, "", entry.line))
                group.count += 1
        elif self.batch.purged_at is None and self.batch.failed:
            failed = _rows(self.batch, "failed", "", "").order_by()
            for code, status, count, line in failed.values_list("error_code", "status_code").annotate(
                n=Count("pk"), first=Min("line")
            ):
                name = code or f"http_{status}"
                found[name] = Group(name, count, "", line)
        ordered = sorted(found.values(), key=lambda group: -group.count)[:_GROUPS]
        for group in ordered:
            group.example = self.message(group.line)
        return ordered

    def reasons(self) -> dict[str, int]:
        """Return why answers ended, and how many of each; known when the batch has ended."""
        return self._index.reasons() if self._index is not None else {}

    def message(self, line: int) -> str:
        """Return what is said about one failed line."""
        entry = self.entry(line)
        answer = self.answer(entry) if entry else {}
        return error_message(answer)

    def entry(self, line: int) -> Entry | None:
        """Return one line by its number in the input file."""
        if self._index is not None:
            # Lines are in the order of the input, so a line is at most as far in as its number says.
            low, high = 0, self._index.count
            while low < high:
                middle = (low + high) // 2
                (found,) = self._index.at([middle])
                if found.line == line:
                    return found if found.file in self._paths else None
                low, high = (middle + 1, high) if found.line < line else (low, middle)
            return None
        row = Result.objects.filter(batch=self.batch, line=line).defer("body").first()
        return _entry(row) if row else None

    def answer(self, entry: Entry) -> Any:
        """Return the answer of one line as it is in the result file; an empty object when it is gone."""
        if self._index is not None:
            path = self._paths.get(entry.file)
            return _parsed(_read(path, entry.offset, entry.length)) if path else {}
        row = Result.objects.filter(batch=self.batch, line=entry.line).first()
        if row is None:
            return {}
        error = {"code": row.error_code, "message": row.error_message} if row.error_code else None
        body = None if error else _parsed(bytes(row.body or b"null"))
        response = None if error else {"status_code": row.status_code, "request_id": row.request_id, "body": body}
        return {"custom_id": row.custom_id, "response": response, "error": error}

    def request(self, entry: Entry) -> Any:
        """Return the request of one line; None when the input file is gone."""
        file = File.objects.visible_to(self.batch.project).filter(pk=self.batch.input_file_id).first()
        if file is None:
            return None
        offset, length = entry.input_offset, entry.input_length
        if self._index is None:
            place = next(
                (
                    place
                    for packed in self.batch.shards.values_list("lines", flat=True)
                    for place in unpack(packed)
                    if place.number == entry.line
                ),
                None,
            )
            if place is None:
                return None
            offset, length = place.offset, place.length
        return _parsed(_read(file.path, offset, length))

    def previews(self, entries: list[Entry]) -> list[Row]:
        """Return lines with the beginnings of their answers."""
        if self._index is None:
            found = Result.objects.filter(batch=self.batch, line__in=[entry.line for entry in entries])
            texts = {
                number: message or answer_text(_parsed(bytes(body or b"")))
                for number, message, body in found.values_list("line", "error_message", "body")
            }
            return [Row(entry, texts.get(entry.line, "")[:PREVIEW_CHARACTERS]) for entry in entries]
        rows = []
        for entry in entries:
            answer = self.answer(entry)
            text = error_message(answer) or answer_text((answer.get("response") or {}).get("body"))
            rows.append(Row(entry, text[:PREVIEW_CHARACTERS]))
        return rows


def _rows(batch: Batch, kind: str, code: str, text: str) -> Any:
    rows = Result.objects.filter(batch=batch)
    succeeded = Q(status_code=200, error_code="")
    if kind == "completed":
        rows = rows.filter(succeeded)
    elif kind == "failed" or code:
        rows = rows.exclude(succeeded)
    if code.startswith("http_") and code[5:].isdecimal():
        rows = rows.filter(error_code="", status_code=int(code[5:]))
    elif code:
        rows = rows.filter(error_code=code)
    return rows.filter(custom_id__contains=text) if text else rows


def _entry(row: Result) -> Entry:
    return Entry(
        line=row.line,
        file=OUTPUT if row.succeeded else ERROR,
        offset=0,
        length=0,
        input_offset=0,
        input_length=0,
        status_code=row.status_code or 0,
        attempts=row.attempts,
        milliseconds=row.milliseconds,
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        code=row.failure_code,
        custom_id=row.custom_id or "",
    )


def _read(path: str, offset: int, length: int) -> bytes:
    try:
        with storage.opened(path) as stream:
            stream.seek(offset)
            return stream.read(length)
    except FileNotFoundError:
        return b""


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {}


def error_message(answer: Any) -> str:
    """Return why a line failed in words, empty for one that did not."""
    if not isinstance(answer, dict):
        return ""
    if error := answer.get("error"):
        return str(error.get("message") or error.get("code") or "")
    response = answer.get("response") or {}
    body = response.get("body")
    if response.get("status_code") in (200, None) or not isinstance(body, dict):
        return ""
    inner = body.get("error")
    return str((inner.get("message") if isinstance(inner, dict) else None) or body.get("message") or body)


def answer_text(body: Any) -> str:
    """Return the text that a person looks for in an answer of any endpoint."""
    if not isinstance(body, dict):
        return ""
    for choice in body.get("choices") or []:
        message = choice.get("message") or {}
        if text := message.get("content") or choice.get("text"):
            return str(text)
        if calls := message.get("tool_calls"):
            return ", ".join(f"{c['function']['name']}({c['function'].get('arguments', '')})" for c in calls)
    for item in body.get("output") or []:
        for part in item.get("content") or [] if isinstance(item, dict) else []:
            if part.get("text"):
                return str(part["text"])
    data = body.get("data") or body.get("results")
    return f"{len(data)} items" if isinstance(data, list) else ""


def turns(request: Any) -> list[tuple[str, str]]:
    """Return who says what in a request: messages, a prompt, or texts."""
    body = request.get("body") if isinstance(request, dict) else None
    if not isinstance(body, dict):
        return []
    source = body.get("messages")
    if not isinstance(source, list):
        text = next((body[key] for key in ("input", "prompt", "query", "text_1") if body.get(key)), None)
        if isinstance(text, list) and text and isinstance(text[0], dict):
            source = text
        else:
            return [] if text is None else [("input", text if isinstance(text, str) else json.dumps(text)[:2000])]
    return [(str(m.get("role", "")), _content(m.get("content"))) for m in source if isinstance(m, dict)]


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(p.get("text") or f"[{p.get('type', 'part')}]") for p in content if isinstance(p, dict))
    return "" if content is None else str(content)


def _cut(value: Any) -> tuple[str, bool]:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError:
        return "It is nested too deep to be shown; download the file.", False
    return text[:SHOWN_BYTES], len(text) > SHOWN_BYTES


def _start(query: Query) -> int:
    return (int(query["page"]) - 1) * PAGE_LINES if query["page"].isdecimal() and 0 < int(query["page"]) < 10**7 else 0


@page()
def results(request: HttpRequest, batch_id: str) -> HttpResponse:
    """List finished lines in the order of the input."""
    batch = decorate(find(batch_id))
    query = Query(request, "status", "code", "q", "page")
    lines = Lines(batch)
    start = _start(query)
    total, entries = lines.find(query["status"], query["code"], query["q"], start)
    sees = may(request.user, Right.PROMPTS)
    pages = max(-(-total // PAGE_LINES), 1)
    number = start // PAGE_LINES + 1
    context = {
        **frame(request, batch, "results"),
        "query": query,
        "rows": lines.previews(entries) if sees else [Row(entry) for entry in entries],
        "total": total,
        "gone": lines.gone,
        "groups": lines.groups() if not query["code"] and query["status"] != "completed" else [],
        "choices": query.choices("status", _KINDS, {"completed": batch.completed, "failed": batch.failed}),
        "pages": pages,
        "number": number,
        "previous": query.at(page=str(number - 1)) if number > 1 else "",
        "next": query.at(page=str(number + 1)) if number < pages else "",
        "without_code": query.at(code=""),
        "sees": sees,
    }
    return show(request, "console/batches/results.html", context)


@page(Right.PROMPTS)
def line(request: HttpRequest, batch_id: str, line: int) -> HttpResponse:
    """Show one line: the request, and beside it what came back."""
    batch = decorate(find(batch_id))
    lines = Lines(batch)
    entry = lines.entry(line)
    if entry is None:
        raise Http404("This line has no result.")
    asked, answer = lines.request(entry), lines.answer(entry)
    response = answer.get("response") or {}
    asked_text, asked_cut = _cut(asked)
    answer_json, answer_cut = _cut(answer)
    context = {
        **frame(request, batch, "results"),
        "entry": entry,
        "custom_id": answer.get("custom_id") or entry.custom_id,
        "asked": asked,
        "asked_text": asked_text,
        "asked_cut": asked_cut,
        "turns": turns(asked),
        "answer_text": answer_text(response.get("body")),
        "error": error_message(answer),
        "answer_json": answer_json,
        "answer_cut": answer_cut,
    }
    return show(request, "console/batches/line.html", context)
