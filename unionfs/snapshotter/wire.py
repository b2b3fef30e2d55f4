"""The protobuf messages of the service containerd.services.snapshots.v1.Snapshots, built from a table of their fields.

The table has the content of the published .proto file. Classes built at run time work with any version of protobuf,
while generated code requires the version that it was generated for.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, field_mask_pb2, message_factory, timestamp_pb2

PACKAGE: Final = "containerd.services.snapshots.v1"
SERVICE: Final = f"{PACKAGE}.Snapshots"
_TYPES: Final = "containerd.types"

_KNOWN: Final = {
    "Empty": empty_pb2,
    "FieldMask": field_mask_pb2,
    "Timestamp": timestamp_pb2,
}

_KINDS: Final = ("UNKNOWN", "VIEW", "ACTIVE", "COMMITTED")

_SNAPSHOT: Final = "snapshotter:string key:string"

_MESSAGES: Final = {
    _TYPES: {
        "Mount": "type:string source:string target:string options:string*",
    },
    PACKAGE: {
        "PrepareSnapshotRequest": f"{_SNAPSHOT} parent:string labels:map",
        "PrepareSnapshotResponse": "mounts:Mount*",
        "ViewSnapshotRequest": f"{_SNAPSHOT} parent:string labels:map",
        "ViewSnapshotResponse": "mounts:Mount*",
        "MountsRequest": _SNAPSHOT,
        "MountsResponse": "mounts:Mount*",
        "RemoveSnapshotRequest": _SNAPSHOT,
        "CommitSnapshotRequest": "snapshotter:string name:string key:string labels:map",
        "StatSnapshotRequest": _SNAPSHOT,
        "Info": "name:string parent:string kind:Kind created_at:Timestamp updated_at:Timestamp labels:map",
        "StatSnapshotResponse": "info:Info",
        "UpdateSnapshotRequest": "snapshotter:string info:Info update_mask:FieldMask",
        "UpdateSnapshotResponse": "info:Info",
        "ListSnapshotsRequest": "snapshotter:string filters:string*",
        "ListSnapshotsResponse": "info:Info*",
        "UsageRequest": _SNAPSHOT,
        "UsageResponse": "size:int64 inodes:int64",
        "CleanupRequest": "snapshotter:string",
    },
}
"""Package -> message -> its fields in the order of their numbers, which begin with 1. `*` is repeated, `map` is one of
strings to strings."""

_Field: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {"string": _Field.TYPE_STRING, "int64": _Field.TYPE_INT64}


class Method(NamedTuple):
    """The names of the request and response messages of one call."""

    request: str
    response: str
    streams: bool = False  # any number of responses


METHODS: Final = {
    "Prepare": Method("PrepareSnapshotRequest", "PrepareSnapshotResponse"),
    "View": Method("ViewSnapshotRequest", "ViewSnapshotResponse"),
    "Mounts": Method("MountsRequest", "MountsResponse"),
    "Commit": Method("CommitSnapshotRequest", "Empty"),
    "Remove": Method("RemoveSnapshotRequest", "Empty"),
    "Stat": Method("StatSnapshotRequest", "StatSnapshotResponse"),
    "Update": Method("UpdateSnapshotRequest", "UpdateSnapshotResponse"),
    "List": Method("ListSnapshotsRequest", "ListSnapshotsResponse", streams=True),
    "Usage": Method("UsageRequest", "UsageResponse"),
    "Cleanup": Method("CleanupRequest", "Empty"),
}


def _qualified(name: str) -> str:
    if name in _KNOWN:
        return f"google.protobuf.{name}"
    package = next((package for package, messages in _MESSAGES.items() if name in messages), PACKAGE)
    return f"{package}.{name}"


def _pool() -> Any:
    """Return a descriptor pool of all messages, separate from protobuf's default pool, which other modules use."""
    pool = descriptor_pool.DescriptorPool()
    for module in _KNOWN.values():
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    depends = [module.DESCRIPTOR.name for module in _KNOWN.values()]
    for package, messages in _MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
        file.dependency.extend(depends)
        depends.append(file.name)
        if package == PACKAGE:
            kinds = file.enum_type.add(name="Kind")
            for number, kind in enumerate(_KINDS):
                kinds.value.add(name=kind, number=number)
        for name, fields in messages.items():
            message = file.message_type.add(name=name)
            for number, field in enumerate(fields.split(), 1):
                _add_field(message, package, number, *field.split(":"))
        pool.Add(file)
    return pool


def _add_field(message: Any, package: str, number: int, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind == "map":  # on the wire, a repeated message with a key and a value
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, package, 1, "key", "string")
        _add_field(entry, package, 2, "value", "string")
        field.label = _Field.LABEL_REPEATED
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{package}.{message.name}.{entry.name}"
        return
    if kind.endswith("*"):
        field.label = _Field.LABEL_REPEATED
    kind = kind.removesuffix("*")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type = _Field.TYPE_ENUM if kind == "Kind" else _Field.TYPE_MESSAGE
    field.type_name = f".{_qualified(kind)}"


_POOL: Final = _pool()


def message(name: str) -> Any:
    """Return the class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(_qualified(name)))
