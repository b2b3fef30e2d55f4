"""One example for each verb, which its help shows. A test parses them, and runs those that need no registry."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "inspect": "layers inspect app:latest --top 20",
    "explore": "layers explore app:latest",
    "why": "layers why app:latest /etc/passwd",
    "diff": "layers diff app:1 app:2 --ignore-times",
    "check": "layers check --dialect aufs app:latest",
    "convert": "layers convert --to overlay layer.tar converted",
    "verify": "layers verify --blobs app:latest",
    "squash": "layers squash app:latest -t app:small",
    "pack": "layers pack rootfs -o layer.tar",
    "unpack": "layers unpack app:latest rootfs",
    "gc": "layers gc --dry-run",
}
