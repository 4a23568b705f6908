import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import contrastive, numerics

BATCH, DIM, SIZE = 6, 5, 12


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _embeddings(seed, views=3):
    """Views (weakest first), keys and a queue, all of unit length."""
    *sequence, key = (_unit(_normal(seed + i, BATCH, DIM), 1) for i in range(views + 1))
    return sequence, key, _unit(_normal(seed + 99, DIM, SIZE), 0)


def _unit(x, axis):
    x = np.asarray(x)
    return jnp.asarray(x / np.linalg.norm(x, axis=axis, keepdims=True))


# One operation at a time would compile dozens of small programs a test.
_hiclr_loss = jax.jit(contrastive.hiclr_loss)
_queue_logits = jax.jit(contrastive.queue_logits, static_argnames="normalize")
_distribution_loss = jax.jit(contrastive.directional_distribution_loss, static_argnames="direction")


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_uniform_similarities_give_the_entropy_of_all_candidates(self, dtype):
        # Queries at right angles to the key and to the queue cannot tell the candidates apart.
        query = jnp.array([[2.0, 0.0, 0.0]] * 4, dtype)
        key = jnp.array([[0.0, 1.0, 0.0]] * 4, dtype)
        queue = jnp.array([[0.0], [0.0], [1.0]], dtype) * jnp.ones((1, 7), dtype)
        logits, loss = self.variant(contrastive.info_nce_queue)(query=query, key=key, queue=queue)
        self.assertEqual(logits.dtype, jnp.float32)
        chex.assert_shape(logits, (4, 8))
        np.testing.assert_allclose(loss, math.log(8), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_total_of_known_logits(self, dtype):
        # One candidate pair: similarity 1 to the own key, -1 to the only negative, at tau = 2.
        weak, strong = jnp.array([[1.0, 0.0]], dtype), jnp.array([[-3.0, 0.0]], dtype)
        found = self.variant(lambda *views: self._two_views(views))(weak, strong)
        log_odds = math.log1p(math.exp(-1))
        cross_entropy = log_odds + 1 / (1 + math.exp(-1))
        self.assertEqual(found.total.dtype, jnp.float32)
        np.testing.assert_allclose(found.info_nce, log_odds, rtol=1e-6)
        np.testing.assert_allclose(found.consistency, [cross_entropy], rtol=1e-6)
        np.testing.assert_allclose(found.total, log_odds + cross_entropy, rtol=1e-6)

    def _two_views(self, views):
        key = jnp.array([[5.0, 0.0]], views[0].dtype)
        queue = jnp.array([[-1.0], [0.0]], views[0].dtype)
        return contrastive.hiclr_loss(
            weakest_first=views, key=key, queue=queue, temperature=2.0, normalize=True
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_queue_wraps_around(self):
        push = self.variant(contrastive.queue_push)
        queue, pointer = jnp.zeros((1, 5)), jnp.asarray(0)
        for start in (1, 4, 7):
            keys = jnp.arange(start, start + 3.0)[:, None]
            queue, pointer = push(queue=queue, pointer=pointer, keys=keys)
        np.testing.assert_array_equal(queue, [[6, 7, 8, 9, 5]])
        self.assertEqual(pointer, 4)


def test_logits_are_dot_products_over_the_temperature(x64):
    (query, *_), key, queue = _embeddings(0)
    logits = _queue_logits(query=query, key=key, queue=queue, temperature=0.2)
    np.testing.assert_allclose(logits[:, 0], np.einsum("nd,nd->n", query, key) / 0.2, rtol=1e-13)
    np.testing.assert_allclose(logits[:, 1:], query @ queue / 0.2, rtol=1e-13)
    assert logits.dtype == jnp.float64


def test_normalizing_forgets_the_lengths_of_query_and_key(x64):
    (query, *_), key, queue = _embeddings(1)
    expected = _queue_logits(query=query, key=key, queue=queue)
    scaled = {"query": 1e-3 * query, "key": 1e5 * key, "queue": queue}
    found = _queue_logits(**scaled, normalize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(_queue_logits(**scaled), expected)


def test_no_gradient_reaches_key_and_queue(x64):
    views, key, queue = _embeddings(2)

    def loss(views, key, queue):
        return contrastive.hiclr_loss(
            weakest_first=views, key=key, queue=queue, direction="symmetric", mining=True
        ).total

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    of_views, of_key, of_queue = slopes(views, key, queue)
    assert all(np.any(gradient != 0) for gradient in of_views)
    np.testing.assert_array_equal(of_key, np.zeros_like(key))
    np.testing.assert_array_equal(of_queue, np.zeros_like(queue))


def _consistency_gradients(direction, anchor="adjacent"):
    """Which of (basic, normal, strong) each of (L_1, L_2) moves."""
    views, key, queue = _embeddings(3)

    def losses(views):
        return contrastive.hiclr_loss(
            weakest_first=views, key=key, queue=queue, direction=direction, anchor=anchor
        ).consistency

    jacobian = jax.jit(jax.jacrev(losses))(views)
    return np.stack([np.any(view != 0, axis=(1, 2)) for view in jacobian], axis=1).astype(int)


@pytest.mark.parametrize(
    ("direction", "anchor", "moved"),
    [
        ("strong_to_weak", "adjacent", [[0, 1, 0], [0, 0, 1]]),
        ("weak_to_strong", "adjacent", [[1, 0, 0], [0, 1, 0]]),
        ("symmetric", "adjacent", [[1, 1, 0], [0, 1, 1]]),
        ("strong_to_weak", "weakest", [[0, 1, 0], [0, 0, 1]]),
        ("weak_to_strong", "weakest", [[1, 0, 0], [1, 0, 0]]),
        ("symmetric", "weakest", [[1, 1, 0], [1, 0, 1]]),
    ],
)
def test_direction_and_anchor_decide_which_view_moves(x64, direction, anchor, moved):
    np.testing.assert_array_equal(_consistency_gradients(direction, anchor), moved)


def test_gradient_of_each_view_comes_from_its_own_term_alone(x64):
    views, key, queue = _embeddings(4)

    def parts(views):
        return contrastive.hiclr_loss(weakest_first=views, key=key, queue=queue)

    total = jax.jit(jax.grad(lambda v: parts(v).total))(views)
    info = jax.jit(jax.grad(lambda v: parts(v).info_nce))(views)
    chain = jax.jit(jax.jacrev(lambda v: parts(v).consistency))(views)
    np.testing.assert_allclose(total[0], info[0], rtol=1e-14)
    np.testing.assert_allclose(total[1], chain[1][0] / 2, rtol=1e-14)
    np.testing.assert_allclose(total[2], chain[2][1] / 2, rtol=1e-14)


def test_scaling_the_strong_view_does_not_reach_the_weakest(x64):
    views, key, queue = _embeddings(5)

    def loss(weakest, scale):
        chain = [weakest, views[1], scale * views[2]]
        return contrastive.hiclr_loss(weakest_first=chain, key=key, queue=queue).total

    def gradient(scale):
        return slope(views[0], scale)

    slope = jax.jit(jax.grad(loss))

    np.testing.assert_array_equal(gradient(1.0), gradient(7.0))


def test_equal_views_cost_the_entropy_and_have_no_slope(x64):
    (view, *_), key, queue = _embeddings(6)

    def loss(strong):
        logits = [
            _queue_logits(query=v, key=key, queue=queue, normalize=True) for v in (view, strong)
        ]
        return _distribution_loss(weak=logits[0], strong=logits[1]), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(view)
    np.testing.assert_allclose(value, jnp.mean(numerics.categorical_entropy(logits[0])), rtol=1e-13)
    np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-12)


def test_gradient_wrt_strong_logits_is_the_difference_of_distributions(x64):
    weak, strong = _normal(7, BATCH, SIZE), _normal(8, BATCH, SIZE)
    gradient = jax.grad(lambda s: contrastive.directional_distribution_loss(strong=s, weak=weak))(
        strong
    )
    expected = (jax.nn.softmax(strong) - jax.nn.softmax(weak)) / BATCH
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-16)


def test_reversed_direction_exchanges_the_roles(x64):
    weak, strong = _normal(9, BATCH, SIZE), _normal(10, BATCH, SIZE)
    loss = _distribution_loss
    found = loss(weak=weak, strong=strong, direction="weak_to_strong")
    assert found == loss(weak=strong, strong=weak)
    assert found != loss(weak=weak, strong=strong)
    assert loss(weak=weak, strong=strong) == loss(weak=weak, strong=strong, direction="symmetric")


@pytest.mark.parametrize("views", [1, 2, 4])
def test_chain_is_the_mean_over_adjacent_pairs(x64, views):
    logits = [_normal(20 + i, BATCH, SIZE) for i in range(views)]
    pairs = [
        _distribution_loss(weak=weak, strong=strong) for weak, strong in itertools.pairwise(logits)
    ]
    found = contrastive.hierarchical_consistency_loss(weakest_first=logits)
    np.testing.assert_allclose(found, np.mean(pairs) if pairs else 0, rtol=1e-14)
    assert contrastive.directional_losses(weakest_first=logits).shape == (views - 1,)


def test_a_single_view_leaves_plain_contrast(x64):
    (query, *_), key, queue = _embeddings(11)
    found = _hiclr_loss(weakest_first=[query], key=key, queue=queue)
    _, expected = contrastive.info_nce_queue(query=query, key=key, queue=queue)
    np.testing.assert_allclose(found.total, expected, rtol=1e-14)


def test_roles_cannot_be_told_by_position():
    ones = jnp.ones((2, 3))
    with pytest.raises(TypeError):
        contrastive.directional_distribution_loss(ones, ones)
    with pytest.raises(TypeError):
        contrastive.info_nce_queue(ones, ones, jnp.ones((3, 4)))
    with pytest.raises(TypeError):
        contrastive.ema_update(ones, ones, 0.5)


def test_unknown_direction_and_anchor_are_refused():
    # Past the checker of annotations that the tests install, as a user without it would see.
    logits = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="upwards"):
        contrastive.directional_distribution_loss.__wrapped__(
            strong=logits, weak=logits, direction="upwards"
        )
    with pytest.raises(ValueError, match="strongest"):
        contrastive.directional_losses.__wrapped__(weakest_first=[logits], anchor="strongest")


def test_neighbours_of_all_views_are_united():
    one = jnp.array([[0.1, 0.9, 0.3, 0.2], [0.5, 0.4, 0.3, 0.2]])
    two = jnp.array([[0.1, 0.9, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])
    found = contrastive.nearest_neighbour_positive_mask([one, two])
    np.testing.assert_array_equal(found, [[1, 0, 1, 0, 0], [1, 1, 0, 0, 1]])
    found = contrastive.nearest_neighbour_positive_mask([one], k=3)
    np.testing.assert_array_equal(found, [[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    # The temperature, or any other positive factor, does not change an order.
    again = contrastive.nearest_neighbour_positive_mask([one / 0.07], k=3)
    np.testing.assert_array_equal(again, found)


def test_several_positives_share_the_loss_and_one_is_info_nce(x64):
    logits = _normal(12, BATCH, SIZE)
    log_probability = np.asarray(jax.nn.log_softmax(logits, axis=1))
    mask = np.zeros((BATCH, SIZE), bool)
    mask[:, 0] = True
    found = contrastive.multi_positive_nce(logits, jnp.asarray(mask))
    np.testing.assert_allclose(found, contrastive.info_nce_loss(logits), rtol=1e-14)
    mask[1:, 3] = mask[2:, 5] = True
    expected = -np.mean([np.mean(log_probability[n, mask[n]]) for n in range(BATCH)])
    found = contrastive.multi_positive_nce(logits, jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_mining_may_be_switched_on_within_a_compiled_loop(x64):
    views, key, queue = _embeddings(13)

    @jax.jit
    def loss(mining):
        return contrastive.hiclr_loss(
            weakest_first=views, key=key, queue=queue, mining=mining, top_k=2
        )

    before, after = loss(jnp.asarray(False)), loss(jnp.asarray(True))
    plain = _hiclr_loss(weakest_first=views, key=key, queue=queue)
    chex.assert_trees_all_close(before, plain, rtol=1e-13)
    mask = contrastive.nearest_neighbour_positive_mask([view @ queue for view in views], 2)
    np.testing.assert_array_equal(after.positive_mask, mask)
    np.testing.assert_allclose(
        after.info_nce, contrastive.multi_positive_nce(after.logits[0], mask), rtol=1e-13
    )
    np.testing.assert_allclose(after.consistency, before.consistency, rtol=1e-14)


@pytest.mark.parametrize("direction", ["strong_to_weak", "symmetric"])
def test_extremes_stay_finite(direction):
    @jax.jit
    @jax.value_and_grad
    def loss(views, key, temperature):
        return contrastive.hiclr_loss(
            weakest_first=views,
            key=key,
            queue=jnp.eye(DIM, SIZE),
            temperature=temperature,
            direction=direction,
            mining=True,
            normalize=True,
        ).total

    for fill, temperature in itertools.product((0.0, 1e-30, 1e15), (1e-6, 0.07, 1e6)):
        constant = jnp.full((2, DIM), fill)
        value, gradient = loss([constant, -constant, jnp.eye(2, DIM)], constant, temperature)
        assert np.isfinite(value), (fill, temperature)
        assert all(np.all(np.isfinite(g)) for g in gradient), (fill, temperature)


def test_certain_distributions_do_not_underflow():
    # log(softmax) in place of log_softmax is minus infinity here.
    certain = jnp.array([[1e4, 0.0]])
    found = _distribution_loss(weak=certain, strong=certain[:, ::-1])
    assert found == 1e4
    assert contrastive.info_nce_loss(certain[:, ::-1]) == 1e4


def test_ema_has_its_closed_form(x64):
    momentum, steps = 0.9, 7
    start, online = _normal(14, 3), _normal(15, steps, 3)
    target = {"weight": start}
    for step in range(steps):
        target = contrastive.ema_update(
            target=target, online={"weight": online[step]}, momentum=momentum
        )
    weight = (1 - momentum) * momentum ** np.arange(steps)[::-1]
    expected = momentum**steps * start + weight @ online
    np.testing.assert_allclose(target["weight"], expected, rtol=1e-13)


def test_ema_limits_and_dtypes():
    target = {"a": jnp.array([1.0, 2.0], jnp.bfloat16), "b": jnp.array(3.0)}
    online = {"a": jnp.array([5.0, 7.0]), "b": jnp.array(-1.0)}
    kept = contrastive.ema_update(target=target, online=online, momentum=1.0)
    chex.assert_trees_all_equal(kept, target)
    chex.assert_trees_all_equal_dtypes(kept, target)
    copied = contrastive.ema_update(target=target, online=online, momentum=jnp.asarray(0.0))
    np.testing.assert_array_equal(copied["a"].astype(jnp.float32), online["a"])
    with pytest.raises(AssertionError):
        contrastive.ema_update(target=target, online={"a": online["a"]}, momentum=0.5)


def test_queue_holds_the_last_keys_in_order(x64):
    queue = contrastive.queue_init(jax.random.key(0), dim=DIM, size=SIZE)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=0), 1, rtol=1e-13)
    push = jax.jit(contrastive.queue_push)
    keys = _unit(_normal(16, 3 * SIZE, DIM), -1)
    pointer = jnp.asarray(0)
    batches = np.asarray(keys).reshape(-1, BATCH, DIM)
    for step, batch in enumerate(batches, start=1):
        queue, pointer = push(queue=queue, pointer=pointer, keys=batch)
        if step >= SIZE // BATCH:
            oldest_first = np.roll(np.asarray(queue), -int(pointer), axis=1).T
            np.testing.assert_array_equal(oldest_first, np.asarray(keys)[: step * BATCH][-SIZE:])
    assert pointer == 0


def test_queue_refuses_more_keys_than_it_holds():
    with pytest.raises(AssertionError):
        contrastive.queue_push(
            queue=jnp.zeros((2, 3)), pointer=jnp.asarray(0), keys=jnp.zeros((4, 2))
        )


def test_queue_stores_without_gradient_in_its_own_dtype():
    queue = jnp.zeros((2, 4), jnp.bfloat16)

    def stored(keys):
        after, _ = contrastive.queue_push(queue=queue, pointer=jnp.asarray(1), keys=keys)
        assert after.dtype == jnp.bfloat16
        return jnp.sum(after.astype(jnp.float32))

    value, gradient = jax.value_and_grad(stored)(jnp.ones((3, 2)))
    assert value == 6
    np.testing.assert_array_equal(gradient, np.zeros((3, 2)))


def test_vmap_over_seeds_equals_one_by_one():
    seeds = [_embeddings(30 * seed) for seed in range(3)]
    seeds = jax.tree.map(lambda x: x.astype(jnp.float32), seeds)
    batched = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)

    def step(views, key, queue, pointer):
        loss = contrastive.hiclr_loss(weakest_first=views, key=key, queue=queue, mining=True)
        return loss, contrastive.queue_push(queue=queue, pointer=pointer, keys=key)

    pointers = jnp.array([0, 4, 9])
    found = jax.jit(jax.vmap(step))(*batched, pointers)
    one = jax.jit(step)
    single = [one(*seed, pointer) for seed, pointer in zip(seeds, pointers, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
