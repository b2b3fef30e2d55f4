"""One example for each verb whose help text has none of its own. A test parses the examples of all verbs."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "apply": "unionfs apply --dry-run box",
    "container prune": "unionfs container prune --force",
    "cp": "unionfs cp box:/etc/os-release .",
    "create": "unionfs create --name box debian:12 sleep 60",
    "diff": "unionfs diff box",
    "doctor": "unionfs doctor",
    "exec": "unionfs exec -it box sh",
    "export": "unionfs export -o box.tar box",
    "history": "unionfs history debian:12",
    "images": "unionfs images",
    "image prune": "unionfs image prune --all --force",
    "inspect": "unionfs inspect box",
    "kill": "unionfs kill -s HUP box",
    "load": "unionfs load -i images.tar",
    "login": "unionfs login --username me registry.example.org",
    "logout": "unionfs logout registry.example.org",
    "logs": "unionfs logs --follow box",
    "ps": "unionfs ps -a",
    "pull": "unionfs pull debian:12",
    "push": "unionfs push app:1 registry.example.org/me/app:1",
    "rename": "unionfs rename box old-box",
    "restart": "unionfs restart box",
    "rm": "unionfs rm --force box",
    "rmi": "unionfs rmi app:1",
    "save": "unionfs save -o images.tar app:1 debian:12",
    "search": "unionfs search registry.example.org/app",
    "start": "unionfs start box",
    "stats": "unionfs stats merged",
    "stop": "unionfs stop --time 5 box",
    "tag": "unionfs tag app:1 app:latest",
    "top": "unionfs top box",
    "trace": "unionfs trace merged",
    "umount": "unionfs umount merged",
    "watch": "unionfs watch --interval 2 merged",
    "volume": "unionfs volume create data",
    "wait": "unionfs wait box",
}
