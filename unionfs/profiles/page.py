"""Recordings of unions as one HTML page with a time line. It loads nothing from anywhere, and needs no script. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from layers.cli.showing import human
from layers.screen.page_assets import STYLE
from unionfs.printable import printable, printable_line
from unionfs.profiles.causes import Cause, causes, saved
from unionfs.profiles.recording import Recording, Row, Slot

ROWS_MAX: Final = 200
_WIDTH: Final = 1000
_HEIGHT: Final = 160
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
"""Okabe and Ito's palette, whose colours colour-blind readers can distinguish; the last one is for all other kinds."""
_OWN_STYLE: Final = """
svg.time { display: block; width: 100%; height: 12rem; background: var(--paper); border: 1px solid var(--line); }
ol li { margin: .5rem 0; }
"""


def page(recordings: Sequence[Recording], title: str) -> str:
    """The whole file."""
    head = escape(printable_line(title))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{head}</title><style>{STYLE}{_OWN_STYLE}</style></head><body><main>
<h1>{head}</h1>
{"".join(map(_one, recordings))}</main></body></html>
"""


def _one(recording: Recording) -> str:
    found = causes(recording)
    listed = "".join(map(_cause, found)) or "<li>No cause stands out.</li>"
    return f"""<section><h2>{escape(printable(recording.name))}</h2>
<p>{recording.messages} requests in {recording.seconds:.1f} s; programs waited {recording.cost * 1000:.0f} ms for the
daemon.</p>
<h2>What would help</h2><ol>{listed}</ol>
<h2>Requests a second</h2>{_time_line(recording)}
<h2>By program and directory</h2>{_table(recording.by("program", "directory"), ("program", "directory"))}
<h2>By kind and reason</h2>{_table(recording.by("kind", "reason"), ("kind", "reason"))}
</section>
"""


def _cause(cause: Cause) -> str:
    place = f", most by {printable(cause.program) or 'the kernel'} in {printable(cause.directory) or 'unknown places'}"
    remedy = f"{cause.remedy} {saved(cause, human)}" if cause.remedy else ""
    text = f"{printable_line(cause.what)} They took {_ms(cause.seconds)} ms{place}. {remedy}"
    return f"<li>{escape(text)}</li>"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def _table(rows: Sequence[Row], fields: Sequence[str]) -> str:
    heads = "".join(f"<th>{field.upper()}</th>" for field in fields)
    heads += "".join(f'<th class="n">{head}</th>' for head in ("REQUESTS", "WORKED MS", "COPYING", "BLOCKED", "DISK"))
    lines = []
    for row in rows[:ROWS_MAX]:
        names = "".join(f'<td class="p">{escape(printable(getattr(row, field))) or "-"}</td>' for field in fields)
        times = (row.seconds, row.copying, row.blocked, row.disk)
        numbers = "".join(f'<td class="n">{text}</td>' for text in (str(row.requests), *map(_ms, times)))
        lines.append(f"<tr>{names}{numbers}</tr>")
    left = f"<p class='soft'>{len(rows) - ROWS_MAX} more are not listed.</p>" if len(rows) > ROWS_MAX else ""
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{left}'


def _time_line(recording: Recording) -> str:
    """Requests a second by kind, as stacked bars, with the most frequent kinds in colours of their own."""
    sums: dict[str, int] = {}
    for slot in recording.slots:
        for kind, count in slot.messages.items():
            sums[kind] = sums.get(kind, 0) + count
    kinds = sorted(sums, key=lambda kind: (-sums[kind], kind))[: len(_COLOURS) - 1]
    whole = max(recording.seconds, 0.001)
    most = max((sum(_rates(slot, kinds)) for slot in recording.slots), default=0.0) or 1.0
    bars = "".join(_bar(slot, kinds, whole, most) for slot in recording.slots)
    names = [*kinds, *(["others"] if len(sums) > len(kinds) else [])]
    legend = "".join(
        f'<span><span class="dot" style="background:{colour}"></span>{escape(name)}</span>'
        for name, colour in zip(names, (*_COLOURS[: len(kinds)], _COLOURS[-1]), strict=False)
    )
    return f"""<svg class="time" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"
aria-label="requests a second over {whole:.1f} seconds, {most:.0f} at most">{bars}</svg>
<p class="soft">0 to {whole:.1f} s; the highest bar is {most:.0f} requests a second.</p>
<div class="tools soft">{legend}</div>"""


def _rates(slot: Slot, kinds: Sequence[str]) -> list[float]:
    """Requests a second of each of these kinds, and of all others."""
    seconds = max(slot.end - slot.begin, 0.001)
    known = [slot.messages.get(kind, 0) for kind in kinds]
    return [count / seconds for count in (*known, sum(slot.messages.values()) - sum(known))]


def _bar(slot: Slot, kinds: Sequence[str], whole: float, most: float) -> str:
    left, width = _WIDTH * slot.begin / whole, _WIDTH * (slot.end - slot.begin) / whole
    top = float(_HEIGHT)
    parts = []
    for rate, colour in zip(_rates(slot, kinds), (*_COLOURS[: len(kinds)], _COLOURS[-1]), strict=True):
        height = _HEIGHT * rate / most
        if height:
            top -= height
            parts.append(
                f'<rect x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}"/>'
            )
    waits = ", ".join(f"{kind} {value * 1000:.0f} ms" for kind, value in slot.waited.items() if value)
    text = f"{slot.begin:.2f} s to {slot.end:.2f} s: {sum(slot.messages.values())} requests" + (waits and f"; {waits}")
    return f"<g><title>{escape(text)}</title>{''.join(parts)}</g>" if parts else ""
