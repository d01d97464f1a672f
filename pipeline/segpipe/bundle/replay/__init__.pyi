from .isolation import give_up_files as give_up_files
from .isolation import give_up_network as give_up_network
from .parent import Replay as Replay
from .parent import replay_bundle as replay_bundle
