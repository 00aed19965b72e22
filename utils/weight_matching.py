"""Which tensor of a file is which of a network: by name, and where the names differ by structure.

By name, anything may precede the names, as in `model.encoder.conv1.weight`. By structure, the layers of the network
have to follow one another in the file with the same shapes, at one place only, and in an order that is certain.
"""
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import torch

from utils.errors import InputError
from utils.weight_files import COUNTER, StateDict, without_wrappers


@dataclass
class Match:
    """Tensors of a file for those of a network. All names are without wrappers, except the network's own."""
    state: StateDict
    how: str  # "by name", "by structure"
    names: dict[str, str]  # the network's -> the file's
    expected: dict[str, str]  # the network's -> what the file calls it, or would
    prefix: str = ""  # what precedes the names in the file
    inside: list[str] = field(default_factory=list)  # names of floating-point tensors within what matches, unused

    def __str__(self):
        """How it was matched, for a line of the log."""
        wrappers = f", without {' and '.join(self.state.wrappers)}" if self.state.wrappers else ""
        ends = [" = ".join(name.rpartition(".")[0] for name in pair[::-1]) for pair in self.names.items()]
        return (f"{self.how}{' ' * bool(self.state.place)}{self.state.place}"
                f"{f', behind {self.prefix!r}' if self.prefix else ''}{wrappers}"
                f"{f' ({ends[0]}, ..., {ends[-1]})' if self.how == 'by structure' else ''}")


def due_tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a file of weights has to fill: parameters and buffers, without BN counters."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTER)}


def best_match(due: Mapping[str, torch.Tensor], states: Sequence[StateDict], layer_names: Mapping[str, str],
               source: str) -> Match | None:
    """The match that fills most of `due` (name -> tensor; only shapes are looked at); None if nothing fits.

    layer_names: layers of the network -> other names that a file may have for them. Raises InputError, which names
    `source`, if the whole network is in the file several times with different values.
    """
    if not due:
        return None
    matches = list(matches_by_name(due, states, layer_names))
    most = max((len(match.names) for match in matches), default=0)
    if most < len(due) or all(match.inside for match in matches if len(match.names) == most):
        by_structure = list(matches_by_structure(due, states))
        if by_structure:
            return choose(by_structure, source)
    best = [match for match in matches if len(match.names) == most]
    if most == len(due):
        return choose([match for match in best if not match.inside] or best, source)
    return best[0] if best else None


def choose(matches: Sequence[Match], source: str) -> Match:
    """Of several copies of the network in one file: the averaged one (EMA), or the first if all are equal."""
    averaged = [match for match in matches
                if "ema" in re.split(r"[^a-z]+", f"{match.state.place} {match.prefix}".lower())]
    first, *others = averaged or matches
    for match in others:
        pairs = [(match.state.tensors[theirs], first.state.tensors[first.names[own]])
                 for own, theirs in match.names.items()]
        if not all(a is b or a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs):
            raise InputError(f"{source} contains the encoder several times with different values, {first} and {match}; "
                             f"save the state dict of one of them as a file of its own", about="pretrained")
    return first


def matches_by_name(due: Mapping[str, torch.Tensor], states: Sequence[StateDict],
                    layer_names: Mapping[str, str]) -> Iterator[Match]:
    """Every match by name of every state dict, one for each thing that precedes the names."""
    for spelling in spellings(due, layer_names):
        for state in states:
            yield from matches_of_spelling(due, state, spelling)
            # timm has features_conv0 in encoders for features.conv0 in classifiers
            loose = {name.replace("_", "."): own for name, own in spelling.items()}
            if len(loose) == len(spelling):
                yield from matches_of_spelling(due, state, loose, lambda name: name.replace("_", "."))


def matches_of_spelling(due: Mapping[str, torch.Tensor], state: StateDict, spelling: Mapping[str, str],
                        spell: Callable[[str], str] = str) -> Iterator[Match]:
    """The matches of one state dict and one spelling, {name in it: own name}.

    spell: from a name in the file to one of the same length in the spelling.
    """
    found, behind = defaultdict(dict), defaultdict(list)  # what precedes the names -> matches; -> names that are not
    for name, tensor in state.tensors.items():
        for start in component_starts(name):
            own = spelling.get(spell(name[start:]))
            if own and tensor.shape == due[own].shape:
                found[name[:start]][own] = name
            elif not own and tensor.is_floating_point():
                behind[name[:start]].append(name)
    last = list(spelling)[-1]
    parents = {name[:start] for name in spelling for start in component_starts(name)}
    for prefix, names in found.items():
        inside = []  # The classifier follows the encoder. What belongs to an earlier part of it, such as layer1.2 of a
        for name in behind[prefix]:  # ResNet-34 for a ResNet-18, says that the file is of another network.
            tail = spell(name[len(prefix):])
            parent = max((tail[:start] for start in component_starts(tail) if tail[:start] in parents), key=len)
            if not last.startswith(parent):
                inside.append(name)
        expected = {own: prefix + name for name, own in spelling.items()}
        yield Match(state, "by name", names, expected, prefix, inside)


def spellings(due: Mapping[str, torch.Tensor], layer_names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What a file may call the tensors, each as a dict {name in the file: own name}, most literal first.

    These are the own names and the other names of the layers, also without what precedes them all: an encoder may hold
    its layers as `net`.
    """
    other = {f"{layer_names[layer]}.{leaf}": f"{layer}.{leaf}"
             for layer, _, leaf in (name.rpartition(".") for name in due) if layer in layer_names}
    for names in ({without_wrappers(name): name for name in due}, {name: name for name in due}, other):
        while len(names) == len(due):
            yield names
            if len({name.partition(".")[0] for name in names}) > 1 or not all("." in name for name in names):
                break
            names = {name.partition(".")[2]: own for name, own in names.items()}


def component_starts(name: str) -> list[int]:
    """Where the components of a name begin: a.b.c -> 0, 2, 4."""
    return [0, *(i + 1 for i, character in enumerate(name) if character == ".")]


def matches_by_structure(due: Mapping[str, torch.Tensor], states: Sequence[StateDict]) -> Iterator[Match]:
    """A match for each state dict in which the layers of `due` are at exactly one place.

    Layers are compared by the names and shapes of their own tensors (weight, bias, running_mean, ...).
    """
    own = layers(due)
    for state in states:
        theirs = layers(state.tensors)
        places = [start for start in range(len(theirs) - len(own) + 1)
                  if all(a.shapes == b.shapes for a, b in zip(own, theirs[start:], strict=False))]
        if len(places) == 1:
            run = theirs[places[0]:places[0] + len(own)]
            if order_is_certain(own, run) and order_is_certain(run, own):
                names = {a.join(leaf): b.join(leaf) for a, b in zip(own, run, strict=True) for leaf, _ in a.shapes}
                yield Match(state, "by structure", names, names)


@dataclass
class Layer:
    """A module's own tensors."""
    path: list[str]  # the components of its name
    shapes: tuple  # (last component of a tensor's name, shape), sorted

    def join(self, leaf: str) -> str:
        return ".".join([*self.path, leaf])


def layers(tensors: Mapping[str, torch.Tensor]) -> list[Layer]:
    """The layers of a state dict in its order."""
    return [Layer(path, tuple(sorted((name.rpartition(".")[2], tuple(tensors[name].shape)) for name in names)))
            for path, names in groupby(tensors, key=lambda name: name.split(".")[:-1])]


def order_is_certain(own: Sequence[Layer], others: Sequence[Layer], depth: int = 0) -> bool:
    """Whether no two parts of a network could be exchanged unnoticed; `others` are its layers' partners.

    A module's layers follow one another, and of two modules in one that have the same shapes, either the names differ
    in numbers that rise, or the layers are called the same on both sides.
    """
    children = defaultdict(list)  # component at this depth -> indices
    last = None
    for index, layer in enumerate(own):
        component = layer.path[depth] if depth < len(layer.path) else ""
        if component != last and component in children:
            return False
        children[component].append(index)
        last = component
    alike = defaultdict(list)
    for component, indices in children.items():
        alike[tuple(own[index].shapes for index in indices)].append(component)
    for components in alike.values():
        rising = all(re.sub(r"\d+", "0", a) == re.sub(r"\d+", "0", b) and numbers(a) < numbers(b)
                     for a, b in pairwise(components))
        if not rising and not all(own[index].path[depth:] == others[index].path[-len(own[index].path[depth:]):]
                                  for component in components for index in children[component]):
            return False
    return all(order_is_certain([own[i] for i in indices], [others[i] for i in indices], depth + 1)
               for component, indices in children.items() if component)


def numbers(text: str) -> list[int]:
    """The numbers in a text."""
    return [int(number) for number in re.findall(r"\d{1,9}", text)]
