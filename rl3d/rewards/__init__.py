"""Judges: what a reward is, the embedded ones, and scoring with them."""

from rl3d.rewards.divergence import cauchy_schwarz_divergence as cauchy_schwarz_divergence
from rl3d.rewards.embedded import JudgeReward as JudgeReward
from rl3d.rewards.embedded import load as load
from rl3d.rewards.hub import load_hub_reward as load_hub_reward
from rl3d.rewards.janus import janus_rate as janus_rate
from rl3d.rewards.janus import shows_front_twice as shows_front_twice
from rl3d.rewards.judges import Judge as Judge
from rl3d.rewards.judges import load_judge as load_judge
from rl3d.rewards.protocol import FunctionReward as FunctionReward
from rl3d.rewards.protocol import Reward as Reward
from rl3d.rewards.protocol import RewardInput as RewardInput
from rl3d.rewards.protocol import reward as reward
from rl3d.rewards.reward3d import Reward3D as Reward3D
from rl3d.rewards.score import Retrieval as Retrieval
from rl3d.rewards.score import colour_probabilities as colour_probabilities
from rl3d.rewards.score import draft_score as draft_score
from rl3d.rewards.score import judge_views as judge_views
from rl3d.rewards.score import retrieval as retrieval
from rl3d.rewards.score import score_asset as score_asset
from rl3d.rewards.yes_no import yes_no as yes_no
