"""int8: an ONNX file quantized by ONNX Runtime's tools. What is left in float32 is chosen by measurement."""
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from utils.errors import InputError
from utils.exported import ExportedNetwork
from utils.files import write_atomically
from utils.progress import progress_bar
from utils.runtime import Precision
from VOC12.loading import batches

IMAGES = 4, 64  # at least, and as many as are used of a longer list
HELD_OUT = 4  # every so many images measure, and the others calibrate
WORTH = 0.1  # a group of nodes stays in float32 if that saves this share of the pixels that change their class
FIRST = "the first convolution"  # always in float32: it reads 3 channels, for which onnxruntime's int8 is slower


class Reader:
    """What onnxruntime takes calibration images from."""

    def __init__(self, inputs: Sequence[dict[str, np.ndarray]]):
        self.inputs = iter(inputs)

    def get_next(self) -> dict | None:
        """The input of the next pass, or None at the end."""
        return next(self.inputs, None)


def quantize(source: Path, target: Path, network: ExportedNetwork, loader: Iterable, notes: Mapping[str, str]
             ) -> list[str]:
    """Writes the int8 form of an ONNX file of export.py: static ranges, weights per channel.

    network: that of the source. loader: gives Samples of one image, see choose_images. What prepare names stays in
    float32. Groups of nodes that are known to be sensitive (the first convolutions, the last one, the resizes) are left
    in float32 too, one at a time, and those stay so that lower the share of changed pixels by WORTH of it. Returns
    lines on what was measured.
    """
    import onnx

    precision = Precision("float32", torch.device("cpu"))
    precision.place(network)
    images = [precision.batch(sample)[0] for sample in batches(loader)]
    held_out = images[::HELD_OUT]
    calibration = [{"image": network.as_input(image).numpy()} for i, image in enumerate(images) if i % HELD_OUT]
    expected = [classes(network, image) for image in held_out]
    with tempfile.TemporaryDirectory() as folder, Quiet():
        prepared = Path(folder) / "prepared.onnx"
        always = prepare(source, prepared)
        groups = {name: nodes for name, nodes in sensitive_nodes(onnx.load(prepared)).items()
                  if not set(nodes) <= set(always)}
        changed, files = {}, {}

        def measure(name: str, exclude: Sequence[str]) -> None:
            files[name] = Path(folder) / f"{len(files)}.onnx"
            write_int8(prepared, files[name], calibration, [*always, *exclude])
            model = onnx.load(files[name])
            onnx.helper.set_model_props(model, {**notes, "in_float32": name})
            onnx.save(model, files[name])
            found = ExportedNetwork(files[name])
            changed[name] = share_changed(expected, [classes(found, image) for image in held_out])

        with progress_bar(total=len(groups) + 1, unit="form", desc="int8") as bar:
            for name, exclude in {FIRST: [], **groups}.items():
                measure(name, exclude)
                bar.update()
            worth = [name for name in groups if changed[name] <= (1 - WORTH) * changed[FIRST]]
            kept = " and ".join(worth) or FIRST
            if len(worth) > 1:
                measure(kept, [node for name in worth for node in groups[name]])
        best = min(changed, key=changed.get)
        if changed[best] < (1 - WORTH) * changed[kept]:  # together they are worse than one
            kept = best
        with write_atomically(target) as temporary:
            temporary.write_bytes(files[kept].read_bytes())
    tried = ", ".join(f"{100 * share:.2f} % with {name}" for name, share in changed.items() if name != kept)
    return [f"int8: ranges of {len(calibration)} images. On {len(held_out)} others the class of "
            f"{100 * changed[kept]:.2f} % of the pixels changes, with {kept} in float32; tried too: {tried}"]


def choose_images(files: Sequence[Path]) -> list[Path]:
    """IMAGES[1] of the files, evenly spaced, or all of fewer. Raises InputError if there are too few."""
    if len(files) < IMAGES[0]:
        raise InputError(f"the calibration list has {len(files)} image{'s' if len(files) != 1 else ''}; give "
                         f"{IMAGES[0]} or more, of the kind that the network will see", about="calibration_list")
    number = min(len(files), IMAGES[1])
    return [files[i * len(files) // number] for i in range(number)]


def prepare(source: Path, target: Path, channels_last: bool = True) -> list[str]:
    """Writes an ONNX file as onnxruntime's quantization wants it, and returns the names of the nodes that stay in
    float32 in any case: the first convolution, and what follows the last one: resize and argmax.

    channels_last: resize the logits with channels last if an argmax follows. Beside convolutions in int8, onnxruntime
    takes half of the time for that; OpenVINO takes longer.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, target, skip_symbolic_shape=True)
    model = onnx.load(target)
    nodes = model.graph.node
    convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    tail = {node.op_type: node for node in nodes[convolutions[-1] + 1:]}
    if channels_last and {"Resize", "ArgMax"} <= tail.keys() and tail["ArgMax"].input[0] == tail["Resize"].output[0]:
        resize_channels_last(model, tail["Resize"], tail["ArgMax"])
        onnx.save(model, target)
    return [nodes[convolutions[0]].name, *(node.name for node in nodes[convolutions[-1] + 1:])]


def resize_channels_last(model, resize, argmax) -> None:
    """Turns Resize -> ArgMax over (N, C, H, W) into Transpose -> Resize -> ArgMax over (N, H, W, C)."""
    import onnx
    order, graph = [0, 2, 3, 1], model.graph
    place = list(graph.node).index(resize)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(order), "channels_last"))
    for i, name in enumerate(resize.input):
        if i == 0:
            new = onnx.helper.make_node("Transpose", [name], [f"{name}_channels_last"], perm=order)
        elif name and i > 1:  # scales or sizes; 1 is the region of another mode
            new = onnx.helper.make_node("Gather", [name, "channels_last"], [f"{name}_channels_last"])
        else:
            continue
        new.name = resize.input[i] = new.output[0]
        graph.node.insert(place, new)
    next(attribute for attribute in argmax.attribute if attribute.name == "axis").i = 3
    known = [value for value in graph.value_info if value.name != resize.output[0]]
    del graph.value_info[:]
    graph.value_info.extend(known)


def sensitive_nodes(model) -> dict[str, list[str]]:
    """{what a group is called: names of its nodes}, of an ONNX model whose nodes are in the order of computation."""
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    resizes = [node.name for node in model.graph.node if node.op_type == "Resize"]
    return {"the first four convolutions": convolutions[:4], "the last convolution": convolutions[-1:],
            "the resizes": resizes}


def write_int8(source: Path, target: Path, inputs: Sequence[dict[str, np.ndarray]], exclude: Sequence[str]) -> None:
    """Quantizes a prepared file. exclude: names of the nodes that stay in float32."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    quantize_static(source, target, Reader(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=list(exclude),
                    extra_options={"CalibMovingAverage": True})  # the extremes of single images would widen the ranges


@torch.no_grad()
def classes(network: ExportedNetwork, image: torch.Tensor) -> torch.Tensor:
    """The classes of an image, at the size of the network's output."""
    return network(image).argmax(1)


def share_changed(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """The share of all pixels whose classes differ."""
    different = sum((a != b).sum().item() for a, b in zip(expected, found, strict=True))
    return different / sum(a.numel() for a in expected)


class Quiet:
    """Keeps what onnxruntime's tools log through the root logger off the screen."""

    def __enter__(self):
        self.disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *exception):
        logging.disable(self.disabled)
