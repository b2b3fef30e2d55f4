"""`linux.seccomp` of config.json as a filter of system calls, built by libseccomp.

Sources: OCI runtime specification, config-linux.md "Seccomp"; seccomp_rule_add(3), <seccomp.h>.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import Final

from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field
from unionfs.syscalls import libseccomp
from unionfs.syscalls.libseccomp import Comparison, Filter

ACTIONS: Final = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_NOTIFY": 0x7FC00000,
}  # fmt: skip
OPERATORS: Final = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
ARCHITECTURES: Final = (
    *("x86", "x86_64", "x32", "arm", "aarch64", "mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32"),
    *("ppc", "ppc64", "ppc64le", "s390", "s390x", "parisc", "parisc64", "riscv64"),
)
_ARCHITECTURE_WORDS: Final = tuple(f"SCMP_ARCH_{name.upper()}" for name in ARCHITECTURES)
FLAGS: Final = {
    "SECCOMP_FILTER_FLAG_LOG": libseccomp.ATTRIBUTE_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": libseccomp.ATTRIBUTE_NO_SPECULATION,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": libseccomp.ATTRIBUTE_WAIT_KILLABLE,
}
IGNORED_FLAGS: Final = ("SECCOMP_FILTER_FLAG_TSYNC",)  # for threads; this process has only one
_WITH_NUMBER: Final = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_NUMBER_MAX: Final = 0xFFFF
_NOTIFY: Final = "SCMP_ACT_NOTIFY"
_NEEDED_TO_NOTIFY: Final = ("sendmsg", "write")


def build(profile: Field) -> Filter | None:
    """The filter of a profile; None when there is none. Raises: OciError."""
    if not profile:
        return None
    try:
        return _build(profile)
    except OSError as error:
        raise OciError.of("building the seccomp filter", error) from error


def notifies(profile: Field) -> bool:
    """Whether another process, at `listenerPath`, answers some system calls. Raises: OciError."""
    found = any(rule["action"].text("") == _NOTIFY for rule in profile["syscalls"].items())
    if found and not profile["listenerPath"]:
        raise profile.wrong(f"{_NOTIFY} needs a listenerPath")
    return found


def _build(profile: Field) -> Filter:
    default = _action(profile["defaultAction"], profile["defaultErrnoRet"])
    if profile["defaultAction"].text() == _NOTIFY:
        raise profile["defaultAction"].wrong(f"{_NOTIFY} cannot be the default")
    built = Filter(default)
    built.set_attribute(libseccomp.ATTRIBUTE_NO_NEW_PRIVS, 0)  # noNewPrivileges decides that
    for architecture in profile["architectures"].items():
        built.add_architecture(
            architecture.word(tuple(f"SCMP_ARCH_{one.upper()}" for one in ARCHITECTURES))[10:].lower()
        )
    for flag in profile["flags"].items():
        word = flag.word((*FLAGS, *IGNORED_FLAGS))
        if word in FLAGS:
            built.set_attribute(FLAGS[word], 1)
    for rule in profile["syscalls"].items():
        action = _action(rule["action"], rule["errnoRet"])
        names = rule["names"].texts() or (rule["name"].text(),)
        if rule["action"].text() == _NOTIFY and set(names) & set(_NEEDED_TO_NOTIFY):
            raise rule["names"].wrong(f"{_NOTIFY} for write or sendmsg would wait for itself")
        if action != default:
            for name in names:
                for comparisons in _alternatives(rule["args"]):
                    built.add_rule(action, name, comparisons)
    return built


def _action(field: Field, number: Field) -> int:
    name = field.word(tuple(ACTIONS))
    if name in _WITH_NUMBER:
        return ACTIONS[name] | number.number(errno.EPERM, least=0, most=_NUMBER_MAX)
    if number:
        raise number.wrong(f"{name} has no number")
    return ACTIONS[name]


def _alternatives(arguments: Field) -> list[list[Comparison]]:
    """The alternatives of a rule: conditions on different arguments must all hold; of several conditions on one
    argument, one must (as with runc and crun)."""
    comparisons = [
        Comparison(
            item["index"].number(least=0, most=5),
            OPERATORS[item["op"].word(tuple(OPERATORS))],
            item["value"].number(0, least=0),
            item["valueTwo"].number(0, least=0),
        )
        for item in arguments.items()
    ]
    if any(count > 1 for count in Counter(one.argument for one in comparisons).values()):
        return [[one] for one in comparisons]
    return [comparisons]
