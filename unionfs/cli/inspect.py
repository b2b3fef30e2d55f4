"""`unionfs inspect`: print containers and images as JSON, with Docker's field names where Docker has the field."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from typing import Any

from unionfs.cli import each, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, FAILURES, CommandError, format_failure
from unionfs.containers.errors import NoSuchContainerError
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.containers.volume_mounts import anonymous_volumes
from unionfs.containers.volumes import anonymous_names


def main(argv: list[str]) -> int:
    """Run `unionfs inspect ARGV`."""
    parser = Parser("inspect", "Print containers and images as a JSON list, one object for each.")
    parser.add_argument("names", metavar="NAME", nargs="+", help="a container, else an image, by name or id")
    parser.add_argument("--type", choices=("container", "image"), help="search only containers or only images")
    parser.add_argument("--json", action="store_true", help="no effect: the output is always JSON")
    each.add_root(parser)
    store_flags.add_image_stores(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    further = store_flags.image_stores(arguments)
    found, status = [], 0
    for name in arguments.names:
        try:
            found.append(_one(store, further, name, arguments.type))
        except FAILURES as error:
            print(format_failure(error), file=sys.stderr)
            status = FAILED
    print(json.dumps(found, indent=2))
    return status


def _one(store: ContainerStore, further: tuple[str, ...], name: str, kind: str | None) -> dict[str, Any]:
    if kind != "image":
        try:
            return of_container(store.find(name))
        except NoSuchContainerError:
            if kind == "container":
                raise
    return _of_image(store, further, name, wanted=kind)


def of_container(container: Container) -> dict[str, Any]:
    """The JSON object of a container."""
    running = container.status == "running"
    config, state = container.config, container.state
    process, network, image = config.process, config.network, config.image
    shown: dict[str, Any] = {
        "Id": container.id,
        "Name": container.name,
        "Created": _time(container.created),
        "Path": _text(process.command[0]),
        "Args": [_text(word) for word in process.command[1:]],
        "State": {
            "Status": container.status,
            "Running": running,
            "Pid": state.pid if running else 0,
            "ExitCode": state.exit_code,
            "StartedAt": _time(state.started),
            "FinishedAt": _time(state.ended),
        },
        "Image": image.digest if image else "",
        "ImageName": image.name if image else "",
        "ImageStore": (image.store or container.root) if image else "",
        "Kind": config.kind,
        "LogPath": container.log,
        "GraphDriver": {
            "Name": config.rootfs.driver,
            "Data": {
                "LowerDir": list(config.rootfs.lowers),
                "UpperDir": container.upper,
                "MergedDir": container.merged,
            },
        },
    }
    shown["Config"] = {
        "Hostname": container.hostname,
        "User": process.user,
        "Env": [_text(f"{name}={value}") for name, value in process.environment],
        "Entrypoint": [_text(word) for word in config.entrypoint],
        "Cmd": [_text(word) for word in process.command[len(config.entrypoint) :]],
        "WorkingDir": process.workdir,
        "Labels": dict(config.labels),
        "ExposedPorts": list(image.exposed_ports) if image else [],
        "StopSignal": config.stop_signal,
        "Tty": process.terminal,
        "OpenStdin": process.interactive,
    }
    binds = [(volume.name, volume.source, volume.target, not volume.read_only) for volume in config.mounts.volumes]
    names = anonymous_names(container)
    mine = zip(names, anonymous_volumes(container), strict=True)
    binds += [(name, place, path, True) for name, (path, place) in mine]
    shown["Mounts"] = [
        {
            "Type": "volume" if name else "bind",
            **({"Name": name} if name else {}),
            "Source": source,
            "Destination": target,
            "RW": writable,
        }
        for name, source, target, writable in binds
    ]
    shown["HostConfig"] = {
        "NetworkMode": "private" if network.uplink else "none" if network.private else "host",
        "PortBindings": {
            f"{port.inside}/{port.protocol}": [{"HostIp": port.address, "HostPort": str(port.outside)}]
            for port in network.published
        },
        "Runtime": config.runtime or "unionfs",
        "ReadonlyRootfs": config.rootfs.read_only,
        "AutoRemove": config.remove,
        "Capabilities": list(process.capabilities),
        "Ulimits": [{"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in process.limits],
    }
    return shown


def _of_image(store: ContainerStore, further: tuple[str, ...], name: str, *, wanted: str | None) -> dict[str, Any]:
    from layers import lookup
    from layers.errors import LayerError, NotFound
    from layers.store import Store
    from unionfs.cli import image_flags
    from unionfs.containers import images

    known = Store(store.root, further)
    try:
        found = known.find(name)
    except (NotFound, LayerError) as error:
        what = "image" if wanted else "container or image"
        raise CommandError(f"no such {what}: {name}", hint="unionfs ps -a and unionfs images list them") from error
    with images.failures():
        descriptor, item, config = lookup.read(known, found.descriptor)
        names = [
            one.name for one in known.list_images() if one.descriptor.digest == found.descriptor.digest and one.name
        ]
        return {
            "Id": item.config.digest,
            "Digest": descriptor.digest,
            "RepoTags": names,
            "Created": config.created,
            "Author": config.author,
            "Architecture": config.platform.architecture,
            "Os": config.platform.os,
            "Size": sum(layer.size for layer in item.layers),
            "Config": image_flags.settings_json(config.settings),
            "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        }


def _time(seconds: float | None) -> str:
    return "" if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")


def _text(word: str) -> str:
    return os.fsencode(word).decode(errors="replace")
