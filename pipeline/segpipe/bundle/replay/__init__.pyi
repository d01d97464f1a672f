from .parent import Replay as Replay
from .parent import replay_bundle as replay_bundle
