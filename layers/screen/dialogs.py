"""The dialogs: help, a line of input, the filter, lines of text, and wasted bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, TypeVar

from rich.text import Text
from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, DataTable, Input, Label, Select, Static

from layers.cli.showing import human
from layers.explore import waste
from layers.explore.data import TYPES
from layers.explore.filters import CHANGES, Filter
from layers.explore.marks import LETTERS, MARK_WORDS, WORDS
from layers.explore.tree_index import TreeIndex
from layers.screen import words
from layers.screen.words import Layer

HELP: Final = """\
Tab            next pane               ?          this help
arrows, hjkl   move, open, close       q, Ctrl-C  quit
Space, Enter   open or close           Ctrl-Z     suspend
f b PgDn PgUp  page                    mouse      click, wheel
g G Home End   first, last             Ctrl-Space, C  close all

Ctrl-A  the whole: changes since the bottom layer
Ctrl-L  the layer alone: what it changes
        choose a layer in the pane of layers
/       find a name; n and N: next, previous
Ctrl-F  filter: changes, layer, size, owner, set-id,
        world-writable, name, content type
Ctrl-U  show or hide unchanged        Ctrl-R  show or hide removed
Ctrl-B  owner and mode                Ctrl-O  by size, by name
w       wasted bytes, with causes     v       compare versions
y       copy the path                 s       read-only shell
Ctrl-E, e  extract a file or a directory
"""
_WASTED_MAX: Final = 1000


T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A window in the middle; Escape closes it."""

    DEFAULT_CSS = """
    Dialog { align: center middle; }
    Dialog > Vertical { width: 90%; max-width: 100; height: auto; max-height: 90%; border: round $accent;
        background: $surface; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Close")]

    def action_leave(self) -> None:
        self.dismiss(None)


class _Check(Checkbox):
    """A checkbox that is readable without colours: with an X only if it is on."""

    def __init__(self, label: str, value: bool, *, id: str) -> None:
        super().__init__(label, value, id=id)
        self.BUTTON_INNER = "X" if value else " "

    def watch_value(self) -> None:
        """Draw the new value."""
        self.BUTTON_INNER = "X" if self.value else " "
        super().watch_value()


class Lines(Dialog[None]):
    """Lines of text."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,question_mark,v,enter", "leave", "Close", show=False)]

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title, self._lines = title, lines

    def compose(self) -> ComposeResult:
        with Vertical() as window:
            window.border_title = Text(self._title)
            with VerticalScroll():
                yield Static(Text("\n".join(self._lines)))


def help_lines() -> list[str]:
    """The keys, and the meaning of the letters in the tree."""
    letters = [f"  {LETTERS[change] if LETTERS[change].strip() else 'none':<4} {WORDS[change]}" for change in LETTERS]
    marks = [f"  {letter:<4} {text}" for letter, text in MARK_WORDS.items()]
    return [*HELP.splitlines(), "", "letters before a path:", *letters, *marks]


class Ask(Dialog[str]):
    """A line of input; returns it, or None."""

    def __init__(self, title: str, text: str = "") -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with Vertical() as window:
            window.border_title = Text(self._title)
            yield Input(self._text)

    def on_key(self, event: events.Key) -> None:
        """Take keys that were typed before the line of input had the focus."""
        line = self.query_one(Input)
        if not line.has_focus:
            if event.is_printable and event.character is not None:
                line.insert_text_at_cursor(event.character)
            elif event.key == "enter":
                self.dismiss(line.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class FilterDialog(Dialog[Filter]):
    """The filter; returns a new one, or None."""

    DEFAULT_CSS = """
    FilterDialog Horizontal { height: auto; }
    FilterDialog Checkbox { border: none; padding: 0; width: 1fr; height: 1; }
    FilterDialog Input { border: none; height: 1; width: 1fr; }
    FilterDialog Label { width: 22; }
    FilterDialog Select { width: 1fr; height: 3; }
    FilterDialog Button { margin: 0 1; }
    """

    def __init__(self, now: Filter) -> None:
        super().__init__()
        self._now = now

    def compose(self) -> ComposeResult:
        now = self._now
        texts = {
            "name": ("part of the name", now.name.decode("utf-8", "surrogateescape")),
            "size": ("at least bytes", str(now.min_size or "")),
            "owner": ("owner (uid)", "" if now.owner is None else str(now.owner)),
            "layer": ("layer", "" if now.layer is None else str(now.layer)),
        }
        with Vertical() as window:
            window.border_title = "filter"
            for name, (label, text) in texts.items():
                with Horizontal():
                    yield Label(label)
                    yield Input(text, id=f"filter-{name}", compact=True)
            with Horizontal():
                yield Label("content type")
                yield Select([(kind, kind) for kind in TYPES], id="filter-type", value=now.type or Select.NULL)
            with Horizontal():
                yield _Check("set-id", now.set_id, id="filter-set-id")
                yield _Check("world-writable", now.world_writable, id="filter-world")
            for number, change in enumerate(CHANGES):
                yield _Check(WORDS[change], change in now.changes, id=f"filter-change{number}")
            with Horizontal():
                yield Button("Filter", variant="primary", id="apply")
                yield Button("Show everything", id="clear")

    def on_input_submitted(self) -> None:
        self._apply()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "clear":
            self.dismiss(Filter())
        else:
            self._apply()

    def _apply(self) -> None:
        chosen = self.query_one("#filter-type", Select).value
        try:
            made = Filter(
                changes=frozenset(
                    change
                    for number, change in enumerate(CHANGES)
                    if self.query_one(f"#filter-change{number}", Checkbox).value
                ),
                layer=self._number("layer"),
                min_size=self._number("size") or 0,
                owner=self._number("owner"),
                set_id=self.query_one("#filter-set-id", Checkbox).value,
                world_writable=self.query_one("#filter-world", Checkbox).value,
                name=self.query_one("#filter-name", Input).value.encode("utf-8", "surrogateescape"),
                type=chosen if isinstance(chosen, str) else "",
            )
        except ValueError as error:
            self.notify(str(error), severity="error")
            return
        self.dismiss(made)

    def _number(self, name: str) -> int | None:
        text = self.query_one(f"#filter-{name}", Input).value.strip()
        if not text:
            return None
        if not text.isdecimal():
            raise ValueError(f"{name}: {text} is no number")
        return int(text)


class WasteDialog(Dialog[int]):
    """Wasted bytes by cause and by path; returns the chosen node, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,w", "leave", "Close", show=False)]

    def __init__(self, tree: TreeIndex, layers: Sequence[Layer]) -> None:
        super().__init__()
        self._tree, self._layers = tree, layers

    def compose(self) -> ComposeResult:
        with Vertical() as window:
            window.border_title = "wasted: bytes that are transferred for nothing"
            yield Static("counting ...", id="sums")
            yield DataTable(cursor_type="row", zebra_stripes=True)

    def _sums(self) -> list[str]:
        found = waste.sums(self._tree)
        lines = [
            f"{human(size):>9} in {files} files, {cause}: {waste.CAUSES[cause]}"
            for cause, (size, files) in found.items()
            if files
        ]
        return lines or ["Nothing is wasted."]

    @work(thread=True)
    def _count(self) -> None:
        lines = self._sums()
        self.app.call_from_thread(self.query_one("#sums", Static).update, Text("\n".join(lines)))

    def on_mount(self) -> None:
        self._count()
        table = self.query_one(DataTable)
        table.add_columns("SIZE", "IN", "PATH", "BECAUSE", "MADE BY")
        for one in waste.largest(self._tree, _WASTED_MAX):
            node = self._tree.node_of[one.entry]
            cells = (
                human(one.size).rjust(9),
                str(self._tree.layer_of[one.entry]),
                words.path(self._tree, node),
                words.whose(self._tree, one),
                words.command(self._layers[one.by]),
            )
            table.add_row(*(Text(cell) for cell in cells), key=str(one.entry))
        table.focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value is not None:
            self.dismiss(self._tree.node_of[int(event.row_key.value)])
