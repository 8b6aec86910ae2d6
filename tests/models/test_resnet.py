"""ResNet has torchvision's parameters, names and geometry, and every parameter takes part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import export

from c2f_jax.models.backbones import BACKBONES
from c2f_jax.models.resnet import BasicBlock, Bottleneck, ResNet

# name: (parameters without `fc`, output channels, blocks per group, convolutions per block); torchvision 0.x's models.
TORCHVISION = {
    "resnet18": (11_176_512, 512, (2, 2, 2, 2), 2),
    "resnet34": (21_284_672, 512, (3, 4, 6, 3), 2),
    "resnet50": (23_508_032, 2048, (3, 4, 6, 3), 3),
    "resnet101": (42_500_160, 2048, (3, 4, 23, 3), 3),
    "resnet152": (58_143_808, 2048, (3, 8, 36, 3), 3),
}


def shapes(name, size=64):
    """Output shape and the shapes of all variables, without computing anything."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    backbone = BACKBONES[name](dtype=jnp.float32, axis_name=None)
    return jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), image)


def generic(abstract_variables):
    """Random variables of these shapes; a fresh network's zero scales would block signals and gradients."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            value = noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            value = 0.1 * noise + (path[-1].key in ("scale", "var"))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables)


def small(**options):
    """resnet10_small, generic variables for it, and images."""
    backbone = BACKBONES["resnet10_small"](**{"dtype": jnp.float32, "axis_name": None, **options})
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 64, 64, 3)), jnp.float32)
    return backbone, generic(shapes("resnet10_small")[1]), images


@pytest.mark.parametrize("name", TORCHVISION)
def test_as_many_parameters_as_torchvision(name):
    _, variables = shapes(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == TORCHVISION[name][0]


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_follow_torchvision(name):
    _, _, counts, convolutions = TORCHVISION[name]
    modules = ["conv1", "bn1"]
    for group, count in enumerate(counts, start=1):
        for block in range(count):
            prefix = f"layer{group}.{block}"
            modules += [f"{prefix}.{kind}{i}" for kind in ("conv", "bn") for i in range(1, convolutions + 1)]
            if block == 0 and (group > 1 or convolutions == 3):
                modules += [f"{prefix}.downsample.0", f"{prefix}.downsample.1"]

    def ours(module):
        if module.startswith("layer"):
            group, block, rest = module.split(".", 2)
            rest = rest.replace("downsample.0", "downsample_conv").replace("downsample.1", "downsample_bn")
            return f"{group}_{block}/{rest}"
        return module

    _, variables = shapes(name)
    found = {"/".join(path[:-1]) for path in traverse_util.flatten_dict(variables["params"])}
    assert found == {ours(module) for module in modules}
    statistics = {"/".join(path[:-1]) for path in traverse_util.flatten_dict(variables["batch_stats"])}
    assert statistics == {module for module in found if "bn" in module}


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize(("size", "expected"), [(224, 7), (97, 4), (448, 14)])
def test_output_shape(name, size, expected):
    out, _ = shapes(name, size)
    assert out.shape == (1, expected, expected, TORCHVISION[name][1])


@pytest.mark.parametrize(("size", "expected"), [(64, 8), (61, 8), (65, 9)])
def test_output_shape_of_the_small_one(size, expected):
    out, _ = shapes("resnet10_small", size)
    assert out.shape == (1, expected, expected, 128)


def test_last_group_can_keep_its_resolution():
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    backbone = BACKBONES["resnet50"](dtype=jnp.float32, axis_name=None, group_strides=(1, 2, 2, 1))
    out, _ = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), image)
    assert out.shape == (1, 14, 14, 2048)


@pytest.mark.parametrize(
    ("block", "convolutions"),
    # (kernel, stride, padding) in torchvision, last to first, of one group with stride 2.
    [(BasicBlock, [(3, 1, 1), (3, 2, 1)]), (Bottleneck, [(1, 1, 0), (3, 2, 1), (1, 1, 0)])],
)
def test_first_feature_sees_the_pixels_torchvision_s_sees(block, convolutions):
    reach = 0
    for kernel, stride, padding in [*convolutions, (3, 2, 1), (7, 2, 3)]:
        reach = reach * stride - padding + kernel - 1

    backbone = ResNet(block, block_counts=(1,), widths=(8,), group_strides=(2,), stem_width=8)
    # At an even size 'SAME' and torchvision's padding differ.
    images = jax.random.normal(jax.random.key(0), (16, 64, 64, 3))
    variables = generic(jax.eval_shape(lambda x: backbone.init(jax.random.key(1), x, train=False), images))
    gradient = jax.jit(jax.grad(lambda x: backbone.apply(variables, x, train=False)[:, 0, 0].sum()))(images)
    seen = np.abs(gradient).sum((0, 3)) > 0
    assert np.flatnonzero(seen.any(1)).max() == reach
    assert np.flatnonzero(seen.any(0)).max() == reach


def test_fresh_blocks_pass_their_shortcut():
    backbone = BACKBONES["resnet10_small"](dtype=jnp.float32, axis_name=None)
    params = jax.jit(lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()["params"]
    for group in (1, 2, 3):
        block = params[f"layer{group}_0"]
        assert not block["bn2"]["scale"].any()
        assert block["bn1"]["scale"].all() and block["downsample_bn"]["scale"].all()


def test_every_parameter_of_the_small_one_gets_a_gradient():
    backbone, variables, images = small()

    @jax.jit
    def gradients(params):
        def loss(params):
            out, _ = backbone.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)).sum()

        return jax.grad(loss)(params)

    for path, gradient in traverse_util.flatten_dict(gradients(variables["params"]), sep="/").items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 1e-3, path


def test_train_uses_and_updates_batch_statistics():
    backbone, variables, images = small()
    images = 3 + 2 * images
    out, updated = jax.jit(lambda x: backbone.apply(variables, x, train=True, mutable=["batch_stats"]))(images)
    evaluated = jax.jit(lambda x: backbone.apply(variables, x, train=False))(images)
    assert np.abs(out - evaluated).max() > 0.1
    before = traverse_util.flatten_dict(variables["batch_stats"])
    after = traverse_util.flatten_dict(updated["batch_stats"])
    assert all(np.abs(after[path] - before[path]).max() > 0 for path in before)


def test_synchronised_statistics_equal_those_of_the_whole_batch():
    backbone, variables, images = small()
    whole, whole_update = jax.jit(lambda x: backbone.apply(variables, x, train=True, mutable=["batch_stats"]))(images)
    halves = images.reshape(2, 2, *images.shape[1:])

    def split(axis_name):
        part, _, _ = small(axis_name=axis_name)
        run = jax.vmap(lambda x: part.apply(variables, x, train=True, mutable=["batch_stats"]), axis_name="data")
        return jax.jit(run)(halves)

    out, update = split("data")
    # float32 through seven batch norms.
    np.testing.assert_allclose(out.reshape(whole.shape), whole, rtol=0, atol=1e-3)
    for mine, reference in zip(jax.tree.leaves(update), jax.tree.leaves(whole_update), strict=True):
        np.testing.assert_allclose(mine[0], reference, rtol=1e-4, atol=1e-4)
    unsynchronised, _ = split(None)
    assert np.abs(unsynchronised.reshape(whole.shape) - whole).max() > 0.01


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_variables():
    backbone, variables, images = small(dtype=jnp.bfloat16)
    out, updated = jax.jit(lambda x: backbone.apply(variables, x, train=True, mutable=["batch_stats"]))(images)
    assert out.dtype == jnp.bfloat16 and np.isfinite(np.float32(out)).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    fresh = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_float64_stays_float64():
    _, variables, images = small()
    with jax.enable_x64(True):
        backbone = BACKBONES["resnet10_small"](dtype=jnp.float64, axis_name=None)
        doubles = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        run = jax.jit(lambda v, x: backbone.apply(v, x, train=True, mutable=["batch_stats"]))
        out, updated = run(doubles, jnp.asarray(images, jnp.float64))
        assert {leaf.dtype for leaf in jax.tree.leaves((out, updated))} == {jnp.dtype("float64")}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_training_lowers_for_each_platform(platform):
    backbone, variables, images = small()

    def gradient(params, images):
        def loss(params):
            out, _ = backbone.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return out.sum()

        return jax.grad(loss)(params)

    exported = export.export(jax.jit(gradient), platforms=[platform])(variables["params"], images)
    assert exported.platforms == (platform,)
    # Ten convolutions; on CPU the stem, the 16-channel one after it and the three projections are products.
    forward = export.export(jax.jit(lambda x: backbone.apply(variables, x, train=False)), platforms=[platform])(images)
    assert forward.mlir_module().count("stablehlo.convolution") == (5 if platform == "cpu" else 10)


def test_refuses_groups_that_do_not_match():
    with pytest.raises(ValueError, match="one entry per group"):
        ResNet(BasicBlock, block_counts=(1, 1)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
