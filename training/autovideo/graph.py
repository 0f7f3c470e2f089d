"""The graph of a pipeline: which output goes into which input, and in which order the steps can run.

A document names sources; which input of a step each of them fills follows from the types of the ports. What is not
clear is refused, with the edge.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from training.autovideo.plain import hint
from training.autovideo.primitive import Input, Port, Primitive

Say = Callable[[str], None]
"""Takes one problem."""

Written = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""What stands under `in`: a reference, several, or input → reference or references."""


class Reference(NamedTuple):
    """`step` or `step.port`."""

    step: str
    port: str
    """Empty: the output that fits."""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Return the parts of a reference."""
        step, _, port = text.partition(".")
        return cls(step, port)

    def __str__(self) -> str:
        return f"{self.step}.{self.port}" if self.port else self.step


class Node(NamedTuple):
    """A step as the graph sees it."""

    id: str
    primitive: type[Primitive] | None
    """None: it is unknown, which was said elsewhere; edges to and from it are taken as they are."""
    inputs: Written

    def __str__(self) -> str:
        return f"{self.id} ({self.primitive.id})" if self.primitive else self.id


@dataclass(frozen=True)
class Edge:
    """One output of a step that goes into one input of another."""

    source: str
    output: str
    target: str
    input: str
    port: Port

    def __str__(self) -> str:
        return f"{self.source}.{self.output} -> {self.target}.{self.input}"


@dataclass(frozen=True)
class Graph:
    """Steps in the order of the document, edges in the order of their targets' inputs."""

    steps: tuple[str, ...]
    edges: tuple[Edge, ...]
    outputs: tuple[Reference, ...]
    """Of the pipeline, with their ports."""

    def inputs(self, step: str) -> dict[str, tuple[Edge, ...]]:
        """Return the edges into a step by input; inputs that get nothing are left out."""
        found: dict[str, tuple[Edge, ...]] = {}
        for edge in self.edges:
            if edge.target == step:
                found[edge.input] = (*found.get(edge.input, ()), edge)
        return found

    def upstream(self, *steps: str) -> tuple[str, ...]:
        """Return these steps and all that they need, in the order of `order`."""
        order, needs, needed = self.order(), self._needs(), set(steps)
        for step in reversed(order):
            if step in needed:
                needed |= needs[step]
        return tuple(step for step in order if step in needed)

    def order(self) -> tuple[str, ...]:
        """Return the steps, each after those that it needs; otherwise as in the document."""
        needs = self._needs()
        done: dict[str, None] = {}
        left = dict.fromkeys(self.steps)
        while left:
            step = next(step for step in left if needs[step] <= done.keys())
            done[step] = left.pop(step)
        return tuple(done)

    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Return groups of steps that can run side by side; each group needs only groups before it."""
        needs = self._needs()
        depth: dict[str, int] = {}
        for step in self.order():
            depth[step] = max((depth[source] + 1 for source in needs[step]), default=0)
        groups: dict[int, list[str]] = {}
        for step in self.steps:
            groups.setdefault(depth[step], []).append(step)
        return tuple(tuple(groups[level]) for level in sorted(groups))

    def _needs(self) -> dict[str, set[str]]:
        """Return the steps that each step takes something from."""
        found: dict[str, set[str]] = {step: set() for step in self.steps}
        for edge in self.edges:
            found[edge.target].add(edge.source)
        return found

    def unused(self) -> tuple[str, ...]:
        """Return steps that no output of the pipeline needs."""
        needed = set(self.upstream(*(item.step for item in self.outputs)))
        return tuple(step for step in self.steps if step not in needed)


def build(nodes: Sequence[Node], outputs: Sequence[str], say: Say) -> Graph | None:
    """Return the graph of steps, or None after what is wrong with it was said."""
    known = {node.id: node for node in nodes}
    problems: list[str] = []
    edges: list[Edge] = []
    for node in nodes:
        edges += _Target(node, known, problems.append).edges()
    _say_cycles(nodes, known, problems.append)
    ends = _outputs(outputs, known, problems.append)
    for problem in problems:
        say(problem)
    return None if problems else Graph(tuple(known), tuple(edges), tuple(ends))


class _Target:
    """Finds the edges into one step."""

    def __init__(self, node: Node, known: Mapping[str, Node], say: Say) -> None:
        self._node = node
        self._known = known
        self._say = say
        self._complete = True
        """Whether every reference was understood; otherwise nothing is said about what is missing."""

    def edges(self) -> list[Edge]:
        written = self._node.inputs
        filled: dict[str, list[Reference]] = {}
        if isinstance(written, Mapping):
            for name, sources in written.items():
                filled[name] = self._named(name, [sources] if isinstance(sources, str) else sources)
        elif written is not None:
            filled = self._matched([written] if isinstance(written, str) else written)
        primitive = self._node.primitive
        if primitive is None:
            return []
        if self._complete:
            for name, item in primitive.inputs.items():
                if not item.optional and not filled.get(name):
                    self._say(
                        f"edge ? -> {self._node.id}.{name}: {self._node} needs {item.port} there and gets nothing"
                    )
        return [
            Edge(reference.step, reference.port, self._node.id, name, item.port)
            for name, item in primitive.inputs.items()
            for reference in filled.get(name, ())
        ]

    def _named(self, name: str, texts: Sequence[str]) -> list[Reference]:
        """Return the sources of an input that the document names."""
        primitive = self._node.primitive
        item = primitive.inputs.get(name) if primitive else None
        if primitive and item is None:
            has = ", ".join(primitive.inputs) or "none"
            known = hint(name, primitive.inputs)
            self._fail(f"edge {', '.join(texts)} -> {self._node.id}.{name}: {self._node} has no input {name!r}{known} "
                       f"(its inputs: {has})")  # fmt: skip
            return []
        found: list[Reference] = []
        for text in texts:
            offers = self._offers(text, name)
            if offers is None or item is None:
                continue
            fitting = [port for port, kind in offers.items() if kind == item.port]
            if len(fitting) == 1:
                found.append(Reference(Reference.parse(text).step, fitting[0]))
            elif fitting:
                self._ambiguous(text, name, fitting)
            else:
                self._mismatch(text, offers, {name: item})
        if item is not None and len(texts) > 1 and not item.several:
            self._fail(f"edge {texts[1]} -> {self._node.id}.{name}: {self._node} takes one {item.port} there, "
                       f"which {texts[0]} already gives")  # fmt: skip
        self._say_twice(found, name)
        return found

    def _matched(self, texts: Sequence[str]) -> dict[str, list[Reference]]:
        """Return the sources of each input, by type and in order."""
        primitive = self._node.primitive
        by_type: dict[Port, list[Reference]] = {}
        for text in texts:
            offers = self._offers(text, "")
            if offers is None or primitive is None:
                continue
            wanted = {item.port for item in primitive.inputs.values()}
            fitting = [port for port, kind in offers.items() if kind in wanted]
            if not primitive.inputs:
                self._fail(f"edge {text} -> {self._node.id}: {self._node} has no inputs")
            elif not fitting:
                self._mismatch(text, offers, primitive.inputs)
            elif len(fitting) > 1:
                self._ambiguous(text, "", fitting)
            else:
                by_type.setdefault(offers[fitting[0]], []).append(Reference(Reference.parse(text).step, fitting[0]))
        filled: dict[str, list[Reference]] = {}
        for kind, found in by_type.items():
            if self._say_twice(found, ""):
                continue
            inputs = {name: item for name, item in primitive.inputs.items() if item.port == kind} if primitive else {}
            filled |= self._in_order(kind, inputs, found)
        return filled

    def _in_order(self, kind: Port, inputs: Mapping[str, Input], found: list[Reference]) -> dict[str, list[Reference]]:
        """Return the sources of inputs of one type."""
        names = list(inputs)
        needed = [name for name in names if not inputs[name].optional]
        several = [name for name in names if inputs[name].several]
        if several:
            if several != names[-1:] or any(inputs[name].optional for name in names[:-1]):
                self._unclear(kind, names, found)
                return {}
            single = names[:-1]
            filled = {name: [reference] for name, reference in zip(single, found, strict=False)}
            return filled | {several[0]: found[len(single) :]}
        if len(found) > len(names):
            over, last = found[len(names)], found[len(names) - 1]
            ports = ", ".join(names)
            count = "one" if len(names) == 1 else str(len(names))
            self._fail(f"edge {over} -> {self._node.id}: one too many: {self._node} takes {count} {kind} ({ports}), "
                       f"the last from {last}")  # fmt: skip
            return {}
        for chosen in (names, needed):
            if len(chosen) == len(found):
                return {name: [reference] for name, reference in zip(chosen, found, strict=True)}
        if len(found) < len(needed):
            return {name: [reference] for name, reference in zip(needed, found, strict=False)}
        self._unclear(kind, names, found)
        return {}

    def _offers(self, text: str, name: str) -> Mapping[str, Port] | None:
        """Return the outputs that a reference may mean, or None after what is wrong with it was said."""
        reference = Reference.parse(text)
        edge = f"edge {text} -> {self._node.id}{'.' if name else ''}{name}"
        source = self._known.get(reference.step)
        if source is None:
            self._fail(f"{edge}: there is no step {reference.step!r}{hint(reference.step, self._known)}")
        elif reference.step == self._node.id:
            self._fail(f"{edge}: a step cannot take what it gives itself")
        elif source.primitive is None:
            self._complete = False
        elif reference.port and reference.port not in source.primitive.outputs:
            self._fail(f"{edge}: {_no_output(source, reference.port)}")
        else:
            outputs = source.primitive.outputs
            return {reference.port: outputs[reference.port]} if reference.port else outputs
        return None

    def _fail(self, problem: str) -> None:
        self._complete = False
        self._say(problem)

    def _mismatch(self, text: str, offers: Mapping[str, Port], inputs: Mapping[str, Input]) -> None:
        source = self._known[Reference.parse(text).step]
        start = f"{source.id}.{next(iter(offers))}" if len(offers) == 1 else source.id
        end = f"{self._node.id}.{next(iter(inputs))}" if len(inputs) == 1 else self._node.id
        takes = ", ".join(dict.fromkeys(str(item.port) for item in inputs.values()))
        gives = ", ".join(dict.fromkeys(str(port) for port in offers.values())) or "nothing"
        self._fail(f"edge {start} -> {end}: {self._node} takes {takes} there, {source} gives {gives}")

    def _ambiguous(self, text: str, name: str, fitting: Sequence[str]) -> None:
        choices = " or ".join(f"{text}.{port}" for port in fitting)
        self._fail(f"edge {text} -> {self._node.id}{'.' if name else ''}{name}: ambiguous: write {choices}")

    def _unclear(self, kind: Port, names: Sequence[str], found: Sequence[Reference]) -> None:
        sources = ", ".join(str(reference) for reference in found)
        example = f"in: {{{names[0]}: {found[0]}, …}}"
        self._fail(f"edge {sources} -> {self._node.id}: ambiguous: {self._node} takes {kind} as {', '.join(names)}; "
                   f"name the inputs, `{example}`")  # fmt: skip

    def _say_twice(self, found: Sequence[Reference], name: str) -> bool:
        twice = [reference for reference in dict.fromkeys(found) if found.count(reference) > 1]
        for reference in twice:
            self._fail(f"edge {reference} -> {self._node.id}{'.' if name else ''}{name}: stands there twice")
        return bool(twice)


def _no_output(source: Node, port: str) -> str:
    outputs = source.primitive.outputs if source.primitive else {}
    return f"{source} has no output {port!r}{hint(port, outputs)} (its outputs: {', '.join(outputs) or 'none'})"


def _sources(written: Written) -> list[str]:
    """Return the steps that an `in` names."""
    if written is None:
        return []
    if isinstance(written, Mapping):
        return [step for item in written.values() for step in _sources(item)]
    texts = [written] if isinstance(written, str) else written
    return [Reference.parse(text).step for text in texts]


def _say_cycles(nodes: Sequence[Node], known: Mapping[str, Node], say: Say) -> None:
    """Say one cycle for each group of steps that wait for one another; edges of a step to itself were said."""
    needs = {n.id: [s for s in dict.fromkeys(_sources(n.inputs)) if s in known and s != n.id] for n in nodes}
    while needs:
        free = [step for step, sources in needs.items() if not any(source in needs for source in sources)]
        if not free:
            chain = [next(iter(needs))]
            while chain[-1] not in chain[:-1]:
                chain.append(next(source for source in needs[chain[-1]] if source in needs))
            free = chain[chain.index(chain[-1]) :]
            say(f"steps in a cycle: {' -> '.join(reversed(free))}")
        needs = {step: sources for step, sources in needs.items() if step not in free}


def _outputs(outputs: Sequence[str], known: Mapping[str, Node], say: Say) -> list[Reference]:
    found: list[Reference] = []
    for text in outputs:
        reference = Reference.parse(text)
        node = known.get(reference.step)
        if node is None:
            say(f"outputs: {text}: there is no step {reference.step!r}{hint(reference.step, known)}")
            continue
        if node.primitive is None:
            continue
        ports = node.primitive.outputs
        if reference.port not in ports and (reference.port or not ports):
            say(f"outputs: {text}: {_no_output(node, reference.port)}")
        elif not reference.port and len(ports) > 1:
            say(f"outputs: {text}: ambiguous: write {' or '.join(f'{text}.{port}' for port in ports)}")
        else:
            found.append(Reference(node.id, reference.port or next(iter(ports))))
    for reference in dict.fromkeys(found):
        if found.count(reference) > 1:
            say(f"outputs: {reference} stands there twice")
    return found
