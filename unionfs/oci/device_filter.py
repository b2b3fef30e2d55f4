"""The BPF program (BPF_PROG_TYPE_CGROUP_DEVICE) that decides which devices the processes of a group of cgroup v2 may
use.

Sources: bpf(2), <linux/bpf.h>, the kernel's document cgroup-v2, "Device controller". A program loads the kind of the
device, the access and the numbers, compares them with one rule after the other, and returns whether it is allowed.
`assemble` is pure.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import Final

from unionfs.oci.resources import DeviceRule

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

_PROG_LOAD, _PROG_ATTACH = 5, 8  # commands of bpf(2)
_TYPE_CGROUP_DEVICE: Final = 15
_ATTACH_CGROUP_DEVICE: Final = 6
_ALLOW_MULTI: Final = 2  # BPF_F_ALLOW_MULTI: programs of groups above and below apply, too
_LICENSE: Final = ctypes.create_string_buffer(b"MIT")

_INSTRUCTION: Final = struct.Struct("=BBhi")  # struct bpf_insn
_LOAD_WORD, _MOVE, _MOVE_REGISTER, _AND, _SHIFT = 0x61, 0xB4, 0xBC, 0x54, 0x74  # 32 bits: LDX|MEM|W, ALU|MOV/AND/RSH
_NOT_EQUAL, _NOT_EQUAL_REGISTER, _EQUAL, _EXIT = 0x55, 0x5D, 0x15, 0x95
_CONTEXT, _KIND, _ACCESS, _MAJOR, _MINOR, _SCRATCH = 1, 2, 3, 4, 5, 6  # registers
_KINDS: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESSES: Final = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*


def attach(directory: str, rules: Sequence[DeviceRule]) -> None:
    """Apply the rules to the group. Raises: EPERM without CAP_SYS_ADMIN, ENOSYS, EINVAL."""
    code = ctypes.create_string_buffer(assemble(rules))
    count = (len(code) - 1) // _INSTRUCTION.size
    load = struct.pack(
        "=IIQQIIQII16s",
        _TYPE_CGROUP_DEVICE,
        count,
        ctypes.addressof(code),
        ctypes.addressof(_LICENSE),
        0,
        0,
        0,
        0,
        0,
        b"",
    )
    program = _bpf(_PROG_LOAD, load)
    try:
        group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _bpf(_PROG_ATTACH, struct.pack("=IIII", group, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(group)
    finally:
        os.close(program)


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """The program. The last matching rule decides, so it is compared first. If none matches, access is denied."""
    program = [
        (_LOAD_WORD, _KIND, _CONTEXT, 0, 0),
        (_MOVE_REGISTER, _ACCESS, _KIND, 0, 0),
        (_AND, _KIND, 0, 0, 0xFFFF),
        (_SHIFT, _ACCESS, 0, 0, 16),
        (_LOAD_WORD, _MAJOR, _CONTEXT, 4, 0),
        (_LOAD_WORD, _MINOR, _CONTEXT, 8, 0),
    ]
    for rule in reversed(rules):
        program += _rule(rule)
        if str(rule) == "a":
            break  # it always matches, and the kernel refuses a program with unreachable instructions
    else:
        program += _return(False)
    return b"".join(
        _INSTRUCTION.pack(code, source << 4 | target, offset, number)
        for code, target, source, offset, number in program
    )


_Instruction = tuple[int, int, int, int, int]


def _rule(rule: DeviceRule) -> list[_Instruction]:
    """The comparison with a rule; if it does not match, the program continues behind it."""
    tests: list[_Instruction] = []
    if rule.kind != "a":
        tests.append((_NOT_EQUAL, _KIND, 0, 0, _KINDS[rule.kind]))
    mask = sum(_ACCESSES[letter] for letter in set(rule.access))
    if mask != sum(_ACCESSES.values()) and rule.kind != "a":
        tests += [(_MOVE_REGISTER, _SCRATCH, _ACCESS, 0, 0), (_AND, _SCRATCH, 0, 0, mask)]
        # A rule that allows must contain all requested accesses, a rule that denies any of them.
        tests.append((_NOT_EQUAL_REGISTER, _SCRATCH, _ACCESS, 0, 0) if rule.allow else (_EQUAL, _SCRATCH, 0, 0, 0))
    for register, number in ((_MAJOR, rule.major), (_MINOR, rule.minor)):
        if number is not None and rule.kind != "a":
            tests.append((_NOT_EQUAL, register, 0, 0, number))
    jumps = (_NOT_EQUAL, _NOT_EQUAL_REGISTER, _EQUAL)
    verdict = _return(rule.allow)
    behind = len(tests) + len(verdict)
    resolved = [
        (code, target, source, behind - at - 1 if code in jumps else offset, number)
        for at, (code, target, source, offset, number) in enumerate(tests)
    ]
    return resolved + verdict


def _return(allow: bool) -> list[_Instruction]:
    return [(_MOVE, 0, 0, 0, int(allow)), (_EXIT, 0, 0, 0, 0)]


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYS_BPF.get(os.uname().machine)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = (
        -1
        if number is None
        else _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "bpf(2)")
    return int(result)
