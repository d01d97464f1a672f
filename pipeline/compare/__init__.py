"""Which network and which loss work best on the data at hand: runs under equal conditions, and one report.

variants    what is compared: the grid of variants, folds and seeds
budget      steps or minutes as epochs
cells       one run: train, export, predict, evaluate
runner      all of them, resumed where they stopped
state       compare.json
statistics  intervals and tests over patients
results     the table
tables      the table as text
pictures    the figures
page        report.html and compare.md
output      all of these written
progress    what is told on the way
"""
