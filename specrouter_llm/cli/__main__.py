"""`python -m specrouter_llm.cli`: the command line where its script is not installed."""

import sys

from specrouter_llm.cli import main

sys.argv[0] = "specrouter"  # what results call the command
main()
