"""Adapters for hierarchical consistent contrastive learning of skeletons (arXiv 2211.13466).

Recorded signals are (N, C, T, V) or (N, C, T, V, M) and weights have PyTorch's names and layouts.
Compiled as a whole: one operation at a time would compile dozens of small programs a case.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asym import contrastive, graphs
from experiments.common.nets import stgcn
from experiments.hiclr import augmentations, skeletons

_STRATEGIES = {1: "uniform", 2: "distance", 3: "spatial"}


def hiclr_loss(inputs):
    key, queue = jnp.asarray(inputs["z_key"]), jnp.asarray(inputs["queue"])
    mining = bool(inputs["mining"].item())

    def loss(*views):
        parts = contrastive.hiclr_loss(
            weakest_first=views,
            key=key,
            queue=queue,
            temperature=inputs["temperature"].item(),
            mining=mining,
            top_k=inputs["topk"].item(),
            normalize=True,
        )
        return parts.total, parts

    @jax.jit
    def run(views, queue, pointer):
        gradients, parts = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*views)
        unit_keys = key / jnp.maximum(jnp.linalg.norm(key, axis=1, keepdims=True), 1e-12)
        return (
            gradients,
            parts,
            contrastive.queue_push(queue=queue, pointer=pointer, keys=unit_keys),
        )

    views = [jnp.asarray(inputs[name]) for name in ("z_basic", "z_normal", "z_strong")]
    gradients, parts, (queue_after, pointer) = run(views, queue, jnp.asarray(inputs["queue_ptr"]))
    basic, normal, strong = jax.nn.softmax(parts.logits, axis=-1)
    return {
        "loss": parts.total,
        "loss_info": parts.info_nce,
        "loss_ddm_normal": parts.consistency[0],
        "loss_ddm_strong": parts.consistency[1],
        "logits": parts.logits[0],
        "prob_normal": normal,
        "prob_strong": strong,
        "target_basic": basic,
        "target_normal": normal,
        "grad_zq": gradients[0],
        "grad_z1": gradients[1],
        "grad_z2": gradients[2],
        "queue_after": queue_after,
        "ptr_after": pointer,
        "pos_mask": parts.positive_mask,
    }


def graph_adjacency(inputs):
    edges, num_nodes = jnp.asarray(inputs["edges"]), inputs["num_node"].item()
    adjacency = graphs.skeleton_adjacency(
        edges,
        num_nodes=num_nodes,
        center=inputs["center"].item(),
        strategy=_STRATEGIES[inputs["num_subsets"].item()],
    )
    hop = graphs.hop_distance(edges, num_nodes=num_nodes)
    return {"A": adjacency, "hop": jnp.where(jnp.isfinite(hop), hop, -1)}


def graph_conv(inputs):
    adjacency = jnp.asarray(inputs["A"] * inputs["importance"])

    def conv(x, weight, bias):
        y = graphs.graph_conv(
            x.transpose(3, 0, 2, 1),
            kernel=_graph_kernel(weight, len(adjacency)),
            bias=bias.reshape(len(adjacency), -1),
            adjacency=adjacency,
        )
        return y.transpose(1, 3, 2, 0)

    @jax.jit
    def run(cotangent, *arguments):
        y, backward = jax.vjp(conv, *arguments)
        return y, backward(cotangent)

    arguments = (jnp.asarray(inputs[name]) for name in ("x", "weight", "bias"))
    y, gradients = run(jnp.asarray(inputs["cotangent"]), *arguments)
    return {"y": y, **dict(zip(("grad_x", "grad_weight", "grad_bias"), gradients, strict=True))}


def st_gcn_block(inputs):
    parameters = _parameters(inputs)
    channels, stride = inputs["x"].shape[1], inputs["stride"].item()
    width, _, taps, _ = parameters["tcn.2.weight"].shape
    adjacency = jnp.asarray(inputs["A"])
    block = stgcn.Block(
        channels,
        stgcn.BlockSpec(width, stride),
        subsets=adjacency.shape[0],
        joints=adjacency.shape[1],
        # The recorded block without a shortcut is the one that reads the three coordinates.
        residual="residual.0.weight" in parameters or channels != 3,
        taps=taps,
        dtype=None,
        rngs=nnx.Rngs(0),
    )
    _load(_block_slots(block), parameters)

    def forward(block, x):
        return block(x.transpose(3, 0, 2, 1), adjacency).transpose(1, 3, 2, 0)

    x = jnp.asarray(inputs["x"])
    block.eval()
    y_eval = nnx.jit(forward)(block, x)
    block.train()
    trained = _backward(forward, block, x, jnp.asarray(inputs["cotangent"]))
    after, slopes = _block_slots(trained.after), _block_slots(trained.slopes)
    return {
        "y_eval": y_eval,
        "y_train": trained.y,
        "grad_x": trained.grad_x,
        **{f"new_stats.{name}": slot.value() for name, slot in after.items()},
        **{f"grad.{name}": slot.value() for name, slot in slopes.items()},
    }


def st_gcn_model(inputs):
    if "hidden_channels" in inputs:
        model = nnx.eval_shape(
            lambda: _Classifier(
                inputs["hidden_channels"].item(),
                inputs["hidden_dim"].item(),
                inputs["feature_dim"].item(),
                mlp=bool(inputs["mlp"].item()),
            )
        )
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        return {"num_trainable": np.asarray(sum(leaf.size for leaf in leaves))}

    parameters = _parameters(inputs)
    model = _Classifier(
        parameters["st_gcn_networks.0.tcn.0.weight"].size,
        parameters["fc.weight"].shape[1],
        parameters["fc.weight"].shape[0],
        mlp=False,
    )
    _load(_model_slots(model), parameters)
    x = jnp.asarray(inputs["x"])
    model.eval()
    feat_eval, logits_eval = nnx.jit(lambda model, x: (model.encoder(x), model(x)))(model, x)
    model.train()
    trained = _backward(lambda model, x: model(x), model, x, jnp.asarray(inputs["cotangent"]))
    slopes = _model_slots(trained.slopes)
    return {
        "feat_eval": feat_eval,
        "logits_eval": logits_eval,
        "logits_train": trained.y,
        "grad_x": trained.grad_x,
        **{f"grad.{name}": slot.value() for name, slot in slopes.items()},
    }


def momentum_update(inputs):
    leaves = sorted(name[1:] for name in inputs if name.startswith("q"))
    target = {leaf: jnp.asarray(inputs[f"k{leaf}"]) for leaf in leaves}
    online = {leaf: jnp.asarray(inputs[f"q{leaf}"]) for leaf in leaves}
    updated = jax.jit(contrastive.ema_update)(
        target=target, online=online, momentum=inputs["momentum"].item()
    )
    return {f"k{leaf}": value for leaf, value in updated.items()}


def joint_mask(inputs):
    x, masked = inputs["x"], inputs["masked_joints"]
    batch, coordinates, frames, joints, persons = x.shape
    kept = np.ones((frames, joints), bool)
    np.put_along_axis(kept, masked, False, axis=1)
    drawn = augmentations.random_joint_mask(
        jax.random.key(0), frames=frames, joints=joints, ratio=inputs["mask_ratio"].item()
    )
    if np.any(drawn.sum(axis=1) != kept.sum(axis=1)):
        raise ValueError("the mask hides another number of joints than the recorded one")
    shape = (batch, frames, persons, joints, coordinates)
    return {
        "mask_ntmvc": np.broadcast_to(kept[:, None, :, None], shape).astype(np.float64),
        "y": augmentations.apply_joint_mask(
            jnp.asarray(x), jnp.asarray(kept), jnp.asarray(inputs["mask_param"].item())
        ),
    }


def aug_shear(inputs):
    draws = jnp.asarray([inputs[f"draw_uniform_{i}"].item() for i in range(6)])
    return {"y": augmentations.shear(jnp.asarray(inputs["x"]), draws[:3], draws[3:])}


def aug_temporal_crop(inputs):
    start = jnp.asarray(inputs["draw_nprandint_0"].item())
    return {"y": augmentations.temporal_crop(jnp.asarray(inputs["x"]), start)}


def aug_rotate(inputs):
    degrees = jnp.asarray([inputs[f"draw_uniform_{i}"].item() for i in range(3)])
    return {"y": augmentations.rotate(jnp.asarray(inputs["x"]), degrees)}


def _tossed(transform, coin):
    """An adapter that applies a transformation of (x, inputs) if the recorded coin says so."""

    def adapter(inputs):
        x = jnp.asarray(inputs["x"])
        return {"y": transform(x, inputs) if inputs[coin].item() < 0.5 else x}

    return adapter


def _flip(x, inputs):
    del inputs
    return augmentations.spatial_flip(x, skeletons.NTU.mirror)


def _noise(x, inputs):
    return x + jnp.asarray(inputs["draw_npnormal_0"])


def _blur(x, inputs):
    return augmentations.gaussian_blur(x, inputs["draw_uniform_0"].item())


def _axis_mask(x, inputs):
    return augmentations.axis_mask(x, inputs["draw_randint_0"].item())


def _time_flip(x, inputs):
    del inputs
    return augmentations.time_flip(x)


def skele_adain(inputs):
    per_frame = bool(inputs["per_frame"].item())

    @jax.jit
    def run(content, style, cotangent):
        y, backward = jax.vjp(
            lambda content: augmentations.skele_adain(
                content=content, style=style, per_frame=per_frame, eps=inputs["eps"].item()
            ),
            content,
        )
        return y, backward(cotangent)[0]

    y, gradient = run(*(jnp.asarray(inputs[name]) for name in ("content", "style", "cotangent")))
    return {"y": y, "grad_content": gradient}


def graph_augment(inputs):
    adjacency, chosen = jnp.asarray(inputs["A"]), jnp.asarray(inputs["keep"] != 0)
    mode = inputs["mode"].item()
    if mode == 2:
        return {"A_aug": graphs.add_edges(adjacency, added=chosen)}
    rate = inputs["r"].item()
    return {"A_aug": graphs.drop_edges(adjacency, keep=chosen, rate=rate, rescale=mode == 1)}


def streams(inputs):
    x, pairs = jnp.asarray(inputs["x"]), inputs["bone_pairs_1based"] - 1
    # A joint that no bone ends in has a bone of length 0, as if it were its own parent.
    parents = np.arange(x.shape[-2])
    parents[pairs[:, 0]] = pairs[:, 1]
    return {
        "motion": augmentations.motion_stream(x),
        "bone": augmentations.bone_stream(x, jnp.asarray(parents)),
    }


class _Classifier(nnx.Module):
    """The ten blocks on the skeleton of NTU RGB+D, and a head."""

    def __init__(self, hidden_channels, hidden_dim, classes, *, mlp):
        rngs = nnx.Rngs(0)
        blocks = stgcn.ten_blocks(hidden_channels, hidden_dim, dropout=0.0)
        # The authors' graph is a float32 buffer, also where everything else is float64.
        adjacency = skeletons.NTU.adjacency().astype(jnp.float32)
        self.encoder = stgcn.STGCN(adjacency, blocks, rngs=rngs)
        self.head = stgcn.Head(hidden_dim, classes, hidden=hidden_dim if mlp else None, rngs=rngs)

    def __call__(self, x):
        return self.head(self.encoder(x))


class _Trained(NamedTuple):
    """A forward and backward pass in training mode.

    Attributes:
        y: the output.
        grad_x: gradient wrt the input.
        slopes: a module that holds gradients in the place of parameters.
        after: the module with new running statistics.
    """

    y: jax.Array
    grad_x: jax.Array
    slopes: nnx.Module
    after: nnx.Module


def _backward(forward, module, x, cotangent):
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(parameters, rest, x, cotangent):
        def outputs(parameters, x):
            copy = nnx.merge(graph, parameters, rest, copy=True)
            return forward(copy, x), nnx.split(copy, nnx.Param, ...)[2]

        y, backward, after = jax.vjp(outputs, parameters, x, has_aux=True)
        return y, backward(cotangent), after

    y, (slopes, grad_x), after = run(parameters, rest, x, cotangent)
    return _Trained(
        y,
        grad_x,
        nnx.merge(graph, slopes, rest, copy=True),
        nnx.merge(graph, parameters, after, copy=True),
    )


class _Slot(NamedTuple):
    """Where an array of PyTorch's layout belongs.

    Attributes:
        variable: its place.
        read: from PyTorch's layout to ours.
        write: from ours to PyTorch's.
    """

    variable: nnx.Variable
    read: Callable
    write: Callable

    def value(self):
        return self.write(self.variable[...])


def _block_slots(block):
    subsets, channels, width = block.kernel.shape
    slots = {
        "gcn.conv.weight": _Slot(
            block.kernel,
            functools.partial(_graph_kernel, subsets=subsets),
            lambda kernel: kernel.transpose(0, 2, 1).reshape(subsets * width, channels, 1, 1),
        ),
        "gcn.conv.bias": _Slot(
            block.bias,
            lambda bias: bias.reshape(subsets, width),
            lambda bias: bias.reshape(subsets * width),
        ),
        "tcn.2.weight": _Slot(
            block.temporal.kernel,
            lambda weight: weight[..., 0].transpose(2, 1, 0),
            lambda kernel: kernel.transpose(2, 1, 0)[..., None],
        ),
        "tcn.2.bias": _plain(block.temporal.bias),
        **_norm_slots("tcn.0", block.norm1),
        **_norm_slots("tcn.3", block.norm2),
    }
    if block.shortcut is not None:
        slots["residual.0.weight"] = _Slot(
            block.shortcut.kernel,
            lambda weight: weight[:, :, 0, 0].T,
            lambda kernel: kernel.T[:, :, None, None],
        )
        slots["residual.0.bias"] = _plain(block.shortcut.bias)
        slots.update(_norm_slots("residual.1", block.shortcut_norm))
    return slots


def _model_slots(model):
    slots = _norm_slots("data_bn", model.encoder.data_norm)
    for index, block in enumerate(model.encoder.blocks):
        slots[f"edge_importance{index + 1}"] = _plain(block.importance)
        for name, slot in _block_slots(block).items():
            slots[f"st_gcn_networks.{index}.{name}"] = slot
    slots["fc.weight"] = _Slot(model.head.linear.kernel, np.transpose, jnp.transpose)
    slots["fc.bias"] = _plain(model.head.linear.bias)
    return slots


def _norm_slots(name, norm):
    return {
        f"{name}.weight": _plain(norm.scale),
        f"{name}.bias": _plain(norm.bias),
        f"{name}.running_mean": _plain(norm.mean),
        f"{name}.running_var": _plain(norm.var),
    }


def _plain(variable):
    return _Slot(variable, lambda array: array, lambda array: array)


def _graph_kernel(weight, subsets):
    """(subsets * out, in, 1, 1) as (subsets, in, out)."""
    return weight.reshape(subsets, -1, weight.shape[1]).transpose(0, 2, 1)


def _parameters(inputs):
    return {
        name.removeprefix("param."): array
        for name, array in inputs.items()
        if name.startswith("param.")
    }


def _load(slots, parameters):
    if missing := parameters.keys() - slots.keys():
        raise ValueError(f"the network has no {sorted(missing)}")
    for name, array in parameters.items():
        slots[name].variable.set_value(jnp.asarray(slots[name].read(array)))


ADAPTERS = {
    "hiclr_loss": hiclr_loss,
    "graph_adjacency": graph_adjacency,
    "graph_conv": graph_conv,
    "st_gcn_block": st_gcn_block,
    "st_gcn_model": st_gcn_model,
    "momentum_update": momentum_update,
    "joint_mask": joint_mask,
    "aug_shear": aug_shear,
    "aug_temporal_crop": aug_temporal_crop,
    "aug_rotate": aug_rotate,
    "aug_spatial_flip": _tossed(_flip, "draw_random_0"),
    "aug_gaussian_noise": _tossed(_noise, "draw_random_0"),
    "aug_gaussian_blur": _tossed(_blur, "draw_npsample_0"),
    "aug_axis_mask": _tossed(_axis_mask, "draw_random_0"),
    "aug_time_flip": _tossed(_time_flip, "draw_random_0"),
    "skele_adain": skele_adain,
    "graph_augment": graph_augment,
    "streams": streams,
}

# The card asks for 1e-9 where everything is float64.  A bias in front of a batch norm has no
# effect, and what was recorded as its gradient is rounding noise: 1e-14 in small networks.
TOLERANCES = {
    "hiclr_loss": (1e-9, 1e-10),
    "graph_adjacency": (0.0, 1e-15),
    "graph_conv": (1e-9, 1e-12),
    "st_gcn_block": (1e-9, 1e-10, 1e-10),
    "st_gcn_model": (1e-9, 1e-10, 1e-10),
    "momentum_update": (1e-12, 1e-12),
    "joint_mask": (0.0, 1e-15),
    "skele_adain": (1e-9, 1e-10),
}
