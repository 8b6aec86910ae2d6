"""A JAX function of one batch as an ONNX graph: what convolutional networks with crops are made of, and no more.

The function is traced with a batch of any size, and its operations are put into ONNX one by one. Where it has a way of
its own for each platform, that for TPUs is taken: it is made of convolutions and products, which every ONNX runtime has
fast. What depends on no input is computed here. Images stay channels-last, as in JAX: the transpositions around each
convolution are for the runtime's optimiser to cancel.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9  # of ONNX 1.14, 2023: later ones would keep older runtimes out and have nothing that is needed here

_SAME = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow"},
    **{"and": "And", "or": "Or", "not": "Not", "ge": "GreaterOrEqual", "le": "LessOrEqual", "gt": "Greater"},
    **{"lt": "Less", "eq": "Equal", "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt"},
    **{"floor": "Floor", "ceil": "Ceil", "sign": "Sign", "tanh": "Tanh", "logistic": "Sigmoid"},
    "erf": "Erf",
}
_IDENTITIES = ("stop_gradient", "copy", "copy_p", "optimization_barrier")
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where an operation that is a function keeps it


class _Tensor(NamedTuple):
    """A tensor of the graph; `full` is whether it has its shape already, or some sides of 1 that are to be repeated."""

    name: str
    full: bool = True


class UnknownOperation(NotImplementedError):
    """The function has an operation that is not known here."""


def convert(
    function: Callable[[jax.Array], Mapping[str, jax.Array]], example: jax.ShapeDtypeStruct, *, input_name: str
) -> onnx.ModelProto:
    """`function` as a checked ONNX model.

    Args:
        function: from one array [b, ...] to a dictionary of arrays, whose names become those of the outputs.
        example: shape and dtype of its argument; the first side is the size of a batch, whatever it is here.
        input_name: of the argument, in the model.

    Raises:
        UnknownOperation: if it has an operation that is not known here.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    aval = jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(aval)
    graph = _Graph(batch, input_name)
    outputs = graph.run(traced.jaxpr, traced.consts, [_Tensor(input_name)])
    named, tree = [], jax.tree.leaves(shapes)
    for (path, _), value, shape in zip(jax.tree_util.tree_leaves_with_path(shapes), outputs, tree, strict=True):
        name = path[0].key
        graph.add("Identity", [graph.full(value, shape)], name)
        named.append(_info(name, shape))
    nodes = helper.make_graph(graph.nodes, "model", [_info(input_name, aval)], named, graph.constants)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(nodes, opset_imports=[opset], ir_version=IR_VERSION, producer_name="c2f_jax")
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(name: str, aval: Any) -> onnx.ValueInfoProto:
    shape = [side if isinstance(side, int) else "batch" for side in aval.shape]
    return helper.make_tensor_value_info(name, _dtype(aval.dtype), shape)


def _dtype(dtype: Any) -> int:
    if np.dtype(dtype) == np.float64:
        return TensorProto.FLOAT  # JAX's weak numbers
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Graph:
    """Nodes and constants, as they are added."""

    def __init__(self, batch: Any, input_name: str):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._batch, self._input_name = batch, input_name
        self._known: dict[tuple[Any, ...], str] = {}  # constants and shapes that have a name already
        self._count = 0

    # --- The graph's own words. ---

    def _fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """A node with one output; returns its name."""
        name = output or self._fresh()
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """The name of an array in the model; equal ones are kept once."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._fresh()
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def shape(self, sides: Sequence[Any]) -> str:
        """The name of int64 [rank]: a shape, some sides of which may be multiples of the batch's size."""
        if all(isinstance(side, int) for side in sides):
            return self.constant(np.array(sides, np.int64))
        if ("shape", *sides) not in self._known:
            parts = [self._times_batch(self._multiple(side)) if not isinstance(side, int) else side for side in sides]
            names = [self.constant(np.array([part], np.int64)) if isinstance(part, int) else part for part in parts]
            self._known[("shape", *sides)] = self.add("Concat", names, axis=0)
        return self._known[("shape", *sides)]

    def _multiple(self, side: Any) -> int:
        times = int(side // self._batch)
        if side - times * self._batch != 0:
            raise UnknownOperation(f"a side of {side}")
        return times

    def _times_batch(self, times: int) -> str:
        if ("batch", times) not in self._known:
            size = self.add("Slice", [self.add("Shape", [self._input_name]), *map(self.constant, _ints([0], [1]))])
            self._known[("batch", times)] = self.add("Mul", [size, self.constant(np.array([times], np.int64))])
        return self._known[("batch", times)]

    def full(self, value: Any, aval: Any) -> str:
        """The name of a tensor with all of `aval`'s shape."""
        name = self.name(value)
        if isinstance(value, _Tensor) and value.full or not isinstance(value, _Tensor) and value.shape == aval.shape:
            return name
        return self.add("Expand", [name, self.shape(aval.shape)])

    def name(self, value: Any) -> str:
        """The name of a tensor some sides of which may be 1 where they are longer."""
        return value.name if isinstance(value, _Tensor) else self.constant(value)

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """With its axes in another order."""
        return name if list(order) == sorted(order) else self.add("Transpose", [name], perm=list(order))

    # --- JAX's operations. ---

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Adds all of a traced function. Values are `_Tensor`s, or NumPy arrays where they depend on no input."""
        values: dict[Any, Any] = {}
        values.update(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def value_of(variable: Any) -> Any:
            if not isinstance(variable, core.Literal):
                return values[variable]
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)

        for equation in jaxpr.eqns:
            inputs = [value_of(variable) for variable in equation.invars]
            values.update(zip(equation.outvars, self._equation(equation, inputs), strict=True))
        return [value_of(variable) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        kind, params = equation.primitive.name, equation.params
        if kind == "platform_index":
            choices = params["platforms"]
            return [
                np.int32(next((i for i, names in enumerate(choices) if names and "tpu" in names), len(choices) - 1))
            ]
        if kind == "cond":
            if isinstance(inputs[0], _Tensor):
                raise UnknownOperation("a condition on an input")
            chosen = params["branches"][int(inputs[0])]
            return self.run(chosen.jaxpr, chosen.consts, inputs[1:])
        inner = next((params[name] for name in _INNER if name in params), None)
        if inner is not None:
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        if kind in _IDENTITIES:
            return inputs
        if len(equation.outvars) != 1:
            raise UnknownOperation(f"JAX's operation {kind!r}")
        out = equation.outvars[0].aval
        if kind == "broadcast_in_dim":
            return [self._broadcast(inputs[0], params, equation.invars[0].aval, out)]
        if not any(isinstance(value, _Tensor) for value in inputs) and all(isinstance(n, int) for n in out.shape):
            return [self._computed(equation, inputs)]
        avals = [variable.aval for variable in equation.invars]
        if kind in _SAME or kind in ELEMENTWISE:
            # Sides of 1 stay so as long as they can: what is the same for all places is not written out for each.
            kept = [
                value.full for value, a in zip(inputs, avals, strict=True) if isinstance(value, _Tensor) and a.shape
            ]
            full = any(kept) or not out.shape
            names = [self.name(value) for value in inputs]
            make = ELEMENTWISE.get(kind)
            return [_Tensor(make(self, names, params, out) if make else self.add(_SAME[kind], names), full)]
        if kind not in OPERATIONS:
            raise UnknownOperation(f"JAX's operation {kind!r}")
        names = [self.full(value, aval) for value, aval in zip(inputs, avals, strict=True)]
        return [_Tensor(OPERATIONS[kind](self, names, params, avals, out))]

    def _computed(self, equation: Any, inputs: list[Any]) -> np.ndarray:
        """What depends on no input, in the shape that it has."""
        arrays = [
            jax.numpy.asarray(np.broadcast_to(value, variable.aval.shape), variable.aval.dtype)
            for value, variable in zip(inputs, equation.invars, strict=True)
        ]
        return np.asarray(equation.primitive.bind(*arrays, **equation.params))

    def _broadcast(self, value: Any, params: Mapping[str, Any], before: Any, out: Any) -> Any:
        """As a reshape to the new rank; sides are repeated where somebody needs them."""
        places = dict(zip(params["broadcast_dimensions"], before.shape, strict=True))
        sides = [places.get(axis, 1) for axis in range(len(out.shape))]
        if not isinstance(value, _Tensor):
            kept = dict(zip(params["broadcast_dimensions"], value.shape, strict=True))
            return value.reshape([kept.get(axis, 1) for axis in range(len(out.shape))])
        whole = all(a is b or a == b for a, b in zip(sides, out.shape, strict=True))
        name = self.full(value, before)
        return _Tensor(name if len(sides) == len(before.shape) else self.reshape(name, sides), whole)

    def reshape(self, name: str, sides: Sequence[Any]) -> str:
        """To a shape, one side of which may depend on the batch's size."""
        if sum(not isinstance(side, int) for side in sides) == 1 and 0 not in sides:
            return self.add("Reshape", [name, self.shape([side if isinstance(side, int) else -1 for side in sides])])
        return self.add("Reshape", [name, self.shape(sides)])


def _ints(*lists: Sequence[int]) -> list[np.ndarray]:
    return [np.array(values, np.int64) for values in lists]


# --- Elementwise operations without a namesake: (graph, names, parameters, output) -> name. ---


def _one(graph: _Graph, value: float, out: Any) -> str:
    return graph.constant(np.asarray(value, np.float32 if np.dtype(out.dtype) == np.float64 else out.dtype))


def _integer_pow(graph: _Graph, names: Sequence[str], params: Any, out: Any) -> str:
    return graph.add("Pow", [names[0], _one(graph, params["y"], out)])


def _select(graph: _Graph, names: Sequence[str], params: Any, out: Any) -> str:
    if len(names) != 3:
        raise UnknownOperation("a choice among more than two")
    return graph.add("Where", [names[0], names[2], names[1]])


ELEMENTWISE: dict[str, Callable[..., str]] = {
    "ne": lambda graph, names, params, out: graph.add("Not", [graph.add("Equal", names)]),
    "rsqrt": lambda graph, names, params, out: graph.add("Reciprocal", [graph.add("Sqrt", names)]),
    "square": lambda graph, names, params, out: graph.add("Mul", [names[0], names[0]]),
    "log1p": lambda graph, names, params, out: graph.add("Log", [graph.add("Add", [names[0], _one(graph, 1, out)])]),
    "expm1": lambda graph, names, params, out: graph.add("Sub", [graph.add("Exp", names), _one(graph, 1, out)]),
    "erfc": lambda graph, names, params, out: graph.add("Sub", [_one(graph, 1, out), graph.add("Erf", names)]),
    "rem": lambda graph, names, params, out: graph.add("Mod", names, fmod=1),
    "clamp": lambda graph, names, params, out: graph.add("Min", [graph.add("Max", [names[1], names[0]]), names[2]]),
    "convert_element_type": lambda graph, names, params, out: graph.add("Cast", names, to=_dtype(out.dtype)),
    "integer_pow": _integer_pow,
    "select_n": _select,
}


# --- The others: (graph, names, parameters, inputs, output) -> name. ---


def _reduction(kind: str) -> Callable[..., str]:
    def reduced(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
        axes = graph.constant(np.array(params["axes"], np.int64))
        return graph.add(_REDUCTIONS[kind], [names[0], axes], keepdims=0)

    return reduced


def _any(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    axes = graph.constant(np.array(params["axes"], np.int64))
    numbers = graph.add("Cast", [names[0]], to=TensorProto.INT32)
    return graph.add("Cast", [graph.add("ReduceMax", [numbers, axes], keepdims=0)], to=TensorProto.BOOL)


def _argmax(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    (axis,) = params["axes"]
    name = names[0]
    if np.dtype(avals[0].dtype) == bool:
        name = graph.add("Cast", [name], to=TensorProto.INT32)
    return graph.add("Cast", [graph.add("ArgMax", [name], axis=axis, keepdims=0)], to=_dtype(out.dtype))


def _reshape(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    return graph.reshape(names[0], out.shape)


def _concatenate(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    return graph.add("Concat", names, axis=params["dimension"])


def _stack(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    axis = graph.constant(np.array([params["axis"]], np.int64))
    return graph.add("Concat", [graph.add("Unsqueeze", [name, axis]) for name in names], axis=params["axis"])


def _slice(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    strides = params["strides"] or (1,) * len(avals[0].shape)
    limits = [
        (axis, start, stop, stride)
        for axis, (start, stop, stride, side) in enumerate(
            zip(params["start_indices"], params["limit_indices"], strides, avals[0].shape, strict=True)
        )
        if (start, stride) != (0, 1) or not _same(stop, side)
    ]
    if not limits:
        return names[0]
    axes, starts, stops, steps = zip(*limits, strict=True)
    return graph.add("Slice", [names[0], *map(graph.constant, _ints(starts, stops, axes, steps))])


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


def _rev(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    axes = list(params["dimensions"])
    far = [-(2**62)] * len(axes)
    return graph.add("Slice", [names[0], *map(graph.constant, _ints([-1] * len(axes), far, axes, [-1] * len(axes)))])


def _pad(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    config = params["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        raise UnknownOperation(f"padding by {config}")
    pads = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.add("Pad", [names[0], graph.constant(np.array(pads, np.int64)), names[1]])


def _transpose(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    return graph.transposed(names[0], params["permutation"])


def _convolution(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    spec, strides, padding = params["dimension_numbers"], params["window_strides"], params["padding"]
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise UnknownOperation("a transposed convolution, or one in groups of the batch")
    image, kernel = graph.transposed(names[0], spec.lhs_spec), graph.transposed(names[1], spec.rhs_spec)
    name = graph.add(
        "Conv",
        [image, kernel],
        strides=list(strides),
        pads=[low for low, _ in padding] + [high for _, high in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return graph.transposed(name, [int(place) for place in np.argsort(spec.out_spec)])


def _dot(graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    (contracted, batched) = params["dimension_numbers"]
    letters = iter(string.ascii_lowercase)
    left, right = ([next(letters) for _ in aval.shape] for aval in avals)
    for axes in (contracted, batched):
        for one, other in zip(*axes, strict=True):
            right[other] = left[one]
    shared = [left[axis] for axis in batched[0]]
    inner = {left[axis] for axis in contracted[0]}
    free = [[x for x in side if x not in inner and x not in shared] for side in (left, right)]
    result = [*shared, *free[0], *free[1]]
    return graph.add("Einsum", names, equation=f"{''.join(left)},{''.join(right)}->{''.join(result)}")


def _pool(kind: str, graph: _Graph, names: Sequence[str], params: Any, avals: Sequence[Any], out: Any) -> str:
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    spatial = [axis for axis, side in enumerate(window) if side > 1]
    dilated = (*params["base_dilation"], *params["window_dilation"])
    if len(spatial) != 2 or any(step != 1 for step in dilated):
        raise UnknownOperation(f"a pool over windows {window}")
    others = [axis for axis in range(len(window)) if axis not in spatial]
    order = [*others, *spatial]
    moved = graph.transposed(names[0], order)
    # One axis of images, one of channels.
    flat = graph.reshape(moved, [-1, *(avals[0].shape[axis] for axis in (others[-1], *spatial))])
    counting: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" else {}
    pooled = graph.add(
        kind,
        [flat],
        kernel_shape=[window[axis] for axis in spatial],
        strides=[strides[axis] for axis in spatial],
        pads=[padding[axis][0] for axis in spatial] + [padding[axis][1] for axis in spatial],
        **counting,
    )
    back = graph.reshape(pooled, [out.shape[axis] for axis in order])
    return graph.transposed(back, [int(place) for place in np.argsort(order)])


def _sum_pool(*arguments: Any) -> str:
    graph, _, params, _, out = arguments
    mean = _pool("AveragePool", *arguments)
    return graph.add("Mul", [mean, _one(graph, float(np.prod(params["window_dimensions"])), out)])


OPERATIONS: dict[str, Callable[..., str]] = {
    **{kind: _reduction(kind) for kind in _REDUCTIONS},
    "reduce_or": _any,
    "argmax": _argmax,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "rev": _rev,
    "pad": _pad,
    "transpose": _transpose,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_window_max": partial(_pool, "MaxPool"),
    "reduce_window_sum": _sum_pool,
}
