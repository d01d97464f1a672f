"""Pictures and pages: draws what it is given and knows nothing of runs, bundles or paths."""
