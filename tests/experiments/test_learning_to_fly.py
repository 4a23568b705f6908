import dataclasses
import json
import shutil
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asym import dynamics
from experiments.common import app, files
from experiments.common import config as common
from experiments.common.errors import UserError
from experiments.learning_to_fly import (
    bptt,
    claims,
    evaluation,
    export,
    flight,
    main,
    networks,
    replay,
    settings,
    simulators,
    speed,
    td3,
    twin,
)

# Compiler options for the whole process would outlast these tests.
EXPERIMENT = dataclasses.replace(main.EXPERIMENT, xla_flags=())
SMALL = {"steps": 200, "curriculum_every": 40, "critic_warmup": 20, "actor_warmup": 40}


def _settings(**explicit):
    built = common.build(
        settings.Config, settings.PRESETS, "smoke", **({"method": "td3"} | explicit)
    )
    return settings.resolved(built)


def _run(*flags):
    return app.run(EXPERIMENT, ["main", "--preset=smoke", *flags])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fly") / "run"
    assert _run(f"--workdir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def trained():
    """A short training of one seed: the learner, and the state before and after each block."""
    learner = td3.Learner(_settings(**SMALL), flight.Task())
    key = jax.random.key(0)
    states, step = [jax.jit(learner.init)(key)], jax.jit(learner.step)
    for block in range(learner.schedule.blocks):
        states.append(step(states[-1], jnp.int32(block), jax.random.fold_in(key, block))[0])
    return learner, states


@pytest.fixture(scope="module")
def short(trained):
    """The learner and its last state."""
    learner, states = trained
    return learner, states[-1]


def test_smoke_writes_results_figures_and_the_policy(smoke):
    results = json.loads((smoke / "results.json").read_text())
    assert results["figures"] == ["flight.gif", "learning_to_fly.png"]
    verdicts = [claim["holds"] for claim in results["claims"] if claim["threshold"] is not None]
    assert verdicts and all(verdicts)
    assert {"td3_seed0.h", "td3_seed0.npz"} == {p.name for p in (smoke / "policies").iterdir()}
    curves = files.read_arrays(smoke / "outcomes" / "td3.npz")
    np.testing.assert_array_equal(curves["arrays/curve_steps"], [0, 1000, 2000])


def test_resumed_training_is_bit_identical(smoke, tmp_path):
    halfway = tmp_path / "run"
    shutil.copytree(smoke, halfway)
    # As a kill after the first checkpoint leaves it.
    for name in ("results.json", "seconds.json"):
        (halfway / name).unlink()
    shutil.rmtree(halfway / "outcomes")
    shutil.rmtree(halfway / "figures")
    kept = sorted((halfway / "train_td3" / "checkpoints").iterdir(), key=lambda p: p.name)
    steps = [p for p in kept if p.name.isdigit()]
    assert [int(p.name) for p in steps] == [50, 100] or len(steps) == 2
    shutil.rmtree(max(steps, key=lambda p: int(p.name)))
    assert _run(f"--workdir={halfway}") == 0
    for name in ("policies/td3_seed0.npz", "outcomes/td3.npz"):
        first, second = files.read_arrays(smoke / name), files.read_arrays(halfway / name)
        assert first.keys() == second.keys()
        for key in first.keys() - {"metrics/seconds"}:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_without_history_and_delay(tmp_path):
    words = ["--method=no_rotor_delay", "--steps=1000", "--log_every=25", "--clip_frames=0"]
    assert _run(f"--workdir={tmp_path / 'run'}", *words) == 0
    arrays = files.read_arrays(tmp_path / "run" / "policies" / "no_rotor_delay_seed0.npz")
    assert arrays["first.kernel"].shape == (18, 64)


def test_schedule_of_the_paper():
    plan = td3.schedule(steps=300_000, num_envs=1, updates_per_env_step=0.1)
    assert (plan.half, plan.block, plan.blocks, plan.capacity) == (10, 20, 15_000, 300_001)
    # Counted as the learner does, from the index of the step after which they may happen.
    ends = 1 + 10 * np.arange(1, 2 * plan.blocks + 1)
    assert np.sum(ends - 1 > 15_000) == 28_500
    assert np.sum(ends[1::2] - 1 > 30_000) == 13_500


@pytest.mark.parametrize("num_envs, rate", [(256, 0.1), (1000, 0.01), (3, 0.1)])
def test_schedule_keeps_the_ratio_of_updates(num_envs, rate):
    plan = td3.schedule(steps=10_000, num_envs=num_envs, updates_per_env_step=rate)
    made = 2 * plan.critic_updates / plan.block
    assert made == pytest.approx(rate, rel=0.2)
    assert plan.blocks * plan.block >= 10_000


def test_memory_tells_what_happened(short):
    learner, state = short
    time = jnp.arange(learner.schedule.capacity)
    told = replay.at(state.memory, time=time, env=jnp.zeros_like(time))
    task = flight.Task()
    after = jax.jit(task.advance)(told.before, told.action)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(told.after), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    # Within an episode the state after a step is the one before the next.
    over = np.asarray(dynamics.terminated(told.after.vehicle.body) | (told.after.age >= 500))
    assert over.any() and not over.all()
    height = np.asarray(told.before.vehicle.body.position.z)
    following = np.asarray(told.after.vehicle.body.position.z)
    np.testing.assert_array_equal(following[:-1][~over[:-1]], height[1:][~over[:-1]])
    ages = np.asarray(told.before.age)
    np.testing.assert_array_equal(ages[1:], np.where(over[:-1], 0, ages[:-1] + 1))
    # The history is that of this episode alone, oldest first.
    history = np.asarray(told.before.history)
    action = np.asarray(told.action)
    for t in (0, 5, 60, 150):
        age = int(ages[t])
        known = min(age, 32)
        np.testing.assert_array_equal(history[t, : 32 - known], 0)
        np.testing.assert_array_equal(history[t, 32 - known :], action[t - known : t])


def test_sensed_is_the_noisy_state(short):
    learner, state = short
    time = jnp.arange(learner.schedule.capacity)
    told = replay.at(state.memory, time=time, env=jnp.zeros_like(time))
    exact = flight.critic_sight(told.before)[:, :18]
    deviation = np.asarray(told.sensed - exact)
    np.testing.assert_allclose(deviation[:, :12].std(), 0.001, rtol=0.15)
    np.testing.assert_allclose(deviation[:, 12:].std(), 0.002, rtol=0.15)


def test_draws_are_uniform_over_what_is_stored(short):
    _, state = short
    stored = jnp.int32(50)
    drawn = jax.jit(lambda key: replay.draw(state.memory, key, stored=stored, shape=(5000,)).time)(
        jax.random.key(3)
    )
    counts = np.bincount(np.asarray(drawn), minlength=50)
    assert len(counts) == 50 and counts.min() > 50 and counts.max() < 170


@pytest.mark.parametrize("recalculate", [True, False])
def test_relabelling(short, recalculate):
    learner, state = short
    rewards = dataclasses.replace(learner.rewards, recalculate=recalculate)
    time = jnp.arange(learner.schedule.capacity)
    told = replay.at(state.memory, time=time, env=jnp.zeros_like(time))
    found = np.asarray(rewards.of(told, now=time[-1]))
    stage = np.full(time.shape, 4) if recalculate else np.minimum(np.asarray(time) // 40, 4)
    assert len(rewards.stages) == 5
    for t in (0, 39, 40, 119, 200):
        weights = dynamics.INITIAL_WEIGHTS
        for _ in range(stage[t]):
            weights = dynamics.next_weights(weights)
        one = jax.tree.map(lambda x, t=t: x[t], told)
        expected = dynamics.quadrotor_reward(
            one.before.vehicle.body,
            action=flight.rotors(one.action),
            next_body=one.after.vehicle.body,
            weights=weights._replace(
                angular_velocity=0.0, linear_acceleration=0.0, angular_acceleration=0.0
            ),
        )
        np.testing.assert_allclose(found[t], expected, rtol=1e-5, atol=1e-5)


def test_warm_up_leaves_the_networks_alone(trained):
    _, (begun, first, second, third, *_) = trained

    def same(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    # The critics learn beyond step 20, the actor beyond step 40.
    assert same(begun.networks, first.networks)
    assert not same(first.networks.critics, second.networks.critics)
    assert same(first.networks.actor, second.networks.actor)
    assert not same(second.networks.actor, third.networks.actor)


def test_updates_are_those_of_td3(short):
    learner, state = short
    batch = learner._minibatch(state.memory, jax.random.key(5), jnp.int32(100), (2, 16))
    networks_, key = state.networks, jax.random.key(6)
    quiet = types.SimpleNamespace(**vars(learner._config) | {"target_noise": 0.0})
    learner = td3.Learner(quiet, flight.Task())
    after, told = jax.jit(learner.critic_update)(networks_, batch, key)
    action = learner.actor.act(networks_.target_actor, batch.next_actor_seen)
    seen = jnp.concatenate([batch.next_critic_seen, action], -1)
    both = jnp.stack(
        [
            learner.critic.value(jax.tree.map(lambda x, k=k: x[k], networks_.target_critics), seen)
            for k in range(2)
        ]
    )
    target = batch.reward + 0.99 * np.where(batch.terminated, 0.0, both.min(0))
    judged = jnp.concatenate([batch.critic_seen, batch.action], -1)
    losses = [
        np.mean(
            (
                learner.critic.value(
                    jax.tree.map(lambda x, k=k: x[k], networks_.critics), judged[k]
                )
                - target[k]
            )
            ** 2
        )
        for k in range(2)
    ]
    np.testing.assert_allclose(told[0], np.mean(losses), rtol=1e-4)
    for slow, old, new in zip(
        *(
            jax.tree.leaves(x)
            for x in (after.target_critics, networks_.target_critics, after.critics)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(slow, 0.995 * old + 0.005 * new, rtol=1e-5, atol=1e-6)


def test_noise_shrinks_only_in_long_trainings():
    long = td3.Learner(_settings(steps=800_000), flight.Task())
    values = [float(long._decay(jnp.int32(t))) for t in (0, 499_999, 500_000, 600_000, 799_999)]
    np.testing.assert_allclose(values, [1, 1, 0.9, 0.81, 0.729], rtol=1e-6)
    assert td3.Learner(_settings(), flight.Task())._decay(jnp.int32(0)) == 1.0


def test_bptt_targets_and_gradient():
    config = _settings(method="bptt", bptt_envs=4, bptt_horizon=5)
    learner = bptt.Learner(config, flight.Task())
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 5, 4)).astype(np.float32)
    failed = np.zeros((5, 4), bool)
    failed[2, 1] = True
    over = failed.copy()
    over[3, 2] = True
    rollout = bptt.Rollout(np.zeros((5, 4, 28)), reward, failed, over, value)
    found = np.asarray(learner.targets(rollout))
    for env in range(4):
        later = value[-1, env]
        for t in range(4, -1, -1):
            mixed = value[t, env] if over[t, env] else 0.05 * value[t, env] + 0.95 * later
            later = reward[t, env] + (0 if failed[t, env] else 0.99 * mixed)
            np.testing.assert_allclose(found[t, env], later, rtol=1e-4, atol=1e-5)
    key = jax.random.key(0)
    state = jax.jit(learner.init)(key)

    def loss(actor):
        return learner.objective(actor, state.target_critic, state.flights, key)[0]

    gradient = jax.jit(jax.grad(loss))(state.actor)
    bias = gradient["last"]["bias"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))

    compiled = jax.jit(loss)

    def moved(shift):
        actor = jax.tree.map(lambda x: x, state.actor)
        actor["last"]["bias"] = actor["last"]["bias"].at[0].add(shift)
        return float(compiled(actor))

    # The derivative of the fast tangent is not quite that of the function, hence the tolerance.
    numeric = (moved(5e-2) - moved(-5e-2)) / 1e-1
    np.testing.assert_allclose(bias[0], numeric, rtol=0.15)


def test_bptt_without_asymmetry_sees_what_the_actor_sees():
    config = _settings(method="custom", algo="bptt", asymmetric=False, bptt_envs=2)
    learner = bptt.Learner(config, flight.Task())
    state = jax.jit(learner.init)(jax.random.key(0))
    assert state.critic["first"]["kernel"].shape == (146, 64)
    _, told = jax.jit(learner.step)(state, jnp.int32(0), jax.random.key(1))
    assert np.isfinite(float(told["value"]))


@pytest.mark.parametrize(
    ("simulator", "rotor_delay"),
    [
        (simulators.RK4_AOS, True),
        (simulators.RK4_AOS, False),
        (simulators.EULER, True),
        (simulators.EULER, False),
        (simulators.MJX, True),
    ],
)
def test_simulators_agree(simulator, rotor_delay):
    begun, disturbance = dynamics.sample_initial_state(jax.random.key(0), shape=(7,))
    action = dynamics.Rotors(*jax.random.uniform(jax.random.key(1), (4, 7)))

    def advance(simulator):
        return jax.jit(
            lambda now: simulators.step(
                now,
                action=action,
                disturbance=disturbance,
                simulator=simulator,
                rotor_delay=rotor_delay,
                dt=0.01,
            )
        )(begun)

    ours, other = advance(simulators.RK4_SOA), advance(simulator)
    if simulator == simulators.EULER:
        expected = dynamics.euler_step(
            lambda body: body._replace(position=body.velocity), begun.body, 0.01
        )
        for a, b in zip(other.body.position, expected.position, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert np.abs(np.subtract(ours.body.position, other.body.position)).max() > 0
    elif simulator == simulators.MJX:
        # Its rotations are of second order, and it holds the rotors' speeds during a step.
        for a, b in zip(jax.tree.leaves(ours.body), jax.tree.leaves(other.body), strict=True):
            np.testing.assert_allclose(a, b, atol=5e-3)
        np.testing.assert_allclose(ours.rpm, other.rpm, rtol=1e-5)
    else:
        for a, b in zip(jax.tree.leaves(ours.body), jax.tree.leaves(other.body), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    if not rotor_delay:
        setpoint = dynamics.rotor_speeds(action)
        np.testing.assert_allclose(ours.rpm.second, setpoint.second, rtol=1e-6)


def test_twin_is_the_same_vehicle():
    begun, disturbance = dynamics.sample_initial_state(jax.random.key(0), shape=(3,))
    rpm = dynamics.Rotors(*(14000.0 + 200.0 * jnp.arange(12.0).reshape(4, 3)))
    theirs = jax.jit(lambda b: twin.step(b, rpm=rpm, disturbance=disturbance))(begun.body)
    ours = dynamics.rigid_body_step(begun.body, rpm=rpm, disturbance=disturbance)
    # MuJoCo's rotations are of second order: the step's error is that of its spin, cubed in dt.
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_perfect_tracking_and_hovering_are_told_apart():
    time = jnp.linspace(0, 5.5, 5501)
    position, velocity = evaluation.figure_eight(time, 5.5)
    np.testing.assert_allclose(jnp.abs(position.x).max(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(jnp.abs(position.y).max(), 0.5, rtol=1e-4)
    for p, v in zip(position[:2], velocity[:2], strict=True):
        np.testing.assert_allclose(np.gradient(p, 1e-3)[1:-1], v[1:-1], atol=2e-2)
    np.testing.assert_allclose(main.rmse(np.full((2, 10, 3), 2.0)), np.sqrt(12.0))


def test_episodes_of_a_motionless_policy():
    actor = networks.Actor(146)
    params = jax.tree.map(jnp.zeros_like, actor.init(jax.random.key(0)))
    # Half thrust is not enough to hover: every episode fails within a second.
    flown = jax.jit(
        lambda: evaluation.fly(actor, params, evaluation.task_of(32), jax.random.key(0), episodes=6)
    )()
    assert np.all(flown.terminated == 1) and np.all(flown.settled == 0)
    assert np.all((flown.length > 10) & (flown.length < 100))
    assert np.isnan(flown.worst).all()


def test_exported_policy_in_numpy_and_in_c(short, tmp_path):
    learner, state = short
    params = jax.tree.map(np.asarray, state.networks.actor)
    export.write(params, tmp_path, name="policy")
    seen = np.random.default_rng(0).normal(size=(5, 146)).astype(np.float32)
    expected = np.asarray(learner.actor.act(params, seen))
    assert export.check(tmp_path / "policy.npz", expected, seen) < 1e-5
    with pytest.raises(UserError, match="another policy"):
        export.check(tmp_path / "policy.npz", expected + 1, seen)
    files.write_arrays(tmp_path / "other.npz", {"a": np.zeros(2)})
    with pytest.raises(UserError, match="lacks"):
        export.check(tmp_path / "other.npz", expected, seen)
    params["last"]["bias"] = np.full(4, np.nan, np.float32)
    with pytest.raises(UserError, match="not finite"):
        export.write(params, tmp_path, name="broken")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    numbers = ", ".join(f"{x:.9e}f" for x in seen[0])
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "policy.h"\n'
        f"int main(void) {{ const float o[ASYM_POLICY_INPUTS] = {{{numbers}}};\n"
        "float a[ASYM_POLICY_OUTPUTS]; asym_policy(o, a);\n"
        'for (int i = 0; i < 4; i++) printf("%.9g\\n", a[i]);\nreturn 0; }\n'
    )
    program = tmp_path / "main"
    command = [compiler, "-std=c99", "-Wall", "-Werror", str(tmp_path / "main.c"), "-o", program]
    subprocess.run(command, check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    np.testing.assert_allclose(np.array(printed.split(), float), expected[0], atol=1e-5)


def test_speed_programs_do_the_physics():
    program, (body, rpm) = speed.kernel(batch=6, steps=4)
    expected = body
    for _ in range(4):
        expected = dynamics.rigid_body_step(expected, rpm=rpm)
    expected = jax.tree.map(np.asarray, expected)
    found, _ = program((body, rpm))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    program, state = speed.full_step(batch=64, steps=60, observe=True)
    air, action, _ = program(state)
    # The actions lead all vehicles out of the box in time: those who began anew are younger.
    assert int(air.age.max()) == 60 and int(air.age.min()) < 60
    assert np.isfinite(np.asarray(air.total)).all()
    newest = np.asarray(air.seen)[18 + 128 - 4 : 18 + 128]
    np.testing.assert_allclose(newest[:, air.age > 0], np.asarray(action)[:, air.age > 0])
    assert speed.months_per_second(1.284e9) == pytest.approx(4.88, rel=0.01)
    assert speed.chunk_of(1000, "cpu") == 500 and speed.chunk_of(7, "gpu") == 7


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--method=custom", "--norotor_delay"], "history_len=0"),
        (["--simulator=bullet"], "choose one of"),
        (["--simulator=mjx", "--method=bptt"], "--simulator=mjx needs --algo=td3"),
        (["--noexploration_decay"], "500000"),
        (["--method=symmetric", "--asymmetric"], None),
        (["--history_len=8", "--method=no_action_history"], "has its own"),
        (["--bptt_envs=4"], "--algo=bptt"),
        (["--method=bptt", "--target_noise=0.1"], "--algo=td3"),
        (["--method=custom", "--nocurriculum", "--norecalculate_rewards"], "curriculum"),
        (["--steps=0"], "at least 20"),
        (["--method=ppo"], "choose one of"),
        (["--methods=td3,ppo"], "choose among"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, told, tmp_path, capsys):
    if told is None:  # what a method fixes may be repeated
        assert _settings(method="symmetric").asymmetric is False
        return
    assert _run(f"--workdir={tmp_path / 'run'}", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and len(error.splitlines()) == 1


def test_claims_report_what_was_not_trained():
    config = _settings()
    outcome = app.Outcome(
        {"length": np.array([40.0])},
        {
            "curve_steps": np.array([0, 2000]),
            "curve_length": np.array([[30.0], [40.0]]),
            "worst": np.full((1, 2, 3, 4), np.nan),
        },
    )
    found = claims.learning(config, {"td3": outcome})
    assert [c.holds for c in found] == [None, None, None]
    paper = common.build(settings.Config, settings.PRESETS, "quick")
    judged = claims.learning(paper, {"td3": outcome})
    assert [c.holds for c in judged] == [True, False, None]
