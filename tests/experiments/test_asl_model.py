"""Networks of the copy detector: parameter counts, convolution, Waveblock, weights from a file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from experiments.asl import model
from experiments.common.errors import UserError
from experiments.common.nets import resnet


def rngs():
    """Random numbers of the generator that compiles in a fraction of the default one's time."""
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def count(module):
    sizes = jax.tree.map(lambda p: p.size, nnx.state(module, nnx.Param))
    return sum(jax.tree.leaves(sizes))


def abstract(make):
    return nnx.eval_shape(make)


@pytest.mark.parametrize(
    ("depth", "channels", "ibn", "expected"),
    [
        (18, 3, False, 11_176_512),
        (18, 1, False, 11_170_240),
        (34, 3, False, 21_284_672),
        (50, 3, False, 23_508_032),
        # Instance and batch norm halves have as many scales and shifts as one batch norm.
        (50, 3, True, 23_508_032),
        (152, 3, False, 58_143_808),
    ],
)
def test_trunk_has_torchvisions_parameter_count(depth, channels, ibn, expected):
    trunk = abstract(lambda: resnet.ResNet(depth, in_channels=channels, ibn=ibn, rngs=rngs()))
    assert count(trunk) == expected


@pytest.mark.parametrize(
    ("depth", "options", "shape"),
    [
        (18, {}, (2, 2, 3, 512)),
        (18, {"last_stride": 1}, (2, 4, 6, 512)),
        (18, {"small_input": True}, (2, 8, 12, 512)),
        (50, {"last_stride": 1, "ibn": True}, (2, 4, 6, 2048)),
    ],
)
def test_trunk_feature_map(depth, options, shape):
    def forward():
        trunk = resnet.ResNet(depth, rngs=rngs(), **options)
        stages = []
        y = trunk(jnp.zeros((2, 64, 96, 3)), between=lambda stage, x: stages.append(stage) or x)
        assert stages == [1, 2, 3, 4]
        return y

    assert jax.eval_shape(forward).shape == shape


def test_trunk_refuses_unknown_depth_and_stride():
    with pytest.raises(ValueError, match="depth 19"):
        resnet.ResNet(19, rngs=rngs())
    with pytest.raises(ValueError, match="last_stride 3"):
        resnet.ResNet(18, last_stride=3, rngs=rngs())


def test_convolutions_start_kaiming_normal_fan_out():
    block = resnet.BasicBlock(64, 128, 2, ibn=False, rngs=rngs())
    kernel = block.conv1.kernel[...]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.01)


def test_instance_half_ignores_contrast_of_one_image_and_batch_half_does_not():
    layer = resnet.InstanceBatchNorm(8, rngs=rngs())
    x = jax.random.normal(jax.random.key(0), (3, 5, 5, 8))
    scaled = x.at[0].multiply(100.0)
    before, after = layer(x), layer(scaled)
    np.testing.assert_allclose(before[..., :4], after[..., :4], atol=1e-3)
    assert np.abs(np.asarray(before - after))[..., 4:].max() > 0.5


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3)])
def test_patch_convolution_is_the_convolution(shape):
    graph, start = nnx.split(model.PatchConv(3, 5, rngs=rngs()))
    x = jax.random.normal(jax.random.key(1), shape)

    def reference(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def patched(kernel, x):
        return nnx.merge(graph, jax.tree.map(lambda _: kernel, start))(x)

    def everything(convolve, kernel, x):
        def loss(kernel, x):
            return jnp.sum(jnp.sin(convolve(kernel, x)))

        return convolve(kernel, x), jax.grad(loss, (0, 1))(kernel, x)

    (kernel,) = jax.tree.leaves(start)
    ours, expected = (
        jax.jit(functools.partial(everything, convolve))(kernel, x)
        for convolve in (patched, reference)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), ours, expected)


@pytest.mark.parametrize(("height", "band"), [(10, 3), (32, 10), (1, 0)])
def test_waveblock_leaves_one_band_and_raises_the_rest(height, band):
    waves = jax.jit(model.waveblock)
    starts = set()
    for key in jax.random.split(jax.random.key(0), 30):
        y = np.asarray(waves(key, jnp.ones((2, height, 3, 4))))
        assert (y == y[:1, :, :1, :1]).all()
        rows = y[0, :, 0, 0]
        kept = np.flatnonzero(rows == 1.0)
        assert len(kept) == band and (np.diff(kept) == 1).all()
        assert (np.delete(rows, kept) == 1.5).all()
        starts.update(kept[:1])
    if band:
        assert len(starts) > 5 and max(starts) <= height - band


@functools.cache
def small():
    @nnx.jit
    def make():
        return model.CopyDetector("small", num_classes=7, with_scale_head=True, rngs=rngs())

    return make()


@nnx.jit
def forward(detector, images):
    return detector(images)


IMAGES = jax.random.uniform(jax.random.key(0), (6, 32, 32, 3))


def test_small_detector_shapes_and_initial_values():
    detector = nnx.clone(small())
    features = forward(detector, IMAGES)
    assert features.pool.shape == (6, 64) and features.projection.shape == (6, 64)
    assert features.logits.shape == (6, 7) and features.scale.shape == (6,)
    assert features.scale.min() > 0 and features.scale.max() < 1
    assert features.pool.min() > 0
    assert detector.gem_power[...] == 3.0 and detector.gem_power.shape == ()
    assert detector.projector.norm2.bias is None
    assert detector.classifier.bias is None
    assert detector.classifier.kernel[...].std() == pytest.approx(0.001, rel=0.1)
    # Batch norm of scale 1 and no shift ends the projector.
    np.testing.assert_allclose(features.projection.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(features.projection.std(0), 1.0, atol=1e-2)
    conv = 27 * 24 + 9 * 24 * 48 + 9 * 48 * 64 + 2 * (24 + 48 + 64)
    projector = 64 * 128 + 128 + 2 * 128 + 128 * 64 + 64 + 64
    assert count(detector) == conv + 1 + projector + 64 * 7 + 64 + 1
    plain = abstract(lambda: model.CopyDetector("small", num_classes=7, rngs=rngs()))
    assert plain.scale_head is None and count(plain) == count(detector) - 65


def test_real_detector_sizes():
    detector = abstract(lambda: model.CopyDetector("resnet50", num_classes=10, rngs=rngs()))
    assert detector.projector.linear1.kernel.shape == (2048, 4096)
    assert detector.projector.linear2.kernel.shape == (4096, 8192)
    assert detector.classifier.kernel.shape == (8192, 10)
    with pytest.raises(UserError, match="backbone 'vgg'"):
        model.CopyDetector("vgg", num_classes=1, rngs=rngs())


def test_training_uses_batch_statistics_and_evaluation_running_ones():
    detector = nnx.clone(small())
    before = detector.backbone.norms[0].mean[...]
    # The same three images beside two different triples.
    beside = jnp.concatenate([IMAGES[:3], IMAGES[3:] ** 2])
    one, two = forward(detector, IMAGES), forward(detector, beside)
    assert np.abs(np.asarray(detector.backbone.norms[0].mean[...] - before)).max() > 0
    assert np.abs(np.asarray(one.projection - two.projection)[:3]).max() > 1e-3
    detector.eval()
    frozen = detector.backbone.norms[0].mean[...]
    one, two = forward(detector, IMAGES), forward(detector, beside)
    np.testing.assert_allclose(one.projection[:3], two.projection[:3], atol=1e-5)
    np.testing.assert_array_equal(detector.backbone.norms[0].mean[...], frozen)


def test_gradients_are_finite_and_the_scale_head_trains_the_backbone():
    @nnx.jit
    @nnx.grad
    def gradient(detector, images, weights):
        features = detector(images)
        return sum(w * jnp.sum(jnp.sin(f)) for w, f in zip(weights, features, strict=True))

    detector = nnx.clone(small())
    scale_only = gradient(detector, IMAGES, jnp.array([0.0, 0.0, 0.0, 1.0]))
    kernel = scale_only["backbone"]["convs"][0]["kernel"][...]
    assert np.abs(np.asarray(kernel)).max() > 0
    for leaf in jax.tree.leaves(gradient(detector, jnp.zeros_like(IMAGES), jnp.ones(4))):
        assert np.isfinite(leaf).all()


def test_seeds_train_in_one_vmapped_program():
    graph, state = nnx.split(small())
    states = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), state)

    @jax.jit
    @jax.vmap
    def both(state, images):
        detector = nnx.merge(graph, state)
        return detector(images).projection, nnx.state(detector)

    projection, after = both(states, jnp.stack([IMAGES, IMAGES]))
    assert projection.shape == (2, 6, 64)
    for seed in range(2):
        single = nnx.merge(graph, jax.tree.map(lambda x, seed=seed: x[seed], states))
        features = forward(single, IMAGES)
        np.testing.assert_allclose(projection[seed], features.projection, atol=1e-3)
        mean = after["projector"]["norm1"]["mean"][...][seed]
        np.testing.assert_allclose(mean, single.projector.norm1.mean[...], atol=1e-5)


def resnet_detector():
    """The ResNet-18 detector with all weights zero: quick to make, to be filled from a file."""
    detector = nnx.eval_shape(lambda: model.CopyDetector("resnet18", num_classes=2, rngs=rngs()))
    graph, shapes = nnx.split(detector)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def test_waveblock_acts_in_training_with_a_key_only(monkeypatch):
    seen = []

    def trunk(self, images, *, between=None):
        x = jnp.ones((len(images), 8, 8, 512))
        seen.append(between and [float(between(stage, x).max()) for stage in (1, 2, 3, 4)])
        return x

    monkeypatch.setattr(resnet.ResNet, "__call__", trunk)
    detector = resnet_detector()
    detector(IMAGES)
    detector(IMAGES, key=jax.random.key(0))
    detector.eval()
    detector(IMAGES, key=jax.random.key(0))
    assert seen == [None, [1.0, 1.5, 1.5, 1.0], None]


def torchvision_weights(depth=18, seed=0):
    """Random weights under torchvision's names, shapes written down from its layout."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def conv(name, out_channels, in_channels, kernel):
        shape = (out_channels, in_channels, kernel, kernel)
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)

    def norm(name, channels):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{kind}"] = rng.uniform(0.5, 1, channels).astype(np.float32)
        tensors[f"{name}.num_batches_tracked"] = np.array(3)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            prefix = f"layer{stage}.{block}"
            conv(f"{prefix}.conv1", width, channels, 3)
            norm(f"{prefix}.bn1", width)
            conv(f"{prefix}.conv2", width, width, 3)
            norm(f"{prefix}.bn2", width)
            if channels != width:
                conv(f"{prefix}.downsample.0", width, channels, 1)
                norm(f"{prefix}.downsample.1", width)
            channels = width
    tensors["fc.weight"] = np.zeros((1000, 512), np.float32)
    tensors["fc.bias"] = np.zeros(1000, np.float32)
    return tensors


def test_load_backbone_fills_every_weight(tmp_path):
    tensors = torchvision_weights()
    save_file(tensors, tmp_path / "w.safetensors")
    detector = resnet_detector()
    model.load_backbone(detector, tmp_path / "w.safetensors")
    trunk = detector.backbone
    kernel = tensors["layer3.0.downsample.0.weight"]
    np.testing.assert_array_equal(
        trunk.stages[2][0].downsample.conv.kernel[...], kernel.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        trunk.stages[3][1].bn2.var[...], tensors["layer4.1.bn2.running_var"]
    )
    np.testing.assert_array_equal(trunk.bn1.scale[...], tensors["bn1.weight"])
    used = {k: v for k, v in tensors.items() if "fc" not in k and "tracked" not in k}
    leaves = jax.tree.leaves(nnx.state(trunk))
    total = sum(np.asarray(x).sum(dtype=np.float64) for x in leaves)
    assert total == pytest.approx(sum(v.sum(dtype=np.float64) for v in used.values()), rel=1e-6)


def test_trunk_computes_what_torchvision_computes():
    tensors = {k: v for k, v in torchvision_weights().items() if not k.endswith("tracked")}
    # Variance near 1 in every layer, or float32 drowns in 18 layers of random weights.
    for name, value in tensors.items():
        if value.ndim == 4:
            tensors[name] = value / np.sqrt(value[0].size)

    def conv(x, name, stride):
        kernel = tensors[f"{name}.weight"]
        pad = (kernel.shape[-1] // 2,) * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    def norm(x, name):
        scale, shift, mean, variance = (
            tensors[f"{name}.{kind}"][:, None, None]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    @jax.jit
    def expected(images):
        x = nnx.relu(norm(conv(images.transpose(0, 3, 1, 2), "conv1", 2), "bn1"))
        padding = ((0, 0), (0, 0), (1, 1), (1, 1))
        x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), padding)
        for stage in (1, 2, 3, 4):
            for block in range(2):
                name = f"layer{stage}.{block}"
                stride = 2 if stage in (2, 3) and block == 0 else 1
                y = nnx.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                y = norm(conv(y, f"{name}.conv2", 1), f"{name}.bn2")
                if f"{name}.downsample.0.weight" in tensors:
                    x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
                x = nnx.relu(x + y)
        return x.transpose(0, 2, 3, 1)

    trunk = resnet_detector().backbone
    resnet.load_torchvision(trunk, tensors, "test")
    trunk.eval()
    y = nnx.jit(lambda trunk, x: trunk(x))(trunk, IMAGES[:2])
    assert y.shape == (2, 2, 2, 512)
    np.testing.assert_allclose(y, expected(IMAGES[:2]), rtol=1e-4, atol=1e-4)


def test_bottleneck_and_ibn_names_are_torchvisions():
    trunk = abstract(lambda: resnet.ResNet(50, ibn=True, rngs=rngs()))
    names = set(resnet._torchvision_slots(trunk))
    assert {
        "layer1.0.bn1.IN.weight",
        "layer1.0.bn1.BN.running_var",
        "layer3.5.bn1.IN.bias",
        "layer4.0.bn1.running_mean",
        "layer4.2.conv3.weight",
        "layer1.0.downsample.1.bias",
    } <= names
    assert not any(name.startswith("layer4") and "IN" in name for name in names)
    assert "layer1.0.bn1.IN.running_mean" not in names
    plain = abstract(lambda: resnet.ResNet(50, rngs=rngs()))
    # 53 convolutions and 53 norms of four arrays.
    assert len(resnet._torchvision_slots(plain)) == 53 * 5


def test_load_backbone_refuses_other_weights_and_changes_nothing(tmp_path):
    detector = resnet_detector()
    before = np.asarray(detector.backbone.conv1.kernel[...])
    path = tmp_path / "w.safetensors"
    tensors = torchvision_weights()

    def refused(changed, message):
        save_file(changed, path)
        with pytest.raises(UserError, match=message):
            model.load_backbone(detector, path)
        np.testing.assert_array_equal(detector.backbone.conv1.kernel[...], before)

    refused({k: v for k, v in tensors.items() if k != "bn1.bias"}, r"lacks 1 .*bn1\.bias")
    refused({**tensors, "layer5.0.conv1.weight": np.zeros(1)}, r"1 weights unknown.*layer5")
    refused({**tensors, "layer4.1.bn2.bias": np.zeros(3)}, r"layer4\.1\.bn2\.bias has shape \(3,\)")
    nan = {**tensors, "bn1.bias": np.full(64, np.nan, np.float32)}
    refused(nan, r"bn1\.bias holds NaN")
    path.write_bytes(b"not a file of this kind")
    with pytest.raises(UserError, match=r"not a readable \.safetensors"):
        model.load_backbone(detector, path)
    with pytest.raises(UserError, match="not found"):
        model.load_backbone(detector, tmp_path / "gone")
    with pytest.raises(UserError, match="choose a resnet"):
        model.load_backbone(nnx.clone(small()), path)
