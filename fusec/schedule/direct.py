"""What is computed into memory of its own and then copied over an input is computed into the input.

Enters: a Program. Leaves: a Program without the copies that can go.

    n0 (p0<64): t[p0] = x[p0] + 1              n0 (p0<64): x[p0] = x[p0] + 1
    n1 (p0<64): y[p0] = exp t[p0]        ->    n1 (p0<64): y[p0] = exp x[p0]
    n2 (p0<64): x[p0] = t[p0]

The old value must not be read after it is gone: every other reader comes before n0, and n0 itself reads x where it
writes it.
"""

from __future__ import annotations

from dataclasses import replace

from fusec.ir.types import AccessMode, Extern, Instr, LoopNest, Node, Program, Role
from fusec.schedule.rename import read_from, rename_extern

__all__ = ["copied_buffer", "write_directly"]


def write_directly(program: Program) -> Program:
    """Each copy of a whole temporary over an input, undone: its producer writes the input, its readers read it."""
    nodes: list[Node | None] = list(program.nodes)
    readers, writers = dict(program.readers), dict(program.writers)
    removed: set[str] = set()
    for position in range(len(nodes)):
        node = nodes[position]
        names = _copied(program, node) if isinstance(node, LoopNest) else None
        if names is None or any(len(writers[name]) != 1 for name in names):
            continue
        kept, gone = names
        (made,) = writers[gone]
        producer = nodes[made]
        old_readers = [p for p in readers.get(kept, ()) if p > made]
        if old_readers or not isinstance(producer, LoopNest) or not _writes_where_it_reads(producer, kept, gone):
            continue
        nodes[made] = replace(producer, body=tuple(_writing(i, gone, kept) for i in producer.body))
        nodes[position] = None
        moved = [p for p in readers[gone] if p != position]
        for p in moved:
            nodes[p] = _reading(nodes[p], gone, kept)
        readers[kept] = (*readers.get(kept, ()), *moved)
        writers[kept] = (made,)
        removed.add(gone)
    if not removed:
        return program
    buffers = tuple(b for b in program.buffers if b.name not in removed)
    return replace(program, nodes=tuple(n for n in nodes if n is not None), buffers=buffers)


def _reading(node: Node | None, gone: str, kept: str) -> Node:
    assert node is not None, "a copy reads one buffer"
    return rename_extern(node, {gone: kept}) if isinstance(node, Extern) else read_from(node, {gone: kept})


def copied_buffer(nest: LoopNest) -> str | None:
    """t for `%0 = load t[i]; store x[i], %0`."""
    if len(nest.body) != 2:
        return None
    load, store = nest.body
    if load.op != "load" or load.args or store.op != "store" or store.args != (load.out,):
        return None
    assert load.access is not None and store.access is not None
    same = load.access.index == store.access.index and store.access.mode is AccessMode.STORE
    return load.access.buffer if same else None


def _copied(program: Program, nest: LoopNest) -> tuple[str, str] | None:
    """(input, temporary) for a copy of all of the temporary over an input that lies alike in memory."""
    source = copied_buffer(nest)
    if source is None:
        return None
    x, t = program.table[nest.writes[0]], program.table[source]
    alike = (x.dtype, x.device, x.shape, x.strides) == (t.dtype, t.device, t.shape, t.strides)
    own = x.role is Role.INPUT and t.role is Role.TEMPORARY and t.name not in program.returned
    return (x.name, t.name) if alike and own and _covers(nest, x.shape) else None


def _covers(nest: LoopNest, shape: tuple[object, ...]) -> bool:
    """The nest runs over every element: its axes are the dimensions that are longer than 1."""
    return sorted(str(a.extent) for a in nest.axes) == sorted(str(n) for n in shape if n != 1)


def _writes_where_it_reads(producer: LoopNest, kept: str, gone: str) -> bool:
    """One plain store of the temporary, and no load of the input at another index."""
    stores = [i for i in producer.body if i.op == "store" and i.access is not None and i.access.buffer == gone]
    if len(stores) != 1 or len(stores[0].args) != 1:
        return False
    access = stores[0].access
    assert access is not None
    loads = {a.index for a in producer.loads if a.buffer == kept}
    return access.mode is AccessMode.STORE and loads <= {access.index} and gone not in producer.reads


def _writing(instr: Instr, gone: str, kept: str) -> Instr:
    if instr.op != "store" or instr.access is None or instr.access.buffer != gone:
        return instr
    return replace(instr, access=replace(instr.access, buffer=kept))
