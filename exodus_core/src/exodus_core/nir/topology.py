"""The nodes of a NIR graph in the order of computation: nested graphs flattened, recurrent connections set apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from exodus_core.refusals import Refusal

_SPIKING = ("LIF", "IF", "CubaLIF")
_PRODUCTS = ("Linear", "Affine")


def type_of(node: Any) -> str:
    """The type of a node, as files name it."""
    return type(node).__name__


@dataclass
class Topology:
    """A graph without cycles, and the connections that close some.

    Attributes:
        nodes: nodes by name, in an order in which each comes after its sources; those of a graph within the graph are
            named GRAPH.NODE. Without Input and Output.
        sources: for each of them, and for the output, the names of the nodes that it adds up.
        targets: for each of them, and for the input, how many nodes read it.
        recurrent: for neurons, the Linear or Affine node from their spikes to their input, or None for the identity.
        input, output: names of the Input and Output node.
        input_shape, output_shape: of one sample in one step, as the file has them.
        refusals: nodes that have no place in such an order.
    """

    nodes: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    recurrent: dict[str, Any] = field(default_factory=dict)
    input: str = ""
    output: str = ""
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    refusals: list[Refusal] = field(default_factory=list)


def sorted_graph(graph: Any) -> Topology:
    """The topology of a NIRGraph."""
    found = Topology()
    nodes, edges = _flat(graph, found.refusals)
    found.input = _only("Input", nodes, found)
    found.output = _only("Output", nodes, found)
    if found.refusals:
        return found
    found.input_shape = _shape(nodes[found.input].input_type, "input")
    found.output_shape = _shape(nodes[found.output].output_type, "output")
    if not found.input_shape:
        found.refusals.append(Refusal(found.input, "Input", "it has no shape"))
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    targets: dict[str, list[str]] = {name: [] for name in nodes}
    for before, after in edges:
        if before in sources[after]:
            found.refusals.append(Refusal(after, type_of(nodes[after]), f"it has two edges from {before}"))
            continue
        sources[after].append(before)
        targets[before].append(after)
    for name in [name for name, node in nodes.items() if type_of(node) in _SPIKING]:
        _set_apart(name, nodes, sources, targets, found)
    _order(nodes, sources, targets, found)
    return found


def _shape(types: Any, key: str) -> tuple[int, ...]:
    value = types.get(key) if isinstance(types, dict) else None
    return () if value is None else tuple(int(size) for size in value)


def _only(kind: str, nodes: dict[str, Any], found: Topology) -> str:
    names = [name for name, node in nodes.items() if type_of(node) == kind]
    if len(names) == 1:
        return names[0]
    if not names:
        found.refusals.append(Refusal("the graph", "NIRGraph", f"it has no {kind} node"))
    for name in names:
        found.refusals.append(Refusal(name, kind, f"it is one of {len(names)}; a network has one"))
    return ""


def _flat(graph: Any, refusals: list[Refusal]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges of a graph with those of the graphs within it, whose Input and Output are gone."""
    nodes, edges, passing = _nested(graph, "", refusals)
    for name in passing:
        before = [a for a, b in edges if b == name]
        after = [b for a, b in edges if a == name]
        edges = [edge for edge in edges if name not in edge] + [(a, b) for a in before for b in after]
        del nodes[name]
    return nodes, edges


def _nested(
    graph: Any, prefix: str, refusals: list[Refusal]
) -> tuple[dict[str, Any], list[tuple[str, str]], list[str]]:
    """All nodes and edges, and the names of the Input and Output nodes of graphs within the graph."""
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    passing: list[str] = []
    entries: dict[str, str] = {}
    exits: dict[str, str] = {}
    for name, node in graph.nodes.items():
        path = prefix + name
        if type_of(node) != "NIRGraph":
            nodes[path] = node
            entries[name] = exits[name] = path
            continue
        inner, within, deeper = _nested(node, f"{path}.", refusals)
        ends = {
            kind: [f"{path}.{key}" for key, part in node.nodes.items() if type_of(part) == kind]
            for kind in ("Input", "Output")
        }
        if [len(names) for names in ends.values()] != [1, 1]:
            counts = " and ".join(f"{len(names)} {kind}" for kind, names in ends.items())
            refusals.append(Refusal(path, "NIRGraph", f"it has {counts} nodes; one of each is read"))
            continue
        entries[name], exits[name] = ends["Input"][0], ends["Output"][0]
        nodes |= inner
        edges += within
        passing += [*deeper, entries[name], exits[name]]
    for before, after in graph.edges:
        for name in (before, after):
            if name not in graph.nodes:
                reason = f"the edge {before} -> {after} names it, and there is no such node"
                refusals.append(Refusal(prefix + name, "NIRGraph", reason))
        if before in exits and after in entries:
            edges.append((exits[before], entries[after]))
    return nodes, edges, passing


def _set_apart(
    name: str, nodes: dict[str, Any], sources: dict[str, list[str]], targets: dict[str, list[str]], found: Topology
) -> None:
    """Takes the recurrent connection of a neuron out of the graph."""
    loops = [
        product
        for product in targets[name]
        if product == name
        or (type_of(nodes[product]) in _PRODUCTS and sources[product] == [name] and targets[product] == [name])
    ]
    if not loops:
        return
    if len(loops) > 1:
        reason = f"it has {len(loops)} recurrent connections, {', '.join(loops)}; one is computed"
        found.refusals.append(Refusal(name, type_of(nodes[name]), reason))
    for loop in loops:
        targets[name].remove(loop)
        sources[name].remove(loop)
        if loop == name:
            found.recurrent[name] = None
        else:
            found.recurrent[name] = nodes.pop(loop)
            del sources[loop], targets[loop]


def _order(
    nodes: dict[str, Any], sources: dict[str, list[str]], targets: dict[str, list[str]], found: Topology
) -> None:
    leading = _reached([found.output], sources)
    for name, node in nodes.items():
        if name == found.input:
            continue
        if not sources[name]:
            found.refusals.append(Refusal(name, type_of(node), "no edge leads to it"))
        elif name not in leading:
            found.refusals.append(Refusal(name, type_of(node), "it does not lead to the output"))
    if found.input not in leading:
        found.refusals.append(Refusal(found.input, "Input", "it does not lead to the output"))
    left = {name: set(before) for name, before in sources.items()}
    while ready := sorted(name for name, before in left.items() if not before):
        for name in ready:
            del left[name]
            if name not in (found.input, found.output):
                found.nodes[name] = nodes[name]
        for before in left.values():
            before.difference_update(ready)
    for name in left:
        if name in _reached(sources[name], sources, within=set(left)):
            reason = "it is on a loop other than neuron -> Linear or Affine -> the same neuron"
            found.refusals.append(Refusal(name, type_of(nodes[name]), reason))
    found.sources = sources
    found.targets = {name: len(after) for name, after in targets.items()}


def _reached(names: list[str], sources: dict[str, list[str]], within: set[str] | None = None) -> set[str]:
    """The names, and all that lead to them."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found and (within is None or name in within):
            found.add(name)
            todo += sources[name]
    return found
