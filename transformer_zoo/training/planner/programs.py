"""What a compiled program moves: bytes through memory and over links, with loops multiplied out.

A compiler's own count of bytes sees the body of a loop once, so this one reads the program's text. Memory traffic is
what the instructions outside of fusions read and write of the device's main memory; what stays in on-chip memory, which
a TPU's layouts mark S(1) and up, is left out.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from transformer_zoo.layers.loops import expected_turns

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|(%?[\w.\-]+))")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_NO_TRAFFIC = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "partition-id",
    "after-all", "iota", "copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done",
}  # fmt: skip
_BITS = {"pred": 8, "token": 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: name = result operation(arguments), rest; `operands` are the arguments' names."""

    name: str
    result: str
    operation: str
    arguments: str
    rest: str

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind at one place of the program.

    Attributes:
        kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
        devices: that take part together.
        size: bytes of the whole result a device and time: gathered, reduced, or before it is scattered.
        times: how often a step does it.
    """

    kind: str
    devices: int
    size: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, by a ring."""
        share = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.size * self.times


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device moves in a step.

    Attributes:
        memory: bytes read from and written to main memory.
        collectives: communication.
        unknown_loops: loops whose number of turns cannot be read, counted as one turn each.
    """

    memory: float
    collectives: tuple[Collective, ...]
    unknown_loops: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.sent for collective in self.collectives)


def traffic(text: str) -> Traffic:
    """Reads the text of a compiled program (`compiled.as_text()`)."""
    computations, entry = read_program(text)
    memory, unknown = 0.0, 0
    found: dict[str, Collective] = {}

    def visit(name: str, times: int, fused: bool) -> None:
        nonlocal memory, unknown
        instructions = computations.get(name, {})
        for instruction in instructions.values():
            kind = _collective_kind(instruction, name)
            if kind:
                # The parts of one share their channel and origin; what shard_map sends has one channel altogether.
                parts = re.search(r"channel_id=(\d+)", instruction.rest) if kind != "collective-permute" else None
                origin = re.search(r'op_name="([^"]*)"', instruction.rest)
                key = f"{parts.group(1)} {origin and origin.group(1)}" if parts else f"{name}/{instruction.name}"
                new = _collective(instruction, kind, times, instructions)
                if key not in found or found[key].sent < new.sent:
                    found[key] = new
            elif not fused and instruction.operation not in _NO_TRAFFIC:
                memory += times * _moved(instruction, instructions, computations)
            turns = 1
            if instruction.operation == "while":
                condition = re.search(r"condition=%?([\w.\-]+)", instruction.rest)
                turns = _turns(computations.get(condition.group(1) if condition else "", {}), instruction.rest)
                unknown += turns == 0
            for called in _called(instruction):
                inside = fused or instruction.operation not in ("while", "conditional", "call")
                visit(called, times * max(turns, 1), inside)

    visit(entry, 1, False)
    return Traffic(memory, tuple(c for c in found.values() if c.devices > 1), unknown)


def read_program(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Instructions by computation and name, and the name of the entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = computations.setdefault(opened.group(2), {})
            entry = opened.group(2) if opened.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(*found.groups())
            current[instruction.name] = instruction
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    """'(f32[2], f32[]) fusion(%a, %b), calls=...' taken apart."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    result, text = text[:end], text[end:].strip()
    operation, _, text = text.partition("(")
    close = _closing("(" + text, 0) - 1
    return Instruction(name, result, operation, text[:close], text[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text)


def array_bytes(result: str, main_memory: bool = False) -> int:
    """Bytes of all arrays in a type; with `main_memory`, of those that do not stay on the chip."""
    total = 0
    for dtype, shape, layout in _ARRAY.findall(result):
        if main_memory and re.search(r"S\([1-9]\d*\)", layout):
            continue
        bits = _BITS[dtype] if dtype in _BITS else int(re.search(r"\d+", dtype).group())  # type: ignore[union-attr]
        total += math.prod(int(side) for side in shape.split(",") if side) * bits // 8
    return total


def _called(instruction: Instruction) -> Iterator[str]:
    for several, one in _CALLED.findall(instruction.rest):
        for name in (several or one).split(","):
            yield name.strip().removeprefix("%")


def _turns(condition: Computation, rest: str) -> int:
    """Turns of a loop: as the compiler notes them, the one number that ends it, or what `about` noted; 0 if unknown."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
    if noted:
        return int(noted.group(1))
    limits = [
        int(instruction.arguments)
        for instruction in condition.values()
        if instruction.operation == "constant" and re.fullmatch(r"\d+", instruction.arguments)
        if re.match(r"[su]\d+\[\]", instruction.result)
    ]
    name = re.search(r'op_name="([^"]*)"', rest)
    return limits[0] if len(limits) == 1 else expected_turns(name.group(1) if name else "")


def _collective_kind(instruction: Instruction, computation: str) -> str:
    operation = instruction.operation.removesuffix("-start")
    if operation not in _KINDS:
        return ""
    # A TPU writes a reduce-scatter as an all-reduce of which each device keeps its part, in a fusion of this name.
    return "reduce-scatter" if "all-reduce-scatter" in computation else operation


def _collective(instruction: Instruction, kind: str, times: int, around: Computation) -> Collective:
    size = array_bytes(instruction.result)
    devices = group_size(instruction.rest)
    if instruction.operation == "all-gather-start":  # its result holds the input beside the output
        size -= sum(array_bytes(around[name].result) for name in instruction.operands if name in around)
    elif instruction.operation == "collective-permute-start":
        size //= 2
    elif instruction.operation == "reduce-scatter":
        size *= devices
    return Collective(kind, devices, size, times)


def group_size(text: str) -> int:
    """Devices a group, in any of the ways a program writes `replica_groups`."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found.group(2))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found.group(2)))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found.group(1).split(","))
    if "source_target_pairs" in text:
        return 2
    return 1


def _moved(instruction: Instruction, around: Computation, computations: Mapping[str, Computation]) -> int:
    """Bytes of main memory that one instruction reads and writes."""
    if instruction.operation == "fusion":
        inside = computations.get(next(_called(instruction), ""), {})
        read = sum(
            _read(inside, number, computations) if array_bytes(around[name].result, main_memory=True) else 0
            for number, name in enumerate(instruction.operands)
            if name in around
        )
        root = list(inside.values())[-1] if inside else None
        return read + (_written(root, inside, instruction.result) if root else 0)
    written = array_bytes(instruction.result, main_memory=True)
    if instruction.operation == "custom-call" and not instruction.operands:
        return 0  # a buffer that others fill
    if instruction.operation == "dynamic-update-slice":
        return 2 * array_bytes(around[instruction.operands[1]].result, main_memory=True)  # in place
    if instruction.operation in ("dynamic-slice", "slice"):
        return 2 * written
    if instruction.operation.endswith("-start"):  # copies between memories: the result holds both ends
        return written
    return written + sum(array_bytes(around[n].result, main_memory=True) for n in instruction.operands if n in around)


def _read(inside: Computation, number: int, computations: Mapping[str, Computation]) -> int:
    """Bytes that a fusion reads of its argument `number`: all of it, or the parts that are cut out of it."""
    names = [i.name for i in inside.values() if i.operation == "parameter" and i.arguments == str(number)]
    if not names:
        return 0
    whole, parts, todo = array_bytes(inside[names[0]].result), 0, names
    while todo:
        name = todo.pop()
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.operation == "bitcast":
                todo.append(user.name)
            elif user.operation in ("dynamic-slice", "slice"):
                parts += array_bytes(user.result)
            elif user.operation == "fusion":
                called = computations.get(next(_called(user), ""), {})
                parts += _read(called, user.operands.index(name), computations)
            elif user.operation != "dynamic-update-slice" or user.operands[0] != name:
                return whole
    return min(parts, whole)


def _written(root: Instruction, inside: Computation, result: str) -> int:
    """Bytes that a fusion writes: of an array that it updates in place, the update alone."""
    if root.operation == "tuple":
        types = [found.group() for found in _ARRAY.finditer(result)]
        parts = [inside[name] for name in root.operands if name in inside]
        return sum(_written(part, inside, kind) for part, kind in zip(parts, types))
    if root.operation == "bitcast" and root.operands[0] in inside:
        return _written(inside[root.operands[0]], inside, result)
    if root.operation == "dynamic-update-slice" and array_bytes(result, main_memory=True):
        return array_bytes(inside[root.operands[1]].result)
    return array_bytes(result, main_memory=True)
