"""The record of nodes: load returns the entries that put has finished, and the record stays small."""

from __future__ import annotations

import os
import struct
from functools import partial
from pathlib import Path

import pytest

from tests.core.stack import Stack
from unionfs.core import takeover
from unionfs.core.node_record import (
    DEAD,
    LINKED,
    OPENED,
    SIZE,
    NodeRecord,
)
from unionfs.core.recorded_entry import LIVE, OPEN, DamagedError
from unionfs.core.recorded_listing import SHORT
from unionfs.core.recorded_node import OpenFile, RecordedNode

_MIB = 1 << 20
_AREA = 128 << 10


def _of(node: RecordedNode) -> tuple[int, int, int, int, list[tuple[int, bytes]]]:
    return node.flags & ~LIVE, node.nodeid, node.nlookup, node.ino, node.names


def _loaded(record: NodeRecord) -> list[tuple[int, int, int, int, list[tuple[int, bytes]]]]:
    return [_of(node) for node in record.load()[1]]


def test_what_is_read_is_what_was_written() -> None:
    record = NodeRecord()
    written = [
        (0, 2, 1, 1 << 63, [(1, b"a")]),
        (LINKED, 3, 7, 12, [(1, b"x" * 255), (2, b"1"), (2, b"12345678")]),
        (DEAD, 1 << 60, 0, 0, [(0, b"")]),
    ]
    for entry in written:
        record.put(*entry)
    assert _loaded(record) == written
    assert _loaded(record) == written  # by the daemon after the next


def test_counts_change_in_place_and_dropped_entries_are_gone() -> None:
    record = NodeRecord()
    first, second, third = (record.put(0, number, 1, number, [(1, b"%d" % number)]) for number in (2, 3, 4))
    record.count(first, 9)
    record.drop(second)
    record.mark(third, LINKED)
    assert _loaded(record) == [(0, 2, 9, 2, [(1, b"2")]), (LINKED, 4, 1, 4, [(1, b"4")])]


def test_ids_that_were_given_out_are_not_given_again() -> None:
    record = NodeRecord()
    for nodeid in range(1, 5000):
        record.give_id(nodeid)
    assert record.load()[0] >= 5000


def test_what_was_not_finished_does_not_count() -> None:
    record = NodeRecord()
    record.put(0, 2, 1, 2, [(1, b"a")])
    record._mm[record.end + 8 : record.end + 9000] = b"\xff" * 8992  # all but the word that makes it count
    assert _loaded(record) == [(0, 2, 1, 2, [(1, b"a")])]
    record.put(0, 3, 1, 3, [(1, b"b")])
    assert len(_loaded(record)) == 2


def test_a_listing_is_added_as_a_whole() -> None:
    record = NodeRecord()
    record.put(0, 2, 1, 2, [(1, b"a")])
    names = [b"x" * 255, b"12345678", b"b", b"\xff"]
    before = bytes(record._mm[record.end : record.end + 4096])
    end, slot = record.end, record.put_listed(2, [3, 4, 5, 6], [1 << 63, 4, 5, (1 << 64) - 1], names, 255)
    written = [
        (0, 3, 1, 1 << 63, [(2, names[0])]),
        (0, 4, 1, 4, [(2, names[1])]),
        (0, 5, 1, 5, [(2, names[2])]),
        (0, 6, 1, (1 << 64) - 1, [(2, names[3])]),
    ]
    assert _loaded(record)[1:] == written
    record.drop(slot + SHORT)
    record.count(slot + 2 * SHORT, 7)
    record.mark(slot + 3 * SHORT, LINKED)
    record.put(LINKED, 7, 1, 7, [(1, b"c")])
    found = [written[0], (0, 5, 7, 5, [(2, b"b")]), (LINKED, 6, *written[3][2:]), (LINKED, 7, 1, 7, [(1, b"c")])]
    assert _loaded(record)[1:] == found
    used = record._used
    for at in (slot, slot + 2 * SHORT, slot + 3 * SHORT):
        record.drop(at)
    assert used - record._used == 3 * (48 + 256)
    record._words[end >> 3] = 0  # it had died before the last store
    record._end = end
    assert len(_loaded(record)) == 1
    assert bytes(record._mm[record.end : record.end + 4096]) == before


@pytest.mark.parametrize(
    ("offset", "value"), [(3, 5 | 9 << 32), (3, 4 | 5000 << 32), (3, (1 << 32) - 1), (0, 48 << 8 | 130)]
)
def test_a_listing_that_is_damaged_is_not_read(offset: int, value: int) -> None:
    record = NodeRecord()
    at = record.end
    record.put_listed(1, [3, 4, 5, 6], [3, 4, 5, 6], [b"a", b"b", b"c", b"def"], 3)
    record._words[(at >> 3) + offset] = value
    with pytest.raises(DamagedError, match="a listing at"):
        record.load()


def test_a_listing_notes_its_lookups_once_and_for_its_request_only() -> None:
    record = NodeRecord()
    record.serve(8)
    record.note(2)
    record.put_listed(2, [3, 4], [3, 4], [b"a", b"b"], 1)
    assert record.notes().notes == [2]
    for _ in range(2):
        record.load()
        assert record.notes().notes == [2, 3, 4]
        assert record.notes().are_for(8)
    record.serve(10)
    record.put_listed(2, [5, 6], [5, 6], [b"c", b"d"], 1)
    record.load()
    assert (record.notes().notes, record.notes().are_for(10)) == ([5, 6], True)
    record.serve(12)
    record.put_listed(2, [7], [7], [b"e"], 1)
    record.serve(14)
    record.note(2)
    record.load()
    assert (record.notes().notes, record.notes().are_for(14)) == ([2], True)


def test_one_lookup_is_added_and_noted_at_once() -> None:
    record = NodeRecord()
    names = [b"", b"1234567", b"12345678", b"x" * 255]
    written, used = [], 0
    for number, name in enumerate(names, 2):
        record.serve(2 * number)
        slot = record.put_looked_up(1, number, (1 << 64) - number, name)
        written.append((0, number, 1, (1 << 64) - number, [(1, name)]))
        assert record.put_looked_up(1, 99, 99, b"second") == 0
        assert record.put_listed(1, [99], [99], [b"second"], 6) == 0
        used = record._used
        assert NodeRecord(os.dup(record.fd)).load()[1][-1].slot == slot
    assert _loaded(record) == written
    assert record._used == used
    assert (record.notes().notes, record.notes().are_for(10)) == ([5], True)
    for node in record.load()[1]:
        record.drop(node.slot)
    assert record._used == 0


@pytest.mark.parametrize("is_listed", [False, True])
def test_the_keeper_leaves_the_lookups_of_the_request_in_hand(*, is_listed: bool) -> None:
    record = NodeRecord()
    record.serve(8)
    if is_listed:
        record.put_listed(1, [2, 3], [2, 3], [b"a", b"b"], 1)
    else:
        record.put_looked_up(1, 2, 2, b"a")
    assert record.serving == 8
    for _ in range(2):
        record.no_longer_served()  # the second daemon has died before its first request
        assert record.serving == 0
    record.load()
    assert (record.notes().notes, record.notes().are_for(8)) == ([2, 3] if is_listed else [2], True)
    record.serve(10)
    assert record.serving == 10


def test_a_lookup_that_was_noted_with_its_node_is_taken_back() -> None:
    record = NodeRecord()
    record.serve(8)
    record.put_looked_up(1, 2, 2, b"a")
    record.unnote(3)
    record.note(2)
    record.unnote(2)
    record.unnote(2)
    record.unnote(2)
    assert record.put_looked_up(1, 3, 3, b"b") > 0
    record.load()
    assert record.notes().notes == [3]


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_new_area_notes_the_lookups_of_the_request_in_hand(*, is_listed: bool) -> None:
    record = NodeRecord()
    record.serve(8)
    record.note(7)
    if is_listed:
        record.put_listed(1, [2, 3], [2, 3], [b"a", b"b"], 1)
    else:
        record.put_looked_up(1, 2, 2, b"a")
    record.put_again = partial(_put_new, record, 1)
    record.compact()
    record.note(9)
    record.load()
    assert record.notes().notes == ([7, 2, 3, 9] if is_listed else [7, 2, 9])
    record.serve(10)
    record.compact()
    assert record.notes().are_for(8)


def test_a_record_without_room_or_of_an_older_version_takes_no_listing() -> None:
    record = NodeRecord()
    record._end = SIZE - (2 << 20) - 100
    assert record.put_listed(1, [2, 3], [2, 3], [b"a", b"b"], 1) == 0
    assert not record.is_full
    older = NodeRecord()
    older._words[0] -= 1 << 56
    assert NodeRecord(os.dup(older.fd)).put_listed(1, [2, 3], [2, 3], [b"a", b"b"], 1) == 0
    assert NodeRecord(os.dup(older.fd)).put_looked_up(1, 2, 2, b"a") == 0
    assert older.load()[1] == []


def test_a_new_area_counts_from_its_end_on() -> None:
    record = NodeRecord()
    record.put(0, 2, 1, 2, [(1, b"a")])

    def died() -> None:
        record.put(0, 2, 1, 2, [(1, b"new")])
        raise ZeroDivisionError

    record.put_again = died
    with pytest.raises(ZeroDivisionError):
        record.compact()
    assert _loaded(record) == [(0, 2, 1, 2, [(1, b"a")])]
    for number in range(5):
        record.put_again = partial(_put_new, record, number)
        record.compact()
        assert _loaded(record) == [(0, 2, number, 2, [(1, b"new")])]


def _put_new(record: NodeRecord, nlookup: int) -> None:
    record.put(0, 2, nlookup, 2, [(1, b"new")])


def test_ids_that_a_node_had_before_stand_behind_its_names() -> None:
    record = NodeRecord()
    record.put(LINKED, 9, 2, 5, [(1, b"a"), (1, b"b"), (3, b""), (7, b"")])
    record.put(DEAD, 10, 2, 5, [(0, b""), (8, b"")])
    (linked, dead) = record.load()[1]
    assert (linked.names, linked.former) == ([(1, b"a"), (1, b"b")], [3, 7])
    assert (dead.names, dead.former) == ([(0, b"")], [8])


def test_open_files_are_no_nodes() -> None:
    record = NodeRecord()
    for nodeid in (2, 3):
        opened = OpenFile(nodeid, 70 + nodeid, (64769, 1 << 60), count=1)
        record.opens[nodeid] = opened
        record.put_open(opened)
    record.opens[2].count, record.opens[2].writers = 5, 4
    record.count_opens(record.opens[2])
    record.drop(record.opens[3].slot)
    for _ in range(2):
        assert record.load()[1] == []
        (found,) = record.opens.values()
        assert (found.nodeid, found.backing_id, found.identity) == (2, 72, (64769, 1 << 60))
        assert (found.count, found.writers) == (5, 4)
        record.put_again = lambda: None
        record.compact()


def test_backing_ids_that_a_death_has_left() -> None:
    record = NodeRecord()
    record.backing_given(5)
    record.opens[2] = OpenFile(2, 5, (1, 1), count=1)
    assert record.lost_backing_ids() == [6]
    record.backing_closing(5)
    assert record.lost_backing_ids() == [6]  # died before it was dropped: it is used
    del record.opens[2]
    assert record.lost_backing_ids() == [6, 5]


def test_what_the_last_request_has_counted_is_noted() -> None:
    record = NodeRecord()
    record.serve(1 << 40)
    for note in (2, 3, 4 | OPENED):
        record.note(note)
    assert record.notes().are_for(1 << 40)
    assert record.notes().notes == [2, 3, 4 | OPENED]
    record.unnote(3)  # not the last
    record.unnote(4 | OPENED)
    assert record.notes().notes == [2, 3]
    record.serve(8)
    assert record.notes().are_for(1 << 40)  # it has counted nothing
    record.note(7)
    assert record.notes().notes == [7]
    assert (record.notes().are_for(8), record.notes().are_for(1 << 40)) == (True, False)
    for _ in range(20_000):
        record.note(1)
    assert len(record.notes().notes) == 12288
    record.begin(8)  # is not overwritten
    assert record.changes() == {8: False}
    assert record.put(0, 2, 1, 2, [(1, b"a")]) > 12288 * 8


def test_several_lookups_are_noted_at_once() -> None:
    record = NodeRecord()
    record.serve(8)
    record.note(2)
    record.note_all([3, 4])
    assert record.notes().notes == [2, 3, 4]
    record.unnote(4)
    record.note_all([5, *range(100, 20000)])
    assert record.notes().notes[:4] == [2, 3, 5, 100]
    assert len(record.notes().notes) == 12288
    record.note_all([6])
    assert len(record.notes().notes) == 12288


def test_changes_are_known_to_be_begun_or_done() -> None:
    record = NodeRecord()
    for unique in range(2, 400, 2):
        record.begin(unique)
        if unique % 3:
            record.finish(unique % 4 == 0)
    found = record.changes()
    assert found[396] is False
    assert found[392] is True
    assert 394 not in found
    assert len(found) <= 64


def test_a_rename_is_kept_until_its_end() -> None:
    record = NodeRecord()
    record.begin(8)
    record.begin_rename(2, 1, b"a" * 255, 3, b"b", 4, 2)
    found = record.rename()
    assert found is not None
    assert (found.unique, found.src, found.parent, found.name) == (8, 2, 1, b"a" * 255)
    assert (found.new_parent, found.new_name, found.dst, found.flags) == (3, b"b", 4, 2)
    record.end_rename(True)
    assert record.rename() is None
    assert record.changes() == {8: True}


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, 1, "does not begin"),
        (0, int.from_bytes(b"unionfs\t", "little"), "version is 9, and this program reads 2 and 3"),
        (8, 4096, "begins"),
        (8, 1 << 40, "begins"),
        (_AREA, 16 << 8 | LIVE, "16 bytes"),
        (_AREA, 56 << 8 | LIVE | OPEN, "an open file of node 2 has 1 numbers"),
    ],
)
def test_a_damaged_record_is_refused(offset: int, value: int, why: str) -> None:
    record = NodeRecord()
    record.put(0, 2, 1, 2, [(1, b"a")])
    record._mm[offset : offset + 8] = struct.pack("=Q", value)
    with pytest.raises(DamagedError, match=why):
        record.load()


def test_names_that_do_not_fit_are_refused() -> None:
    record = NodeRecord()
    record.put(0, 2, 1, 2, [(1, b"a")])
    record._mm[_AREA + 40 : _AREA + 48] = struct.pack("=Q", 900)
    with pytest.raises(DamagedError, match="longer than its entry"):
        record.load()


def test_it_is_as_large_as_the_nodes_that_are_alive_need(tmp_path: Path) -> None:
    """Many lookups and forgets: the record is compacted while the union is in use."""
    names = [b"a-name-of-some-length-%03d" % number for number in range(400)]
    stack = Stack(tmp_path, " ".join(f"{name.decode()}=x" for name in names), upper="", caching=True)
    record = NodeRecord()
    takeover.keep_record(stack.union, record)
    kept = stack.union.lookup(1, names[0])
    for _ in range(150):  # 60,000 lookups, 4 MB of entries
        found = [stack.union.lookup(1, name).nodeid for name in names]
        for nodeid in found:
            stack.union.forget(nodeid)
    assert record.end - record._start <= 2 * record._used + _MIB + 200
    assert os.fstat(record.fd).st_blocks * 512 <= 3 * _MIB
    assert [node.nodeid for node in record.load()[1]] == [kept.nodeid]
    stack.union.forget(kept.nodeid)
    stack.finish()


@pytest.mark.parametrize(("is_listed", "is_older"), [(False, False), (True, False), (True, True)])
def test_the_lookups_of_a_listing_are_recorded_together(tmp_path: Path, *, is_listed: bool, is_older: bool) -> None:
    """In any order of files, directories, hard links, names that are known and names that come twice."""
    stack = Stack(tmp_path, "a=1 b=2 d/f=3 d/g=4 h1=link h2==h1", upper="up=5 d/h=6", caching=True)
    union, record = stack.union, NodeRecord()
    if is_older:
        record._words[0] -= 1 << 56
        record = NodeRecord(record.fd)
    takeover.keep_record(union, record)
    paths = ["a", "d/f", "h1", "b", "d", "a", "up", "h2", "d/h", "d/g", "d/f"]
    directory = union.lookup(1, b"d").nodeid
    record.serve(8)
    found = []
    for path in paths:
        above, name = (directory, path[2:]) if path[1:2] == "/" else (1, path)
        entry = union.find(above, name.encode(), is_listed)
        assert entry is not None
        found.append(entry.nodeid)
    if is_listed:
        union.record_listed()
        union.record_listed()
    for _ in range(2):
        record.load()
    assert sorted(record.notes().notes) == sorted(found)
    counts = {node.nodeid: node.nlookup for node in record.load()[1]}
    names = {node.nodeid: sorted(node.names) for node in record.load()[1]}
    assert counts == {nodeid: found.count(nodeid) + (nodeid == directory) for nodeid in found}
    assert names[found[0]] == [(1, b"a")]
    assert names[found[1]] == [(directory, b"f")]
    assert names[found[2]] == [(1, b"h1"), (1, b"h2")]
    for nodeid in (directory, *found):
        union.forget(nodeid)
    assert record.load()[1] == []
    stack.finish()


def test_another_process_goes_on_with_a_record() -> None:
    """Ids that were given out meanwhile are not given again, whatever the object knew when it was made."""
    record = NodeRecord()
    record.give_id(1)
    other = NodeRecord(os.dup(record.fd))
    other.give_id(5000)
    entry = (0, 5000, 3, 7, [(1, b"a")])
    other.put(*entry)
    record.give_id(1)
    assert record.load()[0] > 5000
    again = NodeRecord(os.dup(record.fd))
    again.give_id(1)  # as NodeTable.keep does, before the record is loaded
    assert again.load()[0] > 5000
    assert _loaded(again) == [entry]


def test_memory_without_a_record_is_refused() -> None:
    fd = os.memfd_create("other")
    with pytest.raises(DamagedError, match="0 bytes"):
        NodeRecord(fd)
    os.ftruncate(fd, SIZE)
    with pytest.raises(DamagedError, match="does not begin"):
        NodeRecord(fd)
    os.close(fd)
