"""The whole way once, on generated data: from volumes to a bundle that stock MONAI runs, and a page about it.

data    the generated dataset and its manifest
walk    the steps: real commands, printed and run
page    what came of them
"""
