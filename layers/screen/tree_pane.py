"""The pane with the tree. Only the visible rows are drawn."""

from __future__ import annotations

from typing import ClassVar, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from layers.cli.showing import attributes, human
from layers.explore.marks import LETTERS, marks_of
from layers.explore.model import Explorer, Row
from layers.explore.tree_index import ADDED, CHANGED, METADATA, REMOVED_HERE
from unionfs.printable import printable

_CLASSES: Final = {ADDED: "added", CHANGED: "changed", METADATA: "metadata", REMOVED_HERE: "removed"}
_INDENT: Final = 2


def key(keys: str, action: str, description: str = "", key_display: str | None = None) -> Binding:
    """A key of the program; without a description the footer does not list it. It has priority: the app handles every
    key before it reads the next, so that text typed after / goes to the dialog."""
    return Binding(keys, action, description, show=bool(description), key_display=key_display, priority=True)


class TreePane(ScrollView, can_focus=True):
    """Shows an `Explorer`. Sends `Moved` when the cursor is on another row."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"tree--{name}" for name in (*_CLASSES.values(), "cursor", "dim")}
    DEFAULT_CSS = """
    TreePane { width: 1fr; height: 1fr; border: round $surface-lighten-2; }
    TreePane:focus { border: round $accent; }
    TreePane > .tree--added { color: $text-success; }
    TreePane > .tree--changed { color: $text-warning; }
    TreePane > .tree--metadata { color: $text-secondary; }
    TreePane > .tree--removed { color: $text-error; text-style: strike; }
    TreePane > .tree--dim { color: $text-muted; }
    TreePane > .tree--cursor { text-style: reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("down,j", "move(1)"),
        key("up,k", "move(-1)"),
        key("pagedown,f", "page(1)"),
        key("pageup,b", "page(-1)"),
        key("home,g", "go(0)"),
        key("end,G", "go(-1)"),
        key("space,enter", "turn", "Open"),
        key("right,l", "open"),
        key("left,h", "close"),
        key("ctrl+@,C", "close_all"),
    ]

    class Moved(Message):
        """The cursor is on another row, or its row has changed."""

        def __init__(self, pane: TreePane) -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, explorer: Explorer, title: Text, number: int) -> None:
        super().__init__(id=f"tree{number}")
        self.explorer = explorer  # immutable
        self.cursor = 0
        self.with_attributes = False
        self.border_title = title

    @property
    def node(self) -> int:
        """The node under the cursor; -1 if there are no rows."""
        return self.explorer.node(self.cursor) if len(self.explorer) else -1

    def on_mount(self) -> None:
        self.rows_changed()

    def rows_changed(self) -> None:
        """Redraw after the rows of the explorer have changed."""
        self.virtual_size = Size(0, len(self.explorer))
        self._place(self.cursor)
        self.refresh()

    def go_to(self, node: int) -> bool:
        """Open the directories above a node and put the cursor on it. False if it is not visible."""
        row = self.explorer.reveal(node)
        self.virtual_size = Size(0, len(self.explorer))
        if row >= 0:
            self._place(row)
            self.refresh()
            self.scroll_to(y=row - self.size.height // 3, animate=False, force=True)  # with what is above it
        return row >= 0

    def render_line(self, y: int) -> Strip:
        number = y + self.scroll_offset.y
        width = self.size.width
        if number >= len(self.explorer):
            text = "  nothing to show" if not len(self.explorer) and y == 0 else ""
            return Strip([Segment(text.ljust(width)[:width], self.rich_style)], width)
        row = self.explorer.row(number)
        style = self.rich_style
        if row.change in _CLASSES:
            style += self.get_component_rich_style(f"tree--{_CLASSES[row.change]}", partial=True)
        if number == self.cursor:
            style += Style(reverse=True, bold=self.has_focus)
        text = set_cell_size(self._text(row, number), width)
        return Strip([Segment(text, style)], width)

    def _text(self, row: Row, number: int) -> str:
        tree = self.explorer.tree
        sign = ">" if number == self.cursor else " "
        marked = marks_of(tree, row.node, self.explorer.level)
        head = f"{sign}{LETTERS[row.change]}{marked[:1] or ' '} {human(row.size):>8} "
        if self.with_attributes:
            head += f"{attributes(tree.layer_entry(row.entry)):<20} "
        knob = ("▾ " if row.is_open else "▸ ") if row.is_directory else "  "
        name = printable(tree.name(row.node)) + ("/" if row.is_directory else "")
        target = "" if row.is_directory else tree.layer_entry(row.entry).target
        name += f" -> {printable(target)}" if target else ""
        indent = " " * (_INDENT * row.depth)
        room = self.size.width - cell_len(head) - 2
        if cell_len(indent) > room // 2:  # deep: the name matters more than where it stands
            indent = f"{row.depth:>{max(room // 2 - 1, 1)}} "
        if cell_len(indent) + cell_len(name) > room:
            name = set_cell_size(name, max(room - cell_len(indent) - 1, 1)).rstrip() + "…"
        return head + indent + knob + name

    # -- keys and mouse --

    def _place(self, row: int) -> None:
        """Put the cursor on a row. Only the two rows are drawn, or all if the pane scrolls."""
        before = self.cursor
        self.cursor = max(0, min(row, len(self.explorer) - 1))
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)
        self.refresh_line(before)
        self.refresh_line(self.cursor)
        self.post_message(self.Moved(self))

    def action_move(self, step: int) -> None:
        self._place(self.cursor + step)

    def action_page(self, step: int) -> None:
        self._place(self.cursor + step * max(self.size.height - 1, 1))

    def action_go(self, row: int) -> None:
        self._place(len(self.explorer) - 1 if row < 0 else row)

    def action_turn(self) -> None:
        if len(self.explorer):
            self.explorer.toggle(self.cursor)
            self.rows_changed()

    def action_open(self) -> None:
        if len(self.explorer) and not self.explorer.open(self.cursor):
            self._place(self.cursor + 1)
        self.rows_changed()

    def action_close(self) -> None:
        if len(self.explorer) and not self.explorer.close(self.cursor):
            self._place(self.explorer.parent_row(self.cursor))
        self.rows_changed()

    def action_close_all(self) -> None:
        self.explorer.close_all()
        self._place(0)
        self.rows_changed()

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        row = offset.y + self.scroll_offset.y
        if row >= len(self.explorer):
            return
        if row == self.cursor:
            self.action_turn()
        else:
            self._place(row)
