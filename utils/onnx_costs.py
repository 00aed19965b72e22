"""Parameters and multiply-adds of an ONNX file, in float or quantized."""
import math
from collections.abc import Sequence

from utils.errors import InputError


def onnx_costs(path: str, size: Sequence[int]) -> tuple[int, int]:
    """(parameters, multiply-adds of one image (H, W)) of the convolutions in a file of export.py.

    Raises InputError where onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError(f"counting the operations of an ONNX file needs onnx, which is not installed ({error}); pip "
                         f"install onnx") from None
    model = onnx.load(path)
    for dim, length in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, *size), strict=True):
        dim.dim_value = length
    del model.graph.value_info[:]  # the shapes of open sizes
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*graph.value_info, *graph.output)}
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    quantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    parameters = work = 0
    for node in graph.node:
        if node.op_type == "Conv":
            tensors = [weights[quantized.get(name, name)] for name in node.input[1:]]
            parameters += sum(map(math.prod, tensors))
            work += math.prod(shapes[node.output[0]]) * math.prod(tensors[0][1:])
    return parameters, work
