"""What learning to fly can be told: methods, flags, presets."""

import dataclasses
from typing import Any

from experiments.common import config
from experiments.common.errors import UserError
from experiments.learning_to_fly.simulators import MJX, RK4_SOA, SIMULATORS

TD3, BPTT = "td3", "bptt"

CUSTOM = "custom"
METHODS = {
    "td3": "the paper: TD3 whose critics see noise-free states, rotor speeds and disturbance",
    "symmetric": "the critics see what the actor sees",
    "no_action_history": "the actor does not see its last actions",
    "no_rotor_delay": "training rotors have their set-points at once (and no action history)",
    "no_disturbance": "nothing pushes the vehicle in training",
    "no_observation_noise": "the actor sees exact states in training",
    "no_curriculum": "the weights of the reward stay what they are at first",
    "target_reward": "no curriculum: the weights are their targets from the first step",
    "no_recalculation": "rewards keep the weights with which they were collected",
    "bptt": "the gradient through the simulator instead of TD3, same sights of actor and critic",
}
RECIPES: dict[str, dict[str, Any]] = {
    CUSTOM: {},
    "td3": {"algo": TD3, "asymmetric": True},
    "symmetric": {"algo": TD3, "asymmetric": False},
    "no_action_history": {"algo": TD3, "history_len": 0},
    "no_rotor_delay": {"algo": TD3, "rotor_delay": False, "history_len": 0},
    "no_disturbance": {"algo": TD3, "disturbance": False},
    "no_observation_noise": {"algo": TD3, "observation_noise": False},
    "no_curriculum": {"algo": TD3, "curriculum": False, "initial_reward": True},
    "target_reward": {"algo": TD3, "curriculum": False, "initial_reward": False},
    "no_recalculation": {"algo": TD3, "curriculum": True, "recalculate_rewards": False},
    "bptt": {"algo": BPTT, "asymmetric": True},
}
# What only one of the two algorithms reads.
_OF_TD3 = (
    "steps",
    "num_envs",
    "updates_per_env_step",
    "critic_warmup",
    "actor_warmup",
    "exploration_noise",
    "exploration_decay",
    "target_noise",
    "target_noise_clip",
    "curriculum",
    "curriculum_every",
    "recalculate_rewards",
)
_OF_BPTT = (
    "bptt_updates",
    "bptt_envs",
    "bptt_horizon",
    "bptt_actor_rate",
    "bptt_critic_rate",
    "bptt_lambda",
    "bptt_eval_every",
)

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "steps": 2000,
        "critic_warmup": 400,
        "actor_warmup": 800,
        "curriculum_every": 1000,
        "bptt_updates": 6,
        "bptt_envs": 16,
        "bptt_horizon": 8,
        "bptt_eval_every": 3,
        "eval_every": 1000,
        "eval_episodes": 8,
        "tracking_laps": 0,
        "clip_frames": 2,
        "log_every": 25,
        "checkpoint_every": 50,
    },
    "quick": {
        "methods": ("td3", "symmetric", "bptt"),
        "compare": True,
        "num_seeds": 3,
        "log_every": 250,
        "checkpoint_every": 5000,
    },
    "paper": {"eval_episodes": 1000, "log_every": 250, "checkpoint_every": 5000},
    "ablations": {"compare": True, "num_seeds": 3, "log_every": 250, "checkpoint_every": 5000},
    "vec": {"num_envs": 256, "log_every": 20, "checkpoint_every": 200},
}
PRESET_DOCS = {
    "smoke": "seconds; shows that everything runs",
    "quick": "minutes on 2 cores: the paper's 300,000 steps with either critic, and bptt, 3 seeds",
    "paper": "the exact schedule of the paper, one seed",
    "ablations": "every method, three seeds",
    "vec": "256 environments at once; wants a GPU",
}


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training):
    """Settings of learning to fly."""

    method: str = config.field(
        "td3",
        "What to train; custom is what the flags below say, the others fix some of them.",
        choices=tuple(RECIPES),
    )
    algo: str = config.field(
        TD3, "TD3, or the gradient through the simulator.", choices=(TD3, BPTT)
    )
    steps: int = config.field(300_000, "Environment steps of the training (td3).", minimum=20)
    num_envs: int = config.field(1, "Environments that collect at once (td3).", minimum=1)
    updates_per_env_step: float = config.field(
        0.1,
        "Updates of each critic for an environment step (td3); the actor has half as many.",
        minimum=1e-6,
        maximum=1,
    )
    asymmetric: bool = config.field(
        True, "Critics see noise-free states, rotor speeds, disturbance; else what the actor sees."
    )
    history_len: int = config.field(
        32, "Last actions that the actor sees; 0 is the ablation of the history.", minimum=0
    )
    rotor_delay: bool = config.field(True, "Rotors need time in training.")
    disturbance: bool = config.field(True, "A force and a torque push in training.")
    observation_noise: bool = config.field(True, "The actor's sight is noisy in training.")
    curriculum: bool = config.field(
        True, "The weights of the reward grow every --curriculum_every steps (td3)."
    )
    curriculum_every: int = config.field(
        100_000, "Environment steps of a stage of the curriculum (td3).", minimum=1
    )
    recalculate_rewards: bool = config.field(
        True, "Relabel the replay memory whenever the weights grow (td3)."
    )
    initial_reward: bool = config.field(
        True, "Start from the initial weights of the reward, not from their targets."
    )
    exploration_noise: float = config.field(
        0.1, "Standard deviation of the noise on actions (td3).", minimum=0
    )
    exploration_decay: bool = config.field(
        True, "From step 500,000 on the noises of td3 shrink by a tenth every 100,000 steps."
    )
    target_noise: float = config.field(
        0.2, "Standard deviation of the noise on the target's actions (td3).", minimum=0
    )
    target_noise_clip: float = config.field(0.5, "Its largest value (td3).", minimum=0)
    critic_warmup: int = config.field(
        15_000, "The critics learn beyond this environment step (td3).", minimum=0
    )
    actor_warmup: int = config.field(
        30_000, "The actor learns beyond this environment step (td3).", minimum=0
    )
    bptt_updates: int = config.field(400, "Updates of the actor (bptt).", minimum=1)
    bptt_envs: int = config.field(128, "Environments at once (bptt).", minimum=1)
    bptt_horizon: int = config.field(
        32, "Steps through which the gradient flows (bptt).", minimum=2
    )
    bptt_actor_rate: float = config.field(2e-3, "Adam's step size, actor (bptt).", minimum=0)
    bptt_critic_rate: float = config.field(2e-3, "Adam's step size, critic (bptt).", minimum=0)
    bptt_lambda: float = config.field(
        0.95, "Decay of the traces in the critic's targets (bptt).", minimum=0, maximum=1
    )
    bptt_eval_every: int = config.field(20, "Updates between evaluations (bptt).", minimum=1)
    simulator: str = config.field(
        RK4_SOA,
        "How training computes a step: Runge-Kutta on components or on one array, Euler, or MuJoCo "
        "(td3).",
        choices=SIMULATORS,
    )
    eval_every: int = config.field(
        10_000, "Environment steps between evaluations (td3).", minimum=1
    )
    eval_episodes: int = config.field(200, "Episodes of an evaluation.", minimum=1)
    tracking_laps: int = config.field(
        2, "Laps of each figure-eight; the last one is judged, 0 flies none.", minimum=0
    )
    clip_frames: int = config.field(
        60, "Frames of the animated clip; 0 makes none.", minimum=0, identity=False
    )

    def check(self) -> None:
        """Refuse what cannot run, and flags that would do nothing."""
        names = self.chosen(METHODS)
        for name in names:
            resolved(dataclasses.replace(self, method=name)).check_one()
        config.refuse_overridden(self, PRESETS, RECIPES, names)
        changed = config.changed(self, PRESETS)
        algorithms = {RECIPES[name].get("algo", self.algo) for name in names}
        for algorithm, own in ((TD3, _OF_TD3), (BPTT, _OF_BPTT)):
            for field in own if algorithm not in algorithms else ():
                if field in changed:
                    raise UserError(f"--{field} needs --algo={algorithm}")

    def check_one(self) -> None:
        """Refuse settings of one method that contradict each other."""
        if self.history_len and not self.rotor_delay:
            raise UserError("--norotor_delay needs --history_len=0: there is nothing to infer")
        if self.simulator == MJX and self.algo != TD3:
            raise UserError(f"--simulator={MJX} needs --algo={TD3}")
        if self.algo == TD3:
            if self.actor_warmup < self.critic_warmup:
                raise UserError("--actor_warmup: the actor cannot learn before the critics do")
            if not self.exploration_decay and self.steps <= 500_000:
                raise UserError("--noexploration_decay: it only acts beyond --steps=500000")
            if not self.recalculate_rewards and not self.curriculum:
                raise UserError("--norecalculate_rewards needs --curriculum")
            if self.curriculum and not self.initial_reward:
                raise UserError("--noinitial_reward needs --nocurriculum: nothing is left to grow")


def resolved(config: Config) -> Config:
    """The settings with what the method fixes.

    Args:
      config: Settings with a method.

    Returns:
      Settings whose flags say it all.
    """
    return dataclasses.replace(config, **RECIPES[config.method])
