"""Which network and which loss work best on the data at hand: runs under equal conditions, and one report.

variants    what is compared: the grid of variants, folds and seeds
budget      steps or minutes as epochs
children    the ordinary commands as processes
cells       one run: train, export, predict, evaluate
runner      all of them, resumed where they stopped
state       compare.json
"""
