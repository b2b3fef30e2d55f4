"""`unionfs build --report`: the files that each step of the image has added, and the causes of its size."""

from __future__ import annotations

import json
from contextlib import ExitStack

from layers.cli import showing
from layers.store import Store
from unionfs.build import report
from unionfs.build.builder import Built
from unionfs.cli import image_flags
from unionfs.printable import printable, printable_line

_TEXT_MAX = 60


def show(built: Built, *, as_json: bool) -> None:
    """Print it: a table, or one JSON object with the image's id and its steps."""
    steps = report.of_image(built.results, built.stages)
    if as_json:
        print(
            json.dumps({"id": built.id, "digest": built.digest, "steps": [step._asdict() for step in steps]}),
            flush=True,
        )
        return
    rows = [
        (
            _label(built, step),
            printable(step.text if len(step.text) <= _TEXT_MAX else step.text[: _TEXT_MAX - 1] + "~"),
            "cached" if step.is_cached else f"{step.seconds:.1f} s",
            *(
                (showing.human(step.added), str(step.files), showing.human(step.hidden_later))
                if step.has_layer
                else ("", "", "")
            ),
        )
        for step in steps
    ]
    image_flags.print_table(("#", "STEP", "TIME", "ADDED", "FILES", "HIDDEN LATER"), rows)
    for step in steps:
        for hint in step.hints:
            print(printable_line(f"step {_label(built, step)}, {step.text[:_TEXT_MAX]}: {hint}"))


def _label(built: Built, step: report.StepReport) -> str:
    """The number of a step, with that of its stage if the image consists of several."""
    return str(step.number) if len(built.stages) == 1 else f"{step.stage}/{step.number}"


def write_page(built: Built, store: Store, path: str, title: str) -> None:
    """Write the page of `layers explore --html` for the image: the visible and the wasted bytes of each layer."""
    from layers.cli import explore, stacks
    from layers.explore.indexes import open_tree

    with ExitStack() as keep:
        stack = stacks.of_image(store, store.find(built.digest))
        explore.write_page(path, open_tree(stack.layers, store, keep), stack, title)
