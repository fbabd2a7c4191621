"""Rewards: what one is, the embedded ones and formulas, compositions, and scoring with the judges."""

from rl3d.rewards.check import Calibration as Calibration
from rl3d.rewards.check import check_reward as check_reward
from rl3d.rewards.compose import Statistics as Statistics
from rl3d.rewards.compose import constrained as constrained
from rl3d.rewards.compose import geometric_mean as geometric_mean
from rl3d.rewards.compose import standardised as standardised
from rl3d.rewards.compose import weighted_sum as weighted_sum
from rl3d.rewards.divergence import cauchy_schwarz_divergence as cauchy_schwarz_divergence
from rl3d.rewards.embedded import JudgeReward as JudgeReward
from rl3d.rewards.embedded import load as load
from rl3d.rewards.geometry import GeometricReward as GeometricReward
from rl3d.rewards.janus import janus_rate as janus_rate
from rl3d.rewards.janus import shows_front_twice as shows_front_twice
from rl3d.rewards.judges import Judge as Judge
from rl3d.rewards.judges import load_judge as load_judge
from rl3d.rewards.protocol import FunctionReward as FunctionReward
from rl3d.rewards.protocol import Reward as Reward
from rl3d.rewards.protocol import RewardInput as RewardInput
from rl3d.rewards.protocol import reward as reward
from rl3d.rewards.score import Retrieval as Retrieval
from rl3d.rewards.score import colour_probabilities as colour_probabilities
from rl3d.rewards.score import draft_score as draft_score
from rl3d.rewards.score import judge_views as judge_views
from rl3d.rewards.score import retrieval as retrieval
from rl3d.rewards.score import score_asset as score_asset
from rl3d.rewards.yes_no import yes_no as yes_no
