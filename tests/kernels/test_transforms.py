"""Every kernel under JAX's transformations and on several devices, and the shape of the public interface."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from c2f_jax import kernels
from c2f_jax.kernels import by_gather
from tests.kernels.versions import around

DEVICES = 4
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1.0, shape).astype(np.float32)


def rows(*shape, seed=0):
    """Positive numbers with a leading axis for the devices, or for vmap."""
    return picture(DEVICES, *shape, seed=seed)


def labels():
    return np.random.default_rng(0).integers(0, 3, (DEVICES, 5)).astype(np.int32)


def keys():
    return jax.random.split(jax.random.key(0), (DEVICES, 3))


@dataclass
class Case:
    """A kernel, arguments with an extra leading axis, and which of them get a gradient."""

    kernel: Callable
    arguments: Callable[[], tuple]
    differentiable: tuple[int, ...] = ()

    def both(self, *arguments):
        """(value, gradients of a sum in which every number of the value has its own weight)."""

        def loss(*arguments):
            out = self.kernel(*arguments)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)), out

        if not self.differentiable:
            return self.kernel(*arguments), ()
        gradients, out = jax.grad(loss, argnums=self.differentiable, has_aux=True)(*arguments)
        return out, gradients


def crop_case(**options):
    kernel = partial(kernels.crop_and_resize, output_size=(4, 3), **options)
    return Case(kernel, lambda: (rows(5, 6, 2), rows(2, 4, seed=1)), (0, 1))


CASES = {
    "area": Case(kernels.area, lambda: (rows(3, 4),), (0,)),
    "bilinear_attention_pooling": Case(
        kernels.bilinear_attention_pooling, lambda: (rows(2, 4, 3, 5), rows(2, 4, 3, 2, seed=1)), (0, 1)
    ),
    "box_iou": Case(kernels.box_iou, lambda: (rows(3, 4), rows(2, 4, seed=1)), (0, 1)),
    "center_loss": Case(kernels.center_loss, lambda: (rows(5, 6), rows(3, 6, seed=1), labels()), (0, 1)),
    "compose": Case(kernels.compose, lambda: (rows(3, 4), rows(3, 4, seed=1)), (0, 1)),
    "contains": Case(kernels.contains, lambda: (rows(3, 4), rows(3, 7, 2, seed=1))),
    "crop_and_resize": crop_case(padding="symmetric"),
    "crop_and_resize, antialias": crop_case(antialias=True, implementation="matmul"),
    "crop_and_resize, nearest": Case(
        partial(kernels.crop_and_resize, output_size=(4, 3), method="nearest"),
        lambda: (rows(5, 6, 2), rows(2, 4, seed=1)),
        (0,),
    ),
    "crop_with_wide_gradient": Case(
        partial(kernels.crop_with_wide_gradient, output_size=(4, 3), blur=2.0),
        lambda: (rows(5, 6, 2), rows(2, 4, seed=1)),
        (0, 1),
    ),
    "drop_mask": Case(kernels.drop_mask, lambda: (rows(2, 4, 5), rows(2, seed=1))),
    "flip_horizontal": Case(kernels.flip_horizontal, lambda: (rows(3, 4),), (0,)),
    "flip_vertical": Case(kernels.flip_vertical, lambda: (rows(3, 4),), (0,)),
    "from_aligned_corners": Case(
        partial(kernels.from_aligned_corners, image_size=(5, 6), output_size=(4, 1)), lambda: (rows(3, 4),), (0,)
    ),
    "from_pixels": Case(partial(kernels.from_pixels, image_size=(5, 6)), lambda: (rows(3, 4),), (0,)),
    "from_xyxy": Case(kernels.from_xyxy, lambda: (rows(3, 4),), (0,)),
    "giou_loss": Case(kernels.giou_loss, lambda: (rows(3, 4), rows(3, 4, seed=1)), (0, 1)),
    "invert": Case(kernels.invert, lambda: (rows(3, 4),), (0,)),
    "iou": Case(kernels.iou, lambda: (rows(3, 4), rows(3, 4, seed=1)), (0, 1)),
    "ordered": Case(kernels.ordered, lambda: (rows(3, 4),), (0,)),
    "outside_mask": Case(partial(kernels.outside_mask, output_size=(3, 4)), lambda: (rows(3, 4),)),
    "paste": Case(
        lambda views, boxes: jnp.concatenate([a.ravel() for a in kernels.paste(views, boxes, (5, 6))]),
        lambda: (rows(2, 3, 4, 2), rows(2, 4, seed=1)),
        (0, 1),
    ),
    "region_distribution": Case(kernels.region_distribution, lambda: (rows(2, 4, 5), rows(2, 4, 5, seed=1)), (0, 1)),
    "resize_maps": Case(partial(kernels.resize_maps, size=7), lambda: (rows(2, 4, 5),), (0,)),
    "roi_align": Case(
        lambda maps, boxes: kernels.roi_align(6 * maps, 6 * boxes, (2, 3), box_indices=[1, 0, 1]),
        lambda: (rows(2, 6, 5, 2), rows(3, 4, seed=1)),
        (0, 1),
    ),
    "sample_attention_map": Case(kernels.sample_attention_map, lambda: (keys(), rows(3, 4, 5, 2)), (1,)),
    "soft_box": Case(kernels.soft_box, lambda: (rows(2, 4, 5) / 20, rows(2, seed=1)), (0, 1)),
    "threshold_box": Case(
        partial(kernels.threshold_box, padding=0.1), lambda: (rows(2, 4, 5), rows(2, seed=1)), (0, 1)
    ),
    "update_centers": Case(kernels.update_centers, lambda: (rows(3, 6), rows(5, 6, seed=1), labels()), (0, 1)),
}


@pytest.fixture(scope="module")
def mesh():
    devices = jax.devices("cpu")
    if len(devices) < DEVICES:
        pytest.skip(f"needs {DEVICES} CPU devices: JAX_NUM_CPU_DEVICES={DEVICES}")
    return Mesh(np.array(devices[:DEVICES]), ("data",), axis_types=(AxisType.Auto,))


def by_vmap(function, mesh):
    return jax.jit(jax.vmap(function))


def by_pmap(function, mesh):
    return jax.pmap(function, devices=mesh.devices.tolist())


def by_shard_map(function, mesh):
    def shard(*arguments):
        return jax.tree.map(lambda out: out[None], function(*[argument[0] for argument in arguments]))

    spec = PartitionSpec("data")
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec))


def one_by_one(function, *arguments):
    outs = [function(*[jnp.asarray(argument[i]) for argument in arguments]) for i in range(DEVICES)]
    return jax.tree.map(lambda *out: np.stack(out), *outs)


def assert_close(actual, expected, label):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=label)


# jax.pmap is a jit of shard_map: one of each kind will do for it.
PMAPPED = ("crop_and_resize", "bilinear_attention_pooling", "compose")
MADE_OF_OTHERS = ("crop_and_resize, nearest", "crop_with_wide_gradient", "paste")


@pytest.mark.parametrize("name", CASES)
def test_transformed_is_plain(mesh, name):
    """Compiled as in Python, operation by operation; and so, with their gradients, all other ways to run a kernel."""
    case = CASES[name]
    arguments = case.arguments()
    expected = one_by_one(jax.jit(case.both), *arguments)
    assert all(np.isfinite(out).all() for out in jax.tree.leaves(expected))
    assert_close(expected[0], one_by_one(case.kernel, *arguments), "jit")
    spread = [by_pmap, by_shard_map] if name in PMAPPED else [by_shard_map] if name not in MADE_OF_OTHERS else []
    for transform in (by_vmap, *spread):
        assert_close(transform(case.both, mesh)(*arguments), expected, transform.__name__)


# --- The crop on several devices, and for others. ---


def crop_gradients(images, boxes):
    def loss(images, boxes):
        return jnp.sum(jnp.sin(kernels.crop_and_resize(images, boxes, 4)))

    return jax.grad(loss, argnums=(0, 1))(images, boxes)


def sharded_over(mesh, *crops):
    """8 images and their boxes, spread over the devices."""
    arrays = picture(8, 6, 5, 2), picture(8, *crops, 4)
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize(
    ("function", "crops"),
    [
        (partial(kernels.crop_and_resize, output_size=4), ()),
        (partial(kernels.crop_and_resize, output_size=4, antialias=True), (3,)),
        (partial(kernels.crop_and_resize, output_size=4, antialias=True, implementation="matmul"), (3,)),
        (crop_gradients, (3,)),
    ],
    ids=["auto", "antialias", "matmul", "gradients"],
)
def test_batch_sharded_crop_needs_no_communication(mesh, function, crops):
    """Each device crops its own images."""
    arguments = sharded_over(mesh, *crops)
    compiled = jax.jit(function).lower(*arguments).compile()
    assert not [name for name in COLLECTIVES if name in compiled.as_text()]
    for out in jax.tree.leaves(compiled(*arguments)):
        assert out.sharding.is_equivalent_to(arguments[0].sharding, out.ndim)


def test_batch_sharded_gradients_crop_after_crop_need_no_communication(mesh, monkeypatch):
    """As large crops are on CPU: the devices take turns side by side, each through its own images."""
    arguments = sharded_over(mesh, 3)
    expected = jax.jit(crop_gradients)(*arguments)
    monkeypatch.setattr(by_gather, "CACHE", 0)
    with around(mesh):
        compiled = jax.jit(lambda *arguments: crop_gradients(*arguments)).lower(*arguments).compile()
    assert " while(" in compiled.as_text()
    assert not [name for name in COLLECTIVES if name in compiled.as_text()]
    assert_close(compiled(*arguments), expected, "in turn")


def test_communication_would_be_seen(mesh):
    """In the program of a sum over the batch: what the test above looks for has these names."""
    summed = jax.jit(lambda images, boxes: kernels.crop_and_resize(images, boxes, 4).sum())
    assert "all-reduce" in summed.lower(*sharded_over(mesh)).compile().as_text()


@pytest.mark.parametrize("function", [partial(kernels.crop_and_resize, output_size=4), crop_gradients])
def test_crop_exports_for_all_platforms(function):
    """From one machine; the choice of method stays open until the program is compiled."""
    images, boxes = rows(6, 5, 2), rows(3, 4, seed=1)
    exported = export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(images, boxes)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    restored = export.deserialize(exported.serialize())
    out = jax.tree.leaves(restored.call(images, boxes))
    for a, b in zip(out, jax.tree.leaves(jax.jit(function)(images, boxes)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# --- The public interface. ---

PUBLIC = sorted(kernels.__all__)
# Options that may be given by place, because their docstring says what they are relative to the argument before.
POSITIONAL_OPTIONS = {"soft_box": ["kappa"]}
# Settings without a default are part of what is asked for.
REQUIRED_SETTINGS = {
    "crop_and_resize": ["output_size"],
    "crop_with_wide_gradient": ["output_size"],
    "outside_mask": ["output_size"],
    "paste": ["output_size"],
    "roi_align": ["output_size"],
    "from_aligned_corners": ["image_size", "output_size"],
    "from_pixels": ["image_size"],
    "resize_maps": ["size"],
}


def test_public_names():
    """All public functions of the modules, each of them in the table above, in order."""
    assert kernels.__all__ == PUBLIC
    assert {name.split(",")[0] for name in CASES} == set(PUBLIC)
    modules = (kernels.align, kernels.attention, kernels.boxes, kernels.crop, kernels.views)
    defined = [
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert sorted(defined) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function(name):
    """One summary line, types everywhere, shapes stated, arrays by place and options by name."""
    function = getattr(kernels, name)
    signature, text = inspect.signature(function), inspect.getdoc(function)
    assert text
    assert text.splitlines()[0].rstrip().endswith((".", ":", "]"))
    assert "[" in text
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY or parameter.name in POSITIONAL_OPTIONS.get(name, []):
            assert parameter.name in text
        else:
            assert parameter.default is inspect.Parameter.empty, f"{parameter.name} must be keyword-only"
            if parameter.name not in REQUIRED_SETTINGS.get(name, []):
                assert "Array" in str(parameter.annotation)
