"""Adapters for multimodal learning via imbalanced learning (arXiv 2507.10203).

Compiled as a whole: one operation at a time would compile dozens of small programs a case.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asym import fusion, multimodal
from experiments.common.nets import resnet

CHANNELS = {"audio": 1, "visual": 3}


def modality_analysis(inputs):
    settings = {
        "sharpness": inputs["T"].item(),
        "entropy_floor": inputs["entropy_floor"].item(),
        "log_eps": inputs["log_eps"].item(),
    }
    logits = jnp.asarray(inputs["logits_a"]), jnp.asarray(inputs["logits_v"])
    found = jax.jit(lambda z: multimodal.modality_analysis(z, **settings))(logits)
    return {
        "entropy_a": found.entropy[0],
        "entropy_v": found.entropy[1],
        "entropy_ratio_clamped": found.entropy_ratio,
        "dependence": found.dependence,
        "inv_variance": found.inverse_variance,
        "coefficient": found.coefficient,
    }


def grad_scale(inputs):
    @jax.jit
    def scale_and_pull_back(x, cotangent):
        y, pull_back = jax.vjp(lambda x: multimodal.grad_scale(x, inputs["weight"].item()), x)
        return y, *pull_back(cotangent)

    y, gradient = scale_and_pull_back(jnp.asarray(inputs["x"]), jnp.asarray(inputs["cotangent"]))
    return {"y": y, "grad_x": gradient}


def _concat(layers, audio, visual):
    return fusion.concat_fusion([audio, visual], layers["fc_out"])


def _sum(layers, audio, visual):
    return fusion.sum_fusion([audio, visual], [layers["fc_x"], layers["fc_y"]])


def _share(layers, audio, visual):
    return fusion.sum_fusion([audio, visual], [layers["fc_out"]] * 2)


def _gated(layers, audio, visual):
    return fusion.gated_fusion(
        gate=audio,
        content=visual,
        gate_layer=layers["fc_x"],
        content_layer=layers["fc_y"],
        head=layers["fc_out"],
    )


def _arl_loss(fuse):
    """The adapter of the loss through one of the heads."""

    def loss(layers, features, coefficients, labels, gamma):
        scaled = [
            multimodal.grad_scale(each, k) for each, k in zip(features, coefficients, strict=True)
        ]
        logits = fuse(layers, *scaled)
        parts = multimodal.arl_loss(
            fused=logits.fused, unimodal=logits.unimodal, labels=labels, gamma=gamma
        )
        return parts.total, (logits, parts)

    gradient_of_loss = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def adapter(inputs):
        names = sorted(
            {key.split(".", 1)[1].rsplit(".", 1)[0] for key in inputs if key.startswith("param.")}
        )
        layers = {
            name: fusion.Affine(
                jnp.asarray(inputs[f"param.{name}.weight"].T),
                jnp.asarray(inputs[f"param.{name}.bias"]),
            )
            for name in names
        }
        features = jnp.asarray(inputs["feat_a"]), jnp.asarray(inputs["feat_v"])
        labels, gamma = jnp.asarray(inputs["labels"]), jnp.asarray(inputs["gamma"])
        scaling = jnp.asarray(inputs["coef_a"]), jnp.asarray(inputs["coef_v"])
        unscaled = (jnp.zeros_like(scaling[0]),) * 2
        (_, plain), _ = gradient_of_loss(layers, features, unscaled, labels, gamma)
        (head, scaled), (logits, parts) = gradient_of_loss(layers, features, scaling, labels, gamma)
        outputs = {
            "logits": logits.fused,
            "logits_a": logits.unimodal[0],
            "logits_v": logits.unimodal[1],
            "loss": parts.total,
            "loss_f": parts.fused,
            "loss_a": parts.unimodal[0],
            "loss_v": parts.unimodal[1],
            "grad_feat_a": plain[0],
            "grad_feat_v": plain[1],
            "grad_encoder_a": scaled[0],
            "grad_encoder_v": scaled[1],
        }
        for name in names:
            outputs[f"grad.{name}.weight"] = head[name].kernel.T
            outputs[f"grad.{name}.bias"] = head[name].bias
        return outputs

    return adapter


def resnet_basic_block(inputs):
    weights = {
        key.removeprefix("param."): value
        for key, value in inputs.items()
        if key.startswith("param.")
    }
    width, in_channels = weights["conv1.weight"].shape[:2]
    projects = "downsample.0.weight" in weights
    stride = inputs["stride"].item() if "stride" in inputs else 1 + projects
    block = resnet.BasicBlock(in_channels, width, stride, ibn=False, rngs=nnx.Rngs(0))
    convolutions = {"conv1": block.conv1, "conv2": block.conv2}
    norms = {"bn1": block.bn1, "bn2": block.bn2}
    if projects:
        convolutions["downsample.0"] = block.downsample.conv
        norms["downsample.1"] = block.downsample.norm
    # New values, not new entries of the old ones: those are float32 and would stay so.
    for name, layer in convolutions.items():
        layer.kernel.set_value(jnp.asarray(weights[f"{name}.weight"].transpose(2, 3, 1, 0)))
    for name, layer in norms.items():
        layer.scale.set_value(jnp.asarray(weights[f"{name}.weight"]))
        layer.bias.set_value(jnp.asarray(weights[f"{name}.bias"]))
        layer.mean.set_value(jnp.zeros(width))
        layer.var.set_value(jnp.ones(width))
    x = jnp.moveaxis(jnp.asarray(inputs["x"]), 1, -1)
    apply = nnx.jit(lambda block, x: jnp.moveaxis(block(x), -1, 1))
    block.eval()
    outputs = {"y_eval": apply(block, x)}
    block.train()
    outputs["y_train"] = apply(block, x)
    return outputs


def resnet18(inputs):
    """Shapes and counts alone, so nothing is computed."""
    models = {
        name: nnx.eval_shape(lambda c=channels: resnet.ResNet(18, in_channels=c, rngs=nnx.Rngs(0)))
        for name, channels in CHANNELS.items()
    }
    outputs = {}
    for name, model in models.items():
        trainable = jax.tree.leaves(nnx.state(model, nnx.Param))
        outputs[f"num_trainable_{name}"] = np.array(sum(leaf.size for leaf in trainable))
        if f"{name}_in" in inputs:
            batch, channels, *sides = inputs[f"{name}_in"].tolist()
            images = jax.ShapeDtypeStruct((batch, *sides, channels), np.float32)
            found = nnx.eval_shape(lambda model, x: model(x), model, images).shape
            outputs[f"{name}_out"] = np.array([found[0], found[3], *found[1:3]])
    return outputs


def clip_grad_norm(inputs):
    gradients = {name: jnp.asarray(inputs[name]) for name in inputs if name != "max_norm"}
    clipped, norm = jax.jit(multimodal.clip_global_norm)(gradients, jnp.asarray(inputs["max_norm"]))
    return {**clipped, "total_norm": norm}


def inverse_variance_weights(inputs):
    @jax.jit
    def compare(var):
        weights = multimodal.inverse_variance_weights(var)
        return {
            "weights": weights,
            "fused_var": multimodal.fused_variance(weights=weights, var=var),
            "balanced_var": multimodal.fused_variance(
                weights=jnp.full_like(var, 1 / var.shape[-1]), var=var
            ),
        }

    return compare(jnp.asarray(inputs["var"]))


ADAPTERS = {
    "modality_analysis": modality_analysis,
    "grad_scale": grad_scale,
    "arl_loss_concat": _arl_loss(_concat),
    "arl_loss_sum": _arl_loss(_sum),
    "arl_loss_share": _arl_loss(_share),
    "arl_loss_gated": _arl_loss(_gated),
    "resnet_basic_block": resnet_basic_block,
    "resnet18": resnet18,
    "clip_grad_norm": clip_grad_norm,
    "inverse_variance_weights": inverse_variance_weights,
}

# The card asks for 1e-9; everything here is a closed form or a few small matrix products.
TOLERANCES = {function: (1e-9, 1e-9) for function in ADAPTERS if function != "resnet18"}
