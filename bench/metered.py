"""Launches and bytes of inference and training cases, for fusec and for the peer: a table any machine can make.

    python3 -m bench.metered [--cases rms llama_infer] [--out bench/results]

kernels, calls   launches of one step: generated kernels, and library calls
bytes / minimum  unique bytes of every launch, summed (each with a perfect cache), over the step's inputs read once and
                 its outputs written once; an input written in place is an output too; library calls count their
                 operands; what a training step saves between its forward and its backward graph is no input and no
                 output
bytes / graphs   the same over what each graph reads and writes once, what a forward graph saves out and in included
avoidable        what kernels hand to each other through memory, and repeated reads of one buffer by several launches,
                 over what kernels must read from and leave for the outside given the same library calls; 0 is perfect
requested        bytes asked for inside launches over unique ones: above 1 are second passes and broadcast reads

The peer's bytes / minimum of a model follows from its avoidable, where fusec's schedule makes as many library calls: of
a model these move most of the bytes.
fusec's bytes come from its Schedule at full size; tests hold them to what the interpreter meters at small sizes.
Of a buffer that several launches read, the largest single read must be and the others are repeated, disjoint or not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

from bench.cases import Case
from bench.peer import PEER, SOURCE, Peer
from bench.schedules import capture, scheduled
from bench.schema import Result, Row
from bench.table import Cell, markdown, table
from bench.training import EVERY
from fusec.capture.graph import CapturedGraph
from fusec.inspect.eager import extern_bytes
from fusec.ir.analysis import instr_axes, varying
from fusec.ir.kernels import DimKind, KernelPlan, Schedule
from fusec.ir.sizes import hint_of
from fusec.ir.types import Buffer, Extern, TensorView
from fusec.schedule.traffic import traffic

RESULTS = Path(__file__).resolve().parent / "results"
TANGENT = "grad_"  # names of the gradients that enter a backward graph
SLACK = 0.005  # the peer's figures are rounded to two decimals


@dataclass(frozen=True)
class Counts:
    """One step: launches, and bytes of global memory. must: the least the kernels could read and write.

    minimum: the step's inputs and outputs once.   graphs: those of each of its graphs once.
    """

    kernels: int
    calls: int
    kernel_bytes: int
    call_bytes: int
    minimum: int
    graphs: int
    must: int
    requested: int

    @property
    def graphs_ratio(self) -> float:
        return (self.kernel_bytes + self.call_bytes) / self.graphs

    @property
    def bytes_ratio(self) -> float:
        return (self.kernel_bytes + self.call_bytes) / self.minimum

    @property
    def avoidable(self) -> float:
        return (self.kernel_bytes - self.must) / self.must if self.must else 0.0

    @property
    def requested_ratio(self) -> float:
        return self.requested / self.kernel_bytes if self.kernel_bytes else 1.0

    def figures(self) -> dict[str, float]:
        return {**figures(self.as_peer()), "graphs_ratio": round(self.graphs_ratio, 2)}

    def as_peer(self) -> Peer:
        """The same five figures the peer has, rounded alike."""
        ratios = (self.bytes_ratio, self.avoidable, self.requested_ratio)
        return Peer(self.kernels, self.calls, *(round(r, 2) for r in ratios))


def count(schedule: Schedule) -> Counts:
    table_ = schedule.table
    plans = [s for s in schedule.steps if isinstance(s, KernelPlan)]
    calls = [s for s in schedule.steps if isinstance(s, Extern)]
    inputs = {name for name in schedule.inputs if name is not None}
    left = {o.buffer for o in schedule.outputs if isinstance(o, TensorView)} - inputs | written_inputs(schedule)
    used = {b for step in schedule.steps for b in step.reads} & inputs
    once = sum(table_[b].nbytes for b in used) + sum(table_[b].nbytes for b in left)
    return Counts(
        kernels=len(plans),
        calls=len(calls),
        kernel_bytes=sum(p.cost.bytes_read + p.cost.bytes_written for p in plans),
        call_bytes=sum(sum(extern_bytes(c, table_)) for c in calls),
        minimum=once,
        graphs=once,
        must=necessary(plans, calls, left, table_),
        requested=sum(requested(leaf, table_) for p in plans for leaf in p.leaves),
    )


def written_inputs(schedule: Schedule) -> set[str]:
    """Inputs that the program changes in place."""
    written = {b for s in schedule.steps for b in (s.writes if isinstance(s, KernelPlan) else s.mutates)}
    return written.intersection(schedule.inputs)


def requested(plan: KernelPlan, buffers: dict[str, Buffer]) -> int:
    """Bytes of every lane of every load and store: a tile dimension that an access lacks repeats it once a program."""
    values = varying(plan.body, plan.axes)
    found = 0
    for instr in plan.body:
        if instr.access is None:
            continue
        axes = instr_axes(instr, values)
        points = prod(hint_of(a.extent) for a in plan.axes if a.name in axes)
        lanes = _loaded(axes, plan) if instr.op == "load" else points
        found += lanes * buffers[instr.access.buffer].itemsize
    return found


def _loaded(axes: frozenset[str], plan: KernelPlan) -> int:
    """Lanes of a load over all programs. Axes that share a tile dimension are one index: the load runs over all."""
    lanes = 1
    for dim in plan.dims:
        extent = hint_of(plan.extent(dim))
        if axes.intersection(dim.axes):
            lanes *= extent
        elif dim.kind is DimKind.GRID:
            lanes *= -(-extent // plan.tile.block(dim.name))
    return lanes


def necessary(
    plans: Sequence[KernelPlan], calls: Sequence[Extern], returned: Iterable[str], buffers: dict[str, Buffer]
) -> int:
    """Bytes that kernels must read from outside, once a buffer, and those they leave for the outside."""
    wanted = set(returned) | {b for c in calls for b in c.reads}
    made: set[str] = set()  # an input that is written in place is read from outside before that
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    for plan in plans:
        for leaf in plan.leaves:
            moved = traffic(leaf.body, leaf.axes, buffers)
            for buffer, elements in moved.read.items():
                if buffer not in made:
                    reads[buffer] = max(reads.get(buffer, 0), elements * buffers[buffer].itemsize)
            for buffer, elements in moved.written.items():
                if buffer in wanted:
                    writes[buffer] = writes.get(buffer, 0) + elements * buffers[buffer].itemsize
        made.update(plan.writes)
    return sum(reads.values()) + sum(writes.values())


def implied(peer: Peer, counts: Counts) -> Peer:
    """The peer with its bytes / minimum: kernels that move (1 + avoidable) times what they must, and the same calls."""
    if peer.bytes_ratio is not None or peer.avoidable is None or peer.calls != counts.calls:
        return peer
    moved = counts.must * (1 + peer.avoidable) + counts.call_bytes
    return replace(peer, bytes_ratio=round(moved / counts.minimum, 2))


def total(counts: Sequence[Counts]) -> Counts:
    """Of several graphs of one step."""
    fields = [asdict(c) for c in counts]
    return Counts(**{name: sum(f[name] for f in fields) for name in fields[0]})


def step(case: Case) -> Counts:
    """One step of a case: its graphs added up."""
    graphs = capture(case.build, case.run)
    found = [(graph, scheduled(graph)) for graph in graphs]
    return replace(total([count(schedule) for _, schedule in found]), minimum=least(found))


def least(graphs: Sequence[tuple[CapturedGraph, Schedule]]) -> int:
    """Bytes of a step's inputs read once and its outputs written once; saved values are neither."""
    saved = sum(not name.startswith(TANGENT) for g, _ in graphs if g.kind == "backward" for name in g.names)
    found = 0
    for graph, schedule in graphs:
        buffers = schedule.table
        inputs = {b: name for b, name in zip(schedule.inputs, graph.names, strict=True) if b is not None}
        last = len(schedule.outputs) - (saved if graph.kind == "forward" else 0)
        returned = {o.buffer for o in schedule.outputs[:last] if isinstance(o, TensorView)} - inputs.keys()
        returned |= written_inputs(schedule)
        used = {b for s in schedule.steps for b in s.reads} | {
            o.buffer for o in schedule.outputs[last:] if isinstance(o, TensorView)
        }
        read = {b for b, name in inputs.items() if b in used and (graph.kind != "backward" or name.startswith(TANGENT))}
        found += sum(buffers[b].nbytes for b in read) + sum(buffers[b].nbytes for b in returned)
    return found


def meter(name: str) -> list[Row]:
    """The peer's row of one case and fusec's; a note in place of figures when it could not be scheduled."""
    case, peer = EVERY[name], PEER[name]
    theirs, ours = Row(name, "torch.compile", case.sizes, note=SOURCE), Row(name, "fusec", case.sizes)
    try:
        counts = step(case)
    except Exception as error:  # one case must not take the others' figures with it
        note = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        return [replace(theirs, counts=figures(peer)), replace(ours, note=note)]
    return [
        replace(theirs, counts=figures(implied(peer, counts))),
        replace(ours, bytes=counts.minimum, counts=counts.figures()),
    ]


def figures(of: Peer) -> dict[str, float]:
    """Those that are known, by name."""
    return {name: value for name, value in asdict(of).items() if value is not None}


def above(row: Row) -> str:
    """What of a fusec row is above the peer's: "kernels and calls", "avoidable", both, or nothing."""
    if not row.counts:
        return row.note
    ours, peer = row.counts, PEER[row.case]
    if peer.kernels is None or peer.calls is None or peer.avoidable is None:
        return ""
    found = []
    if ours["kernels"] + ours["calls"] > peer.kernels + peer.calls:
        found.append("launches")
    if ours["avoidable"] > peer.avoidable + SLACK:
        found.append("avoidable")
    return " and ".join(found)


def cells(rows: Iterable[Row]) -> list[list[Cell]]:
    """One line a case: fusec's figure beside the peer's."""
    rows = list(rows)
    peers = {row.case: row.counts for row in rows if row.variant != "fusec"}
    lines: list[list[Cell]] = []
    for row in (row for row in rows if row.variant == "fusec"):
        line: list[Cell] = [row.case]
        for field in ("kernels", "calls", "bytes_ratio", "graphs_ratio", "avoidable", "requested_ratio"):
            form = "{:.2f}" if field.endswith("ratio") or field == "avoidable" else "{:.0f}"
            both = (counts.get(field) for counts in (row.counts, peers[row.case]))
            line.append(" / ".join("-" if n is None else form.format(n) for n in both))
        lines.append([*line, above(row) or ("no" if peers[row.case] else "-")])
    return lines


HEADERS = ("case", "kernels", "calls", "bytes / minimum", "bytes / graphs", "avoidable", "requested", "above the peer")


def page(result: Result) -> str:
    """The committed Markdown page."""
    assert __doc__ is not None
    definitions = __doc__.split("\n\n")[2]
    return f"""# Launches and bytes, metered

Each cell is fusec's figure / the peer's. The peer is {SOURCE}.

{markdown(HEADERS, cells(result.rows))}

```
{definitions}
```

Of the models (llama, bert, gpt2) the peer's bytes / minimum follows from its avoidable, with what the library calls of
fusec's schedule move (most of the bytes), where both make equally many.

{result.made_by}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.metered", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(PEER), default=list(PEER), metavar="CASE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of metered.json and metered.md")
    options = parser.parse_args(argv)
    result = Result.new("metered", "python3 -m bench.metered")
    for name in options.cases:
        print(f"metering {name}", file=sys.stderr, flush=True)
        result = result.with_rows(meter(name))
    result = replace(result, complete=set(options.cases) == set(PEER))
    print(table(HEADERS, cells(result.rows)))
    if result.complete:
        result.write(options.out / "metered.json")
        (options.out / "metered.md").write_text(page(result))
    worse = [row for row in result.rows if row.variant == "fusec" and above(row)]
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
